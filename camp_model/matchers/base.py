"""The interface of matchers, which is all that model, losses, scoring and evaluation use of them."""

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
    """A side after its messages. Leading dimensions are those of the layout: [P] or [I, C]."""

    fused: Tensor | None
    """[..., L, d]; None where nothing is fused."""
    attention: Tensor
    """[..., L, M], each region's weights over words or each word's over regions."""
    gate_logits: Tensor | None = None
    """[..., L], before the sigmoid, in float32 or wider; mean over d for elementwise gates; None without gates."""
    gates: Tensor | None = None
    """[..., L], mean over d for elementwise gates."""
    evidence: Tensor | None = None
    """[...], what counts and locations add to the pair's logit; None without `gate_evidence`."""


@dataclass(frozen=True)
class Matched:
    """Scores, and what explains them. Leading dimensions are the layout's: [P] or [I, C]."""

    logits: Tensor
    """[...], in float32 or wider; the sigmoid of a logit is the matching score."""
    similarity: Tensor
    """[...], the input of a ranking loss: the cosine if the logit is just that, otherwise the probability."""
    regions: Received | None = None
    """None if regions receive no messages."""
    words: Received | None = None
    region_pooling: Tensor | None = None
    """[..., R], each region's share in the image's vector or score; None if the matcher has no such shares."""
    word_pooling: Tensor | None = None
    """[..., N]"""


@dataclass(frozen=True)
class KernelSide:
    """A side that receives messages, as the CPU kernel takes it."""

    bias: Tensor | None
    """[d], of the fusion."""
    residual: bool
    gate_context: float
    pooling: Tensor | tuple[nn.Linear, nn.Linear] | None
    """Weights [d] of attention pooling; the layers around the ReLU of the released pooling; None: mean pooling."""


@dataclass(frozen=True)
class KernelPlan:
    """How the CPU kernel (`camp_model.scoring.tiles`) scores pairs of sides that hold `own`, `message` and `keys`."""

    dim: int
    gated: bool
    """Whether scalar gates weigh the messages."""
    regions: KernelSide | None
    """None where regions receive no messages; their `pooled` is then there."""
    words: KernelSide | None
    layers: tuple[nn.Linear, nn.Linear] | None
    """The layers around the ReLU that score a pooled image and caption, one after the other in a vector [2 d]."""
    score: Callable[[Tensor, Tensor], Tensor]
    """Pooled images and captions [..., d], which broadcast, -> logits [...]; used without `layers`."""
    evidence: Callable[[Prepared, Prepared, Tensor], tuple[Tensor | None, Tensor | None]]
    """Images, captions and the affinities [I, C, N, R] -> what is added to the gate logits of words, [I, C, N], and to
    the logit, [I, C]; None: nothing."""
    joint: Callable[[Tensor, Tensor], Tensor] | None = None
    """The sides' `vector` [I, d] and [C, d] -> what is added to the logits, [I, C]."""


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
        """Whether a score is the cosine of the sides' `pooled`, so that an index of vectors finds the best pairs."""
        return False

    @property
    def cosine(self) -> CosineMatching | None:
        """The module that maps cosines to logits, if a logit is nothing but a scaled cosine; None otherwise."""
        return None

    def gate_logits(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Tensor, Tensor]:
        """Gate logits of a pair's words, or of its regions if words receive no messages, and their mask.

        Returns:
            [..., N] or [..., R], in float32 or wider, and a bool mask that broadcasts to it; leading dimensions as the
            layout says.

        Raises:
            ValueError: there are no gates.
        """
        raise ValueError(f"train.gate_supervision: needs gates, but {self.config.no_gates_reason()}")

    def kernel_plan(self) -> KernelPlan | None:
        """What the CPU kernel needs to score prepared pairs; None where it cannot."""
        return None
