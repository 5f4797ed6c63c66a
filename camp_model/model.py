"""CAMP, from features and word ids to the score of a pair."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.functional import normalize

from camp_model.config import CampConfig
from camp_model.encoders import CaptionEncoder, RegionEncoder, length_mask
from camp_model.matchers.matching import Matching
from camp_model.matchers.message_passing import MessagePassing, Received
from camp_model.matchers.pooling import Pooling
from camp_model.matchers.prepared import PAIRS, Layout, Prepared
from camp_model.matchers.scan import Scan


@dataclass(frozen=True)
class Matched:
    """Scores, and what led to them. Leading dimensions are the layout's: [P] or [I, C]."""

    logits: Tensor
    similarity: Tensor
    """What a ranking loss takes: the probability, or the bare cosine."""
    regions: Received | None
    words: Received | None
    region_pooling: Tensor
    """[..., R]"""
    word_pooling: Tensor
    """[..., N]"""


@dataclass(frozen=True)
class PairDetails:
    """How `P` aligned pairs came to their scores. Zero at padding."""

    logits: Tensor
    """[P]"""
    word_gates: Tensor | None
    """[P, N], mean over d where gates are elementwise; None if words have no gates."""
    region_gates: Tensor | None
    """[P, R]"""
    word_attention: Tensor | None
    """[P, N, R], each word's weights over regions; None if words receive no messages."""
    region_attention: Tensor | None
    """[P, R, N]"""
    word_pooling: Tensor
    """[P, N]"""
    region_pooling: Tensor
    """[P, R]"""


class CAMP(nn.Module):
    """Cross-Modal Adaptive Message Passing (Wang et al., ICCV 2019).

    Args:
        config: the switches.
        dropout: share of region features and of word embeddings dropped while training.
    """

    def __init__(self, config: CampConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(dropout)
        self.region_encoder = RegionEncoder(config.region_dim, config.dim)
        self.caption_encoder = CaptionEncoder(config.vocab_size, config.word_dim, config.dim)
        self.messages = MessagePassing(config) if config.message_passing != "none" else None
        self.region_pooling = Pooling(config)
        self.word_pooling = Pooling(config)
        self.matching = Scan() if config.matching == "scan" else Matching(config)

    def encode_regions(self, features: Tensor, region_mask: Tensor) -> Tensor:
        """Regions in the joint space: [I, R, region_dim], bool [I, R] -> [I, R, d]; zero at padding."""
        encoded: Tensor = self.region_encoder(self.dropout(features), region_mask)
        return encoded

    def encode_captions(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Words in the joint space: int64 [C, N], int64 [C] -> [C, N, d]; zero at padding.

        Raises:
            ValueError: a caption of no words, or of more than N.
        """
        encoded: Tensor = self.caption_encoder(tokens, lengths, self.dropout)
        return encoded

    def forward(self, features: Tensor, region_mask: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits [P] of aligned pairs: [P, R, region_dim], bool [P, R], int64 [P, N], int64 [P]."""
        words = self.encode_captions(tokens, lengths)
        word_mask = length_mask(lengths.to(tokens.device), tokens.shape[1])
        return self.score_pairs(self.encode_regions(features, region_mask), region_mask, words, word_mask)

    def score_pairs(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Logits of aligned pairs.

        Args:
            regions: [P, R, d], from `encode_regions`.
            region_mask: bool [P, R], True at real regions.
            words: [P, N, d], from `encode_captions`.
            word_mask: bool [P, N], True at real words.

        Returns:
            [P]; the sigmoid of a logit is the paper's matching score (for `matching: cosine` see `Matching`).
        """
        return self._pairs(regions, region_mask, words, word_mask).logits

    def score_matrix(
        self,
        regions: Tensor,
        region_mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Logits of every image with every caption, computed in tiles.

        Args:
            regions: [I, R, d], from `encode_regions`.
            region_mask: bool [I, R].
            words: [C, N, d], from `encode_captions`.
            word_mask: bool [C, N].
            progress: called now and then with the number of pairs scored since the last call.

        Returns:
            [I, C]. Differentiable, though a training loss should touch fewer pairs (`camp_model.losses`).
        """
        from camp_model.scoring.all_pairs import score_matrix

        return score_matrix(self, regions, region_mask, words, word_mask, progress=progress)

    def inspect_pairs(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> PairDetails:
        """Gates, attention and pooling weights of aligned pairs; shapes as in `score_pairs`."""
        matched = self._pairs(regions, region_mask, words, word_mask)

        def real(values: Tensor | None, *masks: Tensor) -> Tensor | None:
            for mask in masks:
                values = None if values is None else values.masked_fill(~mask, 0.0)
            return values

        at_words, at_regions = matched.words, matched.regions
        by_word, by_region = word_mask[:, :, None], region_mask[:, :, None]
        return PairDetails(
            logits=matched.logits,
            word_gates=real(at_words.gates if at_words else None, word_mask),
            region_gates=real(at_regions.gates if at_regions else None, region_mask),
            word_attention=real(at_words.attention if at_words else None, by_word, region_mask[:, None]),
            region_attention=real(at_regions.attention if at_regions else None, by_region, word_mask[:, None]),
            word_pooling=matched.word_pooling,
            region_pooling=matched.region_pooling,
        )

    def gate_logits(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Mean gate logit [P] of aligned pairs; shapes as in `score_pairs`, rule as in `mean_gate_logits`.

        Raises:
            ValueError: the model has no gates.
        """
        images, captions = self.prepare_regions(regions, region_mask), self.prepare_words(words, word_mask)
        return self.mean_gate_logits(images, captions, self.match(images, captions, PAIRS), PAIRS)

    def mean_gate_logits(self, images: Prepared, captions: Prepared, matched: Matched, layout: Layout) -> Tensor:
        """Mean gate logit over a pair's real words, or over its real regions where words receive no messages.

        Returns:
            [P] or [I, C], as the layout says.

        Raises:
            ValueError: the model has no gates.
        """
        received = matched.words or matched.regions
        if received is None or received.gate_logits is None:
            raise ValueError("train.gate_supervision: needs gates, but model.gate or model.message_passing is none")
        mask = layout.words(captions.real) if matched.words else layout.regions(images.real)
        return (received.gate_logits * mask).sum(-1) / mask.sum(-1).clamp(min=1)

    def each_gate_logit(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Tensor, Tensor]:
        """Gate logits of a pair's words, or of its regions where words receive no messages, and which are real.

        Returns:
            [..., N] or [..., R], and a bool mask that broadcasts to it; leading dimensions as the layout says.

        Raises:
            ValueError: the model has no gates.
        """
        logits = None if self.messages is None else self.messages.gate_logits(images, captions, layout)
        if logits is None or self.messages is None:
            raise ValueError("train.gate_supervision: needs gates, but model.gate or model.message_passing is none")
        return logits, layout.regions(images.real) if self.messages.to_words is None else layout.words(captions.real)

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """Everything about images that needs no caption: [I, R, d], bool [I, R]."""
        if isinstance(self.matching, Scan):
            return self.matching.prepare(regions, mask)
        prepared = self.messages.prepare_regions(regions, mask) if self.messages else Prepared(regions, mask)
        if self.messages and self.messages.to_regions:
            return prepared
        pooled, pooling = self._pool(self.region_pooling, regions, mask)
        return replace(prepared, pooled=pooled, pooling=pooling)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """Everything about captions that needs no image: [C, N, d], bool [C, N]."""
        if isinstance(self.matching, Scan):
            return self.matching.prepare(words, mask)
        prepared = self.messages.prepare_words(words, mask) if self.messages else Prepared(words, mask)
        if self.messages and self.messages.to_words:
            return prepared
        pooled, pooling = self._pool(self.word_pooling, words, mask)
        return replace(prepared, pooled=pooled, pooling=pooling)

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """Score prepared images with prepared captions: aligned (`PAIRS`) or all with all (`TILES`)."""
        if isinstance(self.matching, Scan):
            logits, similarity, attention = self.matching(images, captions, layout)
            mask = layout.words(captions.real)
            word_weights = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).expand(attention.shape[:-1])
            region_weights = (word_weights[..., None] * attention).sum(-2)
            attended = Received(None, attention, None, None)
            return Matched(logits, similarity, None, attended, region_weights, word_weights)
        regions, words = self.messages(images, captions, layout) if self.messages else (None, None)
        image, image_weights = self._side(self.region_pooling, images, regions, layout.regions)
        caption, caption_weights = self._side(self.word_pooling, captions, words, layout.words)
        if self.messages is None and layout is not PAIRS:
            assert images.pooled is not None and captions.pooled is not None
            logits, similarity = self.matching.all_pairs(images.pooled, captions.pooled)
        else:
            logits, similarity = self.matching(image, caption)
        return Matched(logits, similarity, regions, words, image_weights, caption_weights)

    def _pairs(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Matched:
        if len(regions) != len(words):
            raise ValueError(f"aligned pairs: {len(regions)} images, but {len(words)} captions")
        return self.match(self.prepare_regions(regions, region_mask), self.prepare_words(words, word_mask), PAIRS)

    def _side(
        self, pooling: Pooling, side: Prepared, received: Received | None, spread: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        if received is None:
            assert side.pooled is not None and side.pooling is not None
            return spread(side.pooled), spread(side.pooling)
        assert received.fused is not None
        return self._pool(pooling, received.fused, None if side.mask is None else spread(side.mask))

    def _pool(self, pooling: Pooling, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        pooled, weights = pooling(features, mask)
        # The released two-hop model compares pooled vectors of unit length.
        return (normalize(pooled, dim=-1) if self.config.hops == 2 else pooled), weights
