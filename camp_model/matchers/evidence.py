"""Counts and locations as evidence of word gates, beyond the paper.

Attention is normalised, so a message says what the regions of a word look like, but not how many there are, and a
pooled pair no longer says where they were. Here each word selects two other words of its caption as its arguments: for
"left", what is on the left and what it is left of; for "two", the noun that it counts. p_i is the location of region i
(`camp_model.encoders.region_locations`; a learnt encoding would lose it), s_ij says whether two boxes surround the same
object, x_li is the affinity of word l, and a_li its attention:

    b_kjl  = softmax_l (<q_kj, k_kl> / 8 + d_k(l - j))     argument k = 1, 2 of word j, from the caption alone
    n_l    = 1 / sum_ij c_li s_ij c_lj,                    number of objects word l attends to, c_l = softmax(t x_l)
    e_j    = [tanh(r sum_l (b_2jl - b_1jl) sum_i a_li p_i),  exp(-2 (n - sum_l b_2jl n_l)^2) for n = 0 .. 6]
    z_j    = <t_j, message_j> + <e_j, w(t_j)>              the logit of the scalar gate, plus evidence
    logit  = MLP(...) + u sum_j <e_j, w(t_j)>              since one word hardly changes the pooled features

n is the effective number of an attention, in which regions of the same object count as one (Leinster and Cobbold,
Measuring diversity: the importance of species similarity, Ecology 2012, order 2): k objects of a kind get 1/k of it
each. Hu et al. (Modeling relationships in referential expressions, CVPR 2017) compare the locations that two words
attend to, too. A pair costs a product [N, R] x [R, R], and nothing of length d.
"""

import math

import torch
from torch import Tensor, nn

from camp_model.encoders import LOCATION_DIM
from camp_model.matchers.matching import at_least_float32
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared

KEY = 64
"""Length of the vectors by which words select their arguments."""
COUNTS = 7
"""Numbers 0 to 6 that a word can expect."""
FAR = 12
"""Distance in words beyond which distances count as equal."""
SAME = 20.0
"""Slope of the sigmoid that makes one object of two boxes whose overlap exceeds one half."""


class GateEvidence(nn.Module):
    """Computes what is added to the logits of word gates, in float32 or wider, even under autocast."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.word = nn.Linear(dim, LOCATION_DIM + COUNTS)
        self.query, self.argument = nn.Linear(dim, 2 * KEY), nn.Linear(dim, 2 * KEY)
        # One argument before, one after: so the two differ, and locations matter, from the first step.
        away = torch.arange(-FAR, FAR + 1)
        sides = torch.stack([away >= 0, away <= 0])
        self.distance = nn.Parameter(-away.abs() / 4 - 4.0 * sides)
        self.sharpness = nn.Parameter(torch.tensor(1.5))
        self.reach = nn.Parameter(torch.tensor(2.0))
        self.weight = nn.Parameter(torch.tensor(1.0))

    def of_regions(self, regions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Read where regions lie, and which of them show the same object.

        Args:
            regions: [I, R, d], which end with their locations.
            mask: bool [I, R].

        Returns:
            Locations [I, R, LOCATION_DIM], and for each pair of regions a number from 0 to 1 (same object) [I, R, R].
        """
        with torch.autocast(regions.device.type, enabled=False):
            locations = at_least_float32(regions[..., -LOCATION_DIM:])
            same = (SAME * (overlap(locations) - 0.5)).sigmoid() * mask[:, None]
            return locations, same

    def of_words(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the evidence that each word expects, and its two arguments.

        Args:
            words: [C, N, d].
            mask: bool [C, N].

        Returns:
            The evidence [C, N, LOCATION_DIM + COUNTS], and the weights of the arguments over words [C, N, 2, N].
        """
        captions, size, _ = words.shape
        with torch.autocast(words.device.type, enabled=False):
            words = at_least_float32(words)
            query, key = (
                layer(words).view(captions, size, 2, KEY).transpose(1, 2)  # [C, 2, N, KEY]
                for layer in (self.query, self.argument)
            )
            order = torch.arange(size, device=words.device)
            away = self.distance[:, (order - order[:, None]).clamp(-FAR, FAR) + FAR]  # [2, N, N]
            arguments = masked_softmax(query @ key.mT / math.sqrt(KEY) + away, mask[:, None, None])  # [C, 2, N, N]
            return self.word(words), arguments.transpose(1, 2)

    def forward(self, images: Prepared, captions: Prepared, layout: Layout, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """Compare what words expect with what they attend to.

        Args:
            images: prepared with `of_regions`.
            captions: prepared with `of_words`.
            layout: how they are paired.
            affinity: [..., N, R], of the words' messages.

        Returns:
            What is added to the gate logits of words, [..., N], and to the pair's logit, [...].
        """
        assert images.evidence is not None and images.same is not None
        assert captions.evidence is not None and captions.arguments is not None
        with torch.autocast(affinity.device.type, enabled=False):
            affinity = at_least_float32(affinity)
            mask = None if images.mask is None else layout.regions(images.mask)[..., None, :]  # [..., 1, R]
            attention = masked_softmax(affinity, mask)  # [..., N, R]
            locations = torch.einsum(layout.to_words, attention, images.evidence)  # [..., N, LOCATION_DIM]
            number = effective_number(masked_softmax(self.sharpness * affinity, mask), images.same, layout)  # [..., N]
            first, second = layout.words(captions.arguments).unbind(-2)  # [..., N, N]
            offset = (self.reach * ((second - first) @ locations)).tanh()  # [..., N, LOCATION_DIM]
            numbers = torch.arange(COUNTS, dtype=number.dtype, device=number.device)
            counts = (-2 * (second @ number[..., None] - numbers).square()).exp()  # [..., N, COUNTS]
            evidence = (layout.words(captions.evidence) * torch.cat([offset, counts], -1)).sum(-1)  # [..., N]
            evidence = evidence if captions.mask is None else evidence * layout.words(captions.mask)
            return evidence, self.weight * evidence.sum(-1)


def effective_number(attention: Tensor, same: Tensor, layout: Layout) -> Tensor:
    """Number of objects that each word attends to, at most 100: [..., N, R], of images [I, R, R] -> [..., N]."""
    return 1 / (torch.einsum(layout.to_words, attention, same) * attention).sum(-1).clamp(min=0.01)


def overlap(locations: Tensor) -> Tensor:
    """Intersection over union of an image's boxes: [I, R, LOCATION_DIM] -> [I, R, R]."""
    across, down, area, bottom = locations.unbind(-1)  # [I, R] each
    # Coordinates run from -1 to 1, and the image has area 1: the area of a box is the product of its half sides.
    half_height = (bottom - down).clamp(min=1e-6)
    half_width = area / half_height

    def shared_length(middle: Tensor, half: Tensor) -> Tensor:
        """Lengths of the intersections of all intervals: [I, R] each -> [I, R, R]."""
        start, end = middle - half, middle + half
        first_end = torch.minimum(end[..., None], end[..., None, :])
        last_start = torch.maximum(start[..., None], start[..., None, :])
        return (first_end - last_start).clamp(min=0)

    intersection = shared_length(across, half_width) * shared_length(down, half_height) / 4
    union = area[..., None] + area[..., None, :] - intersection
    return intersection / union.clamp(min=1e-6)
