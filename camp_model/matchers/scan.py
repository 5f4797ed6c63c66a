"""SCAN's stacked cross attention, a baseline without messages (Lee et al., ECCV 2018, section 3.1).

With unit vectors v_i and t_j, and s_ij their inner products (equation 1), l_ij = s_ij, or a tenth of it below 0 (as the
released code):

    text_to_image   n_ij = l_ij / |l_i.|, a_ij = softmax_i(9 n_ij), score = mean_j cos(t_j, sum_i a_ij v_i)   (6 to 9)
    image_to_text   n_ij = l_ij / |l_.j|, a_ij = softmax_j(4 n_ij), score = mean_i cos(v_i, sum_j a_ij t_j)   (2 to 5)

`both` is the mean of the two scores of one model; the paper's ensemble is of two models (`evaluate.ensemble`). The
attended vector a is a weighted sum of vectors x_k with weights a_k, so <y, a> = sum_k a_k <y, x_k> and |a|^2 =
sum_kl a_k a_l <x_k, x_l>: inner products and a Gram matrix suffice, and no vector of length d is formed for a pair.
"""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from camp_model.config import CampConfig
from camp_model.matchers.base import Matched, Matcher, Received
from camp_model.matchers.matching import CosineMatching, at_least_float32
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared
from camp_model.tensors import unit

WORD_SHARPNESS, REGION_SHARPNESS = 9.0, 4.0
"""Inverse temperatures of the attention of words and of regions: lambda_1 of each direction in the released code."""


def stacked_attention(products: Tensor, queries: Tensor, keys: Tensor | None, sharpness: float) -> Tensor:
    """Attention over keys; the products are first normalised over the queries, which thus compete for each key.

    Args:
        products: [..., Q, K], inner products of unit vectors.
        queries: bool, broadcast to [..., Q], True at real queries.
        keys: bool, broadcast to [..., K], True at real keys; None: all are real.
        sharpness: inverse temperature of the softmax.

    Returns:
        [..., Q, K], each query's weights over the keys.
    """
    signed = leaky_relu(products, 0.1).masked_fill(~queries[..., :, None], 0.0)  # [..., Q, K]
    focus = sharpness * unit(signed, dim=-2)  # over Q
    return masked_softmax(focus, None if keys is None else keys[..., None, :])


class ScanMatcher(Matcher):
    """SCAN's score, scaled and shifted into a logit as a cosine is; reads `scan_direction`."""

    def __init__(self, config: CampConfig) -> None:
        super().__init__(config)
        self.matching = CosineMatching()

    @property
    def cosine(self) -> CosineMatching:
        """As `Matcher.cosine`."""
        return self.matching

    def _prepare(self, values: Tensor, mask: Tensor) -> Prepared:
        """Compute unit vectors [B, L, d] and their Gram matrices [B, L, L]: [B, L, d], bool [B, L]."""
        values = unit(at_least_float32(values))
        with torch.autocast(values.device.type, enabled=False):
            return Prepared(values, mask, gram=values @ values.transpose(-2, -1))

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_regions`."""
        return self._prepare(regions, mask)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_words`."""
        return self._prepare(words, mask)

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """As `Matcher.match`; all regions or words that attend have the same share in the score."""
        assert images.gram is not None and captions.gram is not None
        direction = self.config.scan_direction
        regions, words = layout.regions(images.real), layout.words(captions.real)
        by_word = by_region = None
        with torch.autocast(images.features.device.type, enabled=False):
            products = torch.einsum(layout.products, images.features, captions.features)  # [..., R, N]
            if direction != "image_to_text":
                keys = None if images.mask is None else regions
                by_word = _direction(products.mT, words, keys, layout.regions(images.gram), WORD_SHARPNESS)
            if direction != "text_to_image":
                keys = None if captions.mask is None else words
                by_region = _direction(products, regions, keys, layout.words(captions.gram), REGION_SHARPNESS)
            directions = [each for each in (by_word, by_region) if each is not None]
            logits, similarity = self.matching.scaled(_mean([score for score, _ in directions]))
        word_shares, region_shares = [], []
        if by_word is not None:
            equal = _equal_shares(words, by_word[1])  # [..., N]
            word_shares.append(equal)
            region_shares.append((equal[..., None] * by_word[1]).sum(-2))  # [..., R]
        if by_region is not None:
            equal = _equal_shares(regions, by_region[1])  # [..., R]
            region_shares.append(equal)
            word_shares.append((equal[..., None] * by_region[1]).sum(-2))  # [..., N]
        return Matched(
            logits,
            similarity,
            None if by_region is None else Received(None, by_region[1]),
            None if by_word is None else Received(None, by_word[1]),
            _mean(region_shares),
            _mean(word_shares),
        )


def _direction(
    products: Tensor, queries: Tensor, keys: Tensor | None, gram: Tensor, sharpness: float
) -> tuple[Tensor, Tensor]:
    """Attend, and compare each query with its attended vector.

    Args:
        products, queries, keys, sharpness: as in `stacked_attention`.
        gram: [..., K, K], inner products of the keys.

    Returns:
        The mean of the cosines over real queries [...], and the attention [..., Q, K].
    """
    attention = stacked_attention(products, queries, keys, sharpness)  # [..., Q, K]
    along = (attention * products).sum(-1)  # [..., Q]
    squares = ((attention @ gram) * attention).sum(-1)  # [..., Q]
    cosines = along / squares.masked_fill(squares < 1e-16, torch.inf).sqrt()  # [..., Q], as `unit`
    return (cosines * queries).sum(-1) / queries.sum(-1).clamp(min=1), attention


def _equal_shares(real: Tensor, attention: Tensor) -> Tensor:
    """Equal shares of the real queries: bool, broadcast to [..., Q], for attention [..., Q, K] -> [..., Q]."""
    shares = real.to(attention.dtype) / real.sum(-1, keepdim=True).clamp(min=1)
    return shares.expand(attention.shape[:-1])


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)
