"""The paper's matcher: messages, gates and fusion, pooling, score (section 3)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from camp_model.config import CampConfig
from camp_model.joint import pooled_vectors
from camp_model.matchers.base import KernelPlan, KernelSide, Matched, Matcher, Received
from camp_model.matchers.matching import CosineMatching, MlpMatching, at_least_float32
from camp_model.matchers.message_passing import MessagePassing
from camp_model.matchers.pooling import Pooling
from camp_model.matchers.prepared import PAIRS, TILES, Layout, Prepared
from camp_model.matchers.receiver import Receiver
from camp_model.tensors import unit

WEIGHTED = ("attention", "mlp", "mean")
"""Poolings that the kernels support: weighted sums of vectors."""


class CampMatcher(Matcher):
    """Cross-modal adaptive message passing; reads the switches of `CampConfig` that name no other matcher.

    With `message_passing: none`, only pooling and matching are left (an ablation).
    """

    def __init__(self, config: CampConfig) -> None:
        super().__init__(config)
        self.messages = MessagePassing(config) if config.message_passing != "none" else None
        self.region_pooling = Pooling(config)
        self.word_pooling = Pooling(config)
        self.matching = CosineMatching() if config.matching == "cosine" else MlpMatching(config.dim)
        self.joint = CosineMatching() if config.joint_score else None
        if self.joint and isinstance(self.matching, MlpMatching):
            nn.init.zeros_(self.matching.output.weight)  # begins as a joint embedding

    @property
    def reads_locations(self) -> bool:
        """As `Matcher.reads_locations`, for `gate_evidence`."""
        return self.messages is not None and self.messages.evidence is not None

    @property
    def has_vectors(self) -> bool:
        """As `Matcher.has_vectors`."""
        return self.messages is None and self.cosine is not None

    @property
    def cosine(self) -> CosineMatching | None:
        """As `Matcher.cosine`."""
        only_matching = self.joint is None and not self.reads_locations
        return self.matching if only_matching and isinstance(self.matching, CosineMatching) else None

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_regions`."""
        vector = pooled_vectors(regions, mask) if self.joint else None  # [I, d]
        values = self._with_norm(regions)
        prepared = self.messages.prepare_regions(values, mask, regions) if self.messages else Prepared(values, mask)
        if self.messages and self.messages.to_regions:
            return replace(prepared, vector=vector)
        pooled, pooling = self._pool(self.region_pooling, values, mask)  # [I, d], [I, R]
        return replace(prepared, vector=vector, pooled=pooled, pooling=pooling)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_words`."""
        vector = pooled_vectors(words, mask) if self.joint else None  # [C, d]
        values = self._with_norm(words)
        prepared = self.messages.prepare_words(values, mask) if self.messages else Prepared(values, mask)
        if self.messages and self.messages.to_words:
            return replace(prepared, vector=vector)
        pooled, pooling = self._pool(self.word_pooling, values, mask)  # [C, d], [C, N]
        return replace(prepared, vector=vector, pooled=pooled, pooling=pooling)

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """As `Matcher.match`."""
        regions, words = self.messages(images, captions, layout) if self.messages else (None, None)
        image, region_pooling = self._side(self.region_pooling, images, regions, layout.regions)  # [..., d], [..., R]
        caption, word_pooling = self._side(self.word_pooling, captions, words, layout.words)  # [..., d], [..., N]
        if self.messages is None and layout is not PAIRS:
            assert images.pooled is not None and captions.pooled is not None
            logits, similarity = self.matching.all_pairs(images.pooled, captions.pooled)  # [I, C]
        else:
            logits, similarity = self.matching(image, caption)  # [...]
        if words is not None and words.evidence is not None:
            logits = logits + words.evidence
            similarity = logits.sigmoid()
        if self.joint is not None:
            assert images.vector is not None and captions.vector is not None
            joint_score = self.joint if layout is PAIRS else self.joint.all_pairs
            logits = logits + joint_score(images.vector, captions.vector)[0]
            similarity = logits.sigmoid()
        return Matched(logits, similarity, regions, words, region_pooling, word_pooling)

    def gate_logits(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Tensor, Tensor]:
        """As `Matcher.gate_logits`; for scalar gates, no vector of length d is formed for a pair."""
        logits = None if self.messages is None else self.messages.gate_logits(images, captions, layout)
        if logits is None or self.messages is None:
            return super().gate_logits(images, captions, layout)
        return logits, layout.words(captions.real) if self.messages.to_words else layout.regions(images.real)

    def kernel_plan(self) -> KernelPlan | None:
        """As `Matcher.kernel_plan`; the kernel supports one hop, no elementwise gates, and pooling by weights."""
        config = self.config
        if self.messages is None or config.hops == 2 or config.fusion == "message" or config.gate == "elementwise":
            return None
        if config.pooling not in WEIGHTED:
            return None
        both = config.message_passing == "both"
        mlp = self.matching if isinstance(self.matching, MlpMatching) else None
        return KernelPlan(
            dim=config.dim,
            gated=config.gate == "scalar",
            regions=self._kernel_side(self.messages.to_regions, self.region_pooling),
            words=self._kernel_side(self.messages.to_words, self.word_pooling),
            layers=(mlp.hidden, mlp.logits) if mlp is not None and both else None,
            score=lambda image, caption: self.matching(image, caption)[0],
            evidence=partial(self.messages.gate_evidence, TILES),
            joint=None if self.joint is None else self._joint_logits,
        )

    def _joint_logits(self, images: Tensor, captions: Tensor) -> Tensor:
        assert self.joint is not None
        return self.joint.all_pairs(images, captions)[0]

    def _kernel_side(self, receiver: Receiver | None, pooling: Pooling) -> KernelSide | None:
        if receiver is None:
            return None
        layers: Tensor | tuple[nn.Linear, nn.Linear] | None = None
        if isinstance(pooling.score, nn.Linear):
            layers = pooling.score.weight[0]
        elif isinstance(pooling.score, nn.Sequential):
            first, last = pooling.score[0], pooling.score[2]
            assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
            layers = first, last
        return KernelSide(
            receiver.fusion.bias, self.config.residual, receiver.gate_context, layers, receiver.scalar_logits
        )

    def _with_norm(self, values: Tensor) -> Tensor:
        """Give each vector the length `feature_norm`, if it is set: [B, L, d] -> [B, L, d]."""
        norm = self.config.feature_norm
        return norm * unit(at_least_float32(values)) if norm else values

    def _side(
        self, pooling: Pooling, side: Prepared, received: Received | None, spread: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Pool one side, after its messages if it received any: vectors [..., d] and weights [..., L]."""
        if received is None:
            assert side.pooled is not None and side.pooling is not None
            return spread(side.pooled), spread(side.pooling)
        assert received.fused is not None
        return self._pool(pooling, received.fused, None if side.mask is None else spread(side.mask))

    def _pool(self, pooling: Pooling, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pool [..., L, d] into vectors [..., d] and weights [..., L]."""
        pooled, weights = pooling(features, mask)
        # The released two-hop model compares pooled vectors of unit length.
        return (unit(pooled) if self.config.hops == 2 else pooled), weights
