"""CAMP, from features and word ids to the score of a pair."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camp_model.config import CampConfig
from camp_model.encoders import LOCATION_DIM, RegionEncoder, TextEncoder, length_mask, region_locations
from camp_model.joint import pooled_vectors
from camp_model.matchers.base import KernelPlan, Matched, Matcher
from camp_model.matchers.matching import at_least_float32
from camp_model.matchers.prepared import PAIRS, Layout, Prepared, check_mask
from camp_model.registry import MATCHERS, TEXT_ENCODERS
from camp_model.scoring.all_pairs import score_matrix
from camp_model.tensors import unit


@dataclass(frozen=True)
class PairDetails:
    """Gates, attention and pooling weights of P aligned pairs, which explain their scores; zero at padding."""

    logits: Tensor
    """[P]"""
    word_gates: Tensor | None
    """[P, N], for elementwise gates the mean over d; None if words have no gates."""
    region_gates: Tensor | None
    """[P, R], as `word_gates`."""
    word_attention: Tensor | None
    """[P, N, R], each word's weights over regions; None if words receive no messages."""
    region_attention: Tensor | None
    """[P, R, N], each region's weights over words; None if regions receive no messages."""
    word_pooling: Tensor | None
    """[P, N], each word's share in the caption's vector or score; None if the matcher has no such shares."""
    region_pooling: Tensor | None
    """[P, R], as `word_pooling`."""


class CAMP(nn.Module):
    """Cross-Modal Adaptive Message Passing (Wang et al., ICCV 2019).

    Weights are float32 or wider; 16 bits are for autocast.

    Args:
        config: the switches.
        dropout: share of region features and of word embeddings dropped while training.
        region_dropout: share of the feature channels dropped while training, the same ones in all regions of an image;
            otherwise regions of an image would reveal each other's dropped channels.
        caption_encoder: a text encoder to use, for instance from `TextEncoder.from_facts`; None: a new one.

    Raises:
        ValueError: the matcher reads locations, but features have none, or d is too small for them.
    """

    def __init__(
        self,
        config: CampConfig,
        dropout: float = 0.0,
        region_dropout: float = 0.0,
        *,
        caption_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dropout, self.region_dropout = nn.Dropout(dropout), nn.Dropout(region_dropout)
        self.region_encoder = RegionEncoder(config.region_dim, config.dim)
        self.caption_encoder: TextEncoder = (
            TEXT_ENCODERS[config.text].load()(config) if caption_encoder is None else caption_encoder
        )
        self.matcher: Matcher = MATCHERS[config.matcher].load()(config)
        if self.matcher.reads_locations and not config.geometry:
            raise ValueError(
                "model.gate_evidence: true reads where regions lie from features that end with their boxes; expected "
                "such features (regions.geometry: true), and a model that was trained on them"
            )
        if self.matcher.reads_locations and config.dim <= LOCATION_DIM:
            raise ValueError(
                f"model.dim: {config.dim} has no room for the {LOCATION_DIM} numbers of a region's location"
            )

    def encode_regions(self, features: Tensor, region_mask: Tensor) -> Tensor:
        """Map regions into the joint space: [I, R, region_dim], bool [I, R] -> [I, R, d]; zero at padding.

        If the matcher reads locations, the last `LOCATION_DIM` of the d numbers are the region's location, not learnt.
        """
        dropped = self.dropout(features)
        if self.training and self.region_dropout.p:
            dropped = dropped * self.region_dropout(features.new_ones(len(features), 1, features.shape[2]))
        encoded: Tensor = self.region_encoder(dropped, region_mask)
        if self.matcher.reads_locations:
            boxes = features.to(self.region_encoder.linear.weight.dtype)  # autocast's type has too few digits
            locations = region_locations(boxes, self.config.geometry).masked_fill(~region_mask[..., None], 0.0)
            encoded = torch.cat([encoded[..., :-LOCATION_DIM].to(locations.dtype), locations], dim=-1)  # [I, R, d]
        return encoded

    def encode_captions(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Map words into the joint space: ids int64 [C, N], lengths int64 [C] -> [C, N, d]; zero at padding.

        Raises:
            ValueError: a caption without words, or with more than N.
        """
        encoded: Tensor = self.caption_encoder(tokens, lengths, self.dropout)
        return encoded

    def image_vectors(self, regions: Tensor, region_mask: Tensor) -> Tensor:
        """Compute one unit vector per image, for an index and for the contrastive loss.

        If the score is a cosine of vectors (`Matcher.has_vectors`), these are the vectors; otherwise they are the means
        of the encoded regions.

        Args:
            regions: [I, R, d], from `encode_regions`.
            region_mask: bool [I, R].

        Returns:
            [I, d], in float32 or wider.
        """
        return self._vectors(self.prepare_regions, regions, region_mask)

    def caption_vectors(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """Compute one unit vector per caption, as `image_vectors`: [C, N, d], bool [C, N] -> [C, d]."""
        return self._vectors(self.prepare_words, words, word_mask)

    def _vectors(self, prepare: Callable[[Tensor, Tensor], Prepared], states: Tensor, mask: Tensor) -> Tensor:
        if not self.matcher.has_vectors:
            return pooled_vectors(states, mask)
        with torch.autocast(states.device.type, enabled=False):
            pooled = prepare(at_least_float32(states), mask).pooled
        assert pooled is not None
        return unit(pooled)

    def forward(self, features: Tensor, region_mask: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode and score aligned pairs: [P, R, region_dim], bool [P, R], int64 [P, N], int64 [P] -> logits [P].

        Arguments are those of `encode_regions` and `encode_captions`.
        """
        words = self.encode_captions(tokens, lengths)
        word_mask = length_mask(lengths.to(tokens.device), tokens.shape[1])
        return self.score_pairs(self.encode_regions(features, region_mask), region_mask, words, word_mask)

    def score_pairs(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Score aligned pairs: image p with caption p.

        Args:
            regions: [P, R, d], from `encode_regions`.
            region_mask: bool [P, R], True at real regions.
            words: [P, N, d], from `encode_captions`.
            word_mask: bool [P, N], True at real words, which come first.

        Returns:
            Logits [P]; their sigmoid is the paper's matching score (for a cosine, see `CosineMatching`).

        Raises:
            ValueError: the numbers of images and captions differ, or a mask has another shape.
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
        """Score every image with every caption, in tiles.

        Args:
            regions: [I, R, d], from `encode_regions`.
            region_mask: bool [I, R].
            words: [C, N, d], from `encode_captions`.
            word_mask: bool [C, N].
            progress: called now and then with the number of pairs scored since the last call.

        Returns:
            Logits [I, C]. They are differentiable, but training losses score fewer pairs (`camp_model.losses`).
        """
        return score_matrix(self, regions, region_mask, words, word_mask, progress=progress)

    def inspect_pairs(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> PairDetails:
        """Score aligned pairs and explain the scores; arguments as in `score_pairs`."""
        matched = self._pairs(regions, region_mask, words, word_mask)

        def real(values: Tensor | None, mask: Tensor) -> Tensor | None:
            return None if values is None else values.masked_fill(~mask, 0.0)

        at_words, at_regions = matched.words, matched.regions
        both = word_mask[:, :, None] & region_mask[:, None]  # [P, N, R]
        return PairDetails(
            logits=matched.logits,
            word_gates=real(at_words.gates if at_words else None, word_mask),
            region_gates=real(at_regions.gates if at_regions else None, region_mask),
            word_attention=real(at_words.attention if at_words else None, both),
            region_attention=real(at_regions.attention if at_regions else None, both.mT),
            word_pooling=matched.word_pooling,
            region_pooling=matched.region_pooling,
        )

    def gate_logits(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Mean gate logit [P] of each aligned pair (`mean_gate_logits`); arguments as in `score_pairs`.

        Raises:
            ValueError: the model has no gates.
        """
        images, captions = self.prepare_regions(regions, region_mask), self.prepare_words(words, word_mask)
        return self.mean_gate_logits(images, captions, self.match(images, captions, PAIRS), PAIRS)

    def mean_gate_logits(self, images: Prepared, captions: Prepared, matched: Matched, layout: Layout) -> Tensor:
        """Mean gate logit over the real words of each pair, or over its real regions if words receive no messages.

        Args:
            images, captions: prepared.
            matched: what `match` returned for them.
            layout: the same as of `match`.

        Returns:
            [P] or [I, C].

        Raises:
            ValueError: the model has no gates.
        """
        received = matched.words or matched.regions
        if received is None or received.gate_logits is None:
            raise ValueError(f"train.gate_supervision: needs gates, but {self.config.no_gates_reason()}")
        mask = layout.words(captions.real) if matched.words else layout.regions(images.real)
        return (received.gate_logits * mask).sum(-1) / mask.sum(-1).clamp(min=1)

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_regions`.

        Raises:
            ValueError: a mask of another shape.
        """
        check_mask("regions", regions, mask)
        return self.matcher.prepare_regions(regions, mask)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_words`.

        Raises:
            ValueError: a mask of another shape.
        """
        check_mask("words", words, mask)
        return self.matcher.prepare_words(words, mask)

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """As `Matcher.match`."""
        return self.matcher.match(images, captions, layout)

    def kernel_plan(self) -> KernelPlan | None:
        """As `Matcher.kernel_plan`."""
        return self.matcher.kernel_plan()

    def _pairs(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Matched:
        if len(regions) != len(words):
            raise ValueError(f"aligned pairs: {len(regions)} images, but {len(words)} captions")
        return self.match(self.prepare_regions(regions, region_mask), self.prepare_words(words, word_mask), PAIRS)
