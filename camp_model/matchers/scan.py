"""SCAN's text-to-image attention, a baseline without messages (Lee et al., ECCV 2018, section 3.1, equations 6 to 9).

With unit vectors v_i and t_j, and s_ij their inner products:

    a_ij = softmax_i(9 n_ij),  n_ij = l_ij / |l_i.|,  l_ij = s_ij, or a tenth of it below 0   (as the released code)
    score = mean_j cos(t_j, sum_i a_ij v_i)

The attended vector is a weighted sum of the image's own, so its inner product with the word and its length are those of
the weights with s and with the image's Gram matrix, and no vector of length d is formed for a pair.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared

SHARPNESS = 9.0
"""Inverse temperature of the attention (lambda_1 of the paper, its value for this direction)."""


class Scan(nn.Module):
    """The score, scaled and shifted into a logit as `cosine` matching does."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def prepare(self, values: Tensor, mask: Tensor) -> Prepared:
        """Unit vectors and their Gram matrices: [B, L, d], bool [B, L]."""
        values = normalize(values.float() if values.dtype in (torch.float16, torch.bfloat16) else values, dim=-1)
        with torch.autocast(values.device.type, enabled=False):
            return Prepared(values, mask, gram=values @ values.transpose(-2, -1))

    def forward(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Score prepared images with prepared captions.

        Returns:
            Logits and similarities, [P] or [I, C] as the layout says, and each word's attention [..., N, R].
        """
        assert images.gram is not None
        with torch.autocast(images.features.device.type, enabled=False):
            products = torch.einsum(layout.products, images.features, captions.features)  # [..., R, N]
            words = layout.words(captions.real)
            kept = leaky_relu(products, 0.1).masked_fill(~words[..., None, :], 0.0)
            focus = SHARPNESS * normalize(kept, dim=-1)
            mask = None if images.mask is None else layout.regions(images.mask)[..., None, :]
            attention = masked_softmax(focus.transpose(-2, -1), mask)  # [..., N, R]
            along = (attention * products.transpose(-2, -1)).sum(-1)
            squares = ((attention @ layout.regions(images.gram)) * attention).sum(-1)
            found = along / squares.clamp(min=1e-16).sqrt()
            similarity = (found * words).sum(-1) / words.sum(-1).clamp(min=1)
            return self.log_scale.exp() * similarity + self.shift, similarity, attention
