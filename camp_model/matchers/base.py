"""The interface of matchers; model, losses, scoring and evaluation use nothing else of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from camp_model.config import CampConfig
from camp_model.matchers.matching import CosineMatching
from camp_model.matchers.prepared import Layout, Prepared


@dataclass(frozen=True)
class Received:
    """What one side has received. Leading dimensions are those of the layout: [P] or [I, C]."""

    fused: Tensor | None
    """[..., L, d]; None if the matcher fuses nothing."""
    attention: Tensor
    """[..., L, M], each region's weights over words, or each word's weights over regions."""
    gate_logits: Tensor | None = None
    """[..., L], in float32 or wider; for elementwise gates the mean over d. None: there are no gates."""
    gates: Tensor | None = None
    """[..., L], the sigmoids; for elementwise gates the mean over d."""
    evidence: Tensor | None = None
    """[...], added to the pair's logit for counts and locations; None without `gate_evidence`."""


@dataclass(frozen=True)
class Matched:
    """Scores and their explanations. Leading dimensions are those of the layout: [P] or [I, C]."""

    logits: Tensor
    """[...], in float32 or wider; the sigmoid of a logit is the matching score."""
    similarity: Tensor
    """[...], the input of ranking losses: the cosine if the logit is only a scaled cosine, else the probability."""
    regions: Received | None = None
    """None if regions receive no messages."""
    words: Received | None = None
    """None if words receive no messages."""
    region_pooling: Tensor | None = None
    """[..., R], each region's share in the image's vector or score; None if the matcher has no such shares."""
    word_pooling: Tensor | None = None
    """[..., N], as `region_pooling`."""


@dataclass(frozen=True)
class KernelSide:
    """The parameters of one side that receives messages, for the kernels."""

    bias: Tensor | None
    """[d], of the fusion."""
    residual: bool
    """Whether the own features are added to the fused ones."""
    gate_context: float
    """Weight of the pair's mean gate logit in each gate logit."""
    pooling: Tensor | tuple[nn.Linear, nn.Linear] | None
    """Weights [d] of attention pooling, or the two layers of the released pooling; None: mean pooling."""
    gate_logits: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
    """As `Receiver.scalar_logits`."""


@dataclass(frozen=True)
class KernelPlan:
    """How the kernels (`camp_model.scoring.tiles`) score prepared images and captions.

    A side that receives messages must have `Prepared.own`, the other one `Prepared.message`, and captions `keys`.
    """

    dim: int
    """d"""
    gated: bool
    """Whether scalar gates are applied."""
    regions: KernelSide | None
    """None if regions receive no messages; images then have `Prepared.pooled`."""
    words: KernelSide | None
    """None if words receive no messages; captions then have `Prepared.pooled`."""
    layers: tuple[nn.Linear, Callable[[Tensor], Tensor]] | None
    """The hidden layer of a pooled image and caption, concatenated to [2 d], and what its ReLU's logits are; None:
    `score` scores them."""
    score: Callable[[Tensor, Tensor], Tensor]
    """Pooled images and captions [..., d], which broadcast, -> logits [...]; used without `layers`."""
    evidence: Callable[[Prepared, Prepared, Tensor], tuple[Tensor | None, Tensor | None]]
    """Images, captions and affinities [I, C, N, R] -> what is added to the gate logits of words, [I, C, N], and to the
    logits, [I, C]; None: nothing."""
    joint: Callable[[Tensor, Tensor], Tensor] | None = None
    """`Prepared.vector` of images [I, d] and captions [C, d] -> what is added to the logits, [I, C]; None: nothing."""


class PairScorer(Protocol):
    """The methods that scoring calls, of a matcher or of a model, which delegates them to its matcher."""

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared: ...

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared: ...

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched: ...

    def kernel_plan(self) -> KernelPlan | None: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Matcher(nn.Module, ABC):
    """Scores encoded images and captions: each is prepared once, then matched pair by pair or all with all.

    A subclass is listed in `camp_model.registry.MATCHERS` and calls this constructor before it creates its weights.
    """

    def __init__(self, config: CampConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """Compute everything about images that needs no caption: [I, R, d], bool [I, R]."""

    @abstractmethod
    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """Compute everything about captions that needs no image: [C, N, d], bool [C, N]."""

    @abstractmethod
    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """Score prepared images with prepared captions: aligned (`PAIRS`, [P]) or all with all (`TILES`, [I, C])."""

    @property
    def reads_locations(self) -> bool:
        """Whether encoded regions must end with their locations (`camp_model.encoders.region_locations`)."""
        return False

    @property
    def has_vectors(self) -> bool:
        """Whether a score is the cosine of the sides' `Prepared.pooled`, so that an index of these finds the best."""
        return False

    @property
    def cosine(self) -> CosineMatching | None:
        """The module that maps cosines to logits, if a logit is only a scaled cosine; else None."""
        return None

    def gate_logits(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Tensor, Tensor]:
        """Gate logits of each pair's words, or of its regions if words receive no messages.

        Returns:
            Logits [..., N] or [..., R], in float32 or wider, and a bool mask that broadcasts to them.

        Raises:
            ValueError: there are no gates.
        """
        raise ValueError(f"train.gate_supervision: needs gates, but {self.config.no_gates_reason()}")

    def kernel_plan(self) -> KernelPlan | None:
        """The parameters with which the CPU kernel scores prepared pairs; None if it cannot."""
        return None
