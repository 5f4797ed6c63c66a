"""SCAN's text-to-image attention, a baseline without messages (Lee et al., ECCV 2018, section 3.1, equations 6 to 9).

With unit vectors v_i and t_j, and s_ij their inner products:

    a_ij = softmax_i(9 n_ij),  n_ij = l_ij / |l_i.|,  l_ij = s_ij, or a tenth of it below 0   (as the released code)
    score = mean_j cos(t_j, sum_i a_ij v_i)

The attended vector is a weighted sum of the image's own, so its inner product with the word and its length are those of
the weights with s and with the image's Gram matrix, and no vector of length d is formed for a pair.
"""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, normalize

from camp_model.config import CampConfig
from camp_model.matchers.base import Matched, Matcher, Received
from camp_model.matchers.matching import CosineMatching, at_least_float32
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared

SHARPNESS = 9.0
"""Inverse temperature of the attention (lambda_1 of the paper, its value for this direction)."""


class ScanMatcher(Matcher):
    """The score, scaled and shifted into a logit as a cosine is; reads no switch."""

    def __init__(self, config: CampConfig) -> None:
        super().__init__(config)
        self.matching = CosineMatching()

    def _prepare(self, values: Tensor, mask: Tensor) -> Prepared:
        """Unit vectors and their Gram matrices: [B, L, d], bool [B, L]."""
        values = normalize(at_least_float32(values), dim=-1)
        with torch.autocast(values.device.type, enabled=False):
            return Prepared(values, mask, gram=values @ values.transpose(-2, -1))

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_regions`."""
        return self._prepare(regions, mask)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_words`."""
        return self._prepare(words, mask)

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """As `Matcher.match`; each word's share in the score is the same."""
        assert images.gram is not None
        with torch.autocast(images.features.device.type, enabled=False):
            products = torch.einsum(layout.products, images.features, captions.features)  # [..., R, N]
            words = layout.words(captions.real)
            signed = leaky_relu(products, 0.1).masked_fill(~words[..., None, :], 0.0)
            focus = SHARPNESS * normalize(signed, dim=-1)
            mask = None if images.mask is None else layout.regions(images.mask)[..., None, :]
            attention = masked_softmax(focus.transpose(-2, -1), mask)  # [..., N, R]
            along = (attention * products.transpose(-2, -1)).sum(-1)
            squares = ((attention @ layout.regions(images.gram)) * attention).sum(-1)
            cosines = along / squares.clamp(min=1e-16).sqrt()  # [..., N]
            similarity = (cosines * words).sum(-1) / words.sum(-1).clamp(min=1)
            logits, similarity = self.matching.scaled(similarity)
        word_weights = (words / words.sum(-1, keepdim=True).clamp(min=1)).expand(attention.shape[:-1])
        region_weights = (word_weights[..., None] * attention).sum(-2)
        return Matched(logits, similarity, None, Received(None, attention), region_weights, word_weights)
