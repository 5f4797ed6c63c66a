"""Counts and places as evidence of word gates, beyond the paper.

Attention is normalised, so a message says what the regions of a word look like, but not how many there are, and a
pooled pair no longer says where they were. Here each word selects, from the caption alone, two other words as its
arguments: for "left", what is on the left and what it is left of; for "two", the noun that it counts. With p_i the
place of region i (`camp_model.encoders.region_locations`; a learnt encoding would lose it), s_ij whether two boxes
surround the same object, x_li the affinity of word l, and a_li its attention:

    b_kjl  = softmax_l (<q_kj, k_kl> / 8 + d_k(l - j))     argument k = 1, 2 of word j, from the caption alone
    n_l    = 1 / sum_ij c_li s_ij c_lj,                    number of objects word l attends to, c_l = softmax(t x_l)
    e_j    = [tanh(r sum_l (b_2jl - b_1jl) sum_i a_li p_i),  exp(-2 (n - sum_l b_2jl n_l)^2) for n = 0 .. 6]
    z_j    = <t_j, message_j> + <e_j, w(t_j)>              the logit of the scalar gate, plus evidence
    logit  = MLP(...) + u sum_j <e_j, w(t_j)>              since one word hardly changes the pooled features

n is the effective number of an attention, in which regions of the same object count as one (Leinster and Cobbold,
Measuring diversity: the importance of species similarity, Ecology 2012, order 2): k objects of a kind get 1/k of it
each. Comparing the places that two words attend to follows Hu et al. (Modeling relationships in referential
expressions, CVPR 2017). A pair costs a product [words, regions] x [regions, regions], and nothing of length d.
"""

import math

import torch
from torch import Tensor, nn

from camp_model.encoders import LOCATION_DIM
from camp_model.matchers.matching import at_least_float32
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared

KEY, COUNTS, FAR = 64, 7, 12
SAME = 20.0
"""How sharply two boxes become one object as their overlap exceeds one half."""


class GateEvidence(nn.Module):
    """Computes what is added to the logits of word gates; at least in float32, even under autocast."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.word = nn.Linear(dim, LOCATION_DIM + COUNTS)
        self.query, self.argument = nn.Linear(dim, 2 * KEY), nn.Linear(dim, 2 * KEY)
        # One argument before, one after: so dependence on places shows from the first step.
        away = torch.arange(-FAR, FAR + 1)
        sides = torch.stack([away >= 0, away <= 0])
        self.distance = nn.Parameter(-away.abs() / 4 - 4.0 * sides)
        self.sharpness = nn.Parameter(torch.tensor(1.5))
        self.reach = nn.Parameter(torch.tensor(2.0))
        self.weight = nn.Parameter(torch.tensor(1.0))

    def of_regions(self, regions: Tensor, mask: Tensor) -> Tensor:
        """Location of each region, and which others are the same object: [I, R, d], bool [I, R] -> [I, R, 4 + R]."""
        with torch.autocast(regions.device.type, enabled=False):
            place = at_least_float32(regions[..., -LOCATION_DIM:])
            same = (SAME * (overlap(place) - 0.5)).sigmoid() * mask[:, None]
            return torch.cat([place, same], dim=-1)

    def of_words(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The evidence that each word expects, and its two arguments.

        Args:
            words: [C, N, d].
            mask: bool [C, N].

        Returns:
            [C, N, LOCATION_DIM + COUNTS], and the weights [C, N, 2, N] over words of the caption.
        """
        captions, size, _ = words.shape
        with torch.autocast(words.device.type, enabled=False):
            words = at_least_float32(words)
            query, key = (
                layer(words).view(captions, size, 2, KEY).transpose(1, 2) for layer in (self.query, self.argument)
            )
            order = torch.arange(size, device=words.device)
            away = self.distance[:, (order - order[:, None]).clamp(-FAR, FAR) + FAR]
            arguments = masked_softmax(query @ key.mT / math.sqrt(KEY) + away, mask[:, None, None])
            return self.word(words), arguments.transpose(1, 2)

    def forward(self, images: Prepared, captions: Prepared, layout: Layout, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence for each word, [..., N], and for the pair, [...], from the affinities [..., N, R] of messages."""
        assert images.evidence is not None and captions.evidence is not None and captions.arguments is not None
        with torch.autocast(affinity.device.type, enabled=False):
            affinity = at_least_float32(affinity)
            mask = None if images.mask is None else layout.regions(images.mask)[..., None, :]
            place, same = images.evidence[..., : LOCATION_DIM + affinity.shape[-1]].tensor_split((LOCATION_DIM,), -1)
            places = torch.einsum(layout.to_words, masked_softmax(affinity, mask), place)  # [..., N, LOCATION_DIM]
            number = effective_number(masked_softmax(self.sharpness * affinity, mask), same, layout)
            first, second = layout.words(captions.arguments).unbind(-2)  # [..., N, N]
            offset = (self.reach * ((second - first) @ places)).tanh()
            numbers = torch.arange(COUNTS, dtype=number.dtype, device=number.device)
            counts = (-2 * (second @ number[..., None] - numbers).square()).exp()
            evidence = (layout.words(captions.evidence) * torch.cat([offset, counts], -1)).sum(-1)
            evidence = evidence if captions.mask is None else evidence * layout.words(captions.mask)
            return evidence, self.weight * evidence.sum(-1)


def effective_number(attention: Tensor, same: Tensor, layout: Layout) -> Tensor:
    """Number of objects each word attends to: [..., N, R], of images [I, R, R] -> [..., N]; at most 100."""
    return 1 / (torch.einsum(layout.to_words, attention, same) * attention).sum(-1).clamp(min=0.01)


def overlap(places: Tensor) -> Tensor:
    """Intersection over union of an image's boxes: [I, R, LOCATION_DIM] -> [I, R, R]."""
    across, down, area, bottom = places.unbind(-1)
    tall = (bottom - down).clamp(min=1e-6)
    wide = area / tall  # halves of the box's sides: the whole image, of area 1, is 2 by 2

    def shared(middle: Tensor, half: Tensor) -> Tensor:
        start, end = middle - half, middle + half
        least, most = (
            torch.minimum(end[..., None], end[..., None, :]),
            torch.maximum(start[..., None], start[..., None, :]),
        )
        return (least - most).clamp(min=0)

    both = shared(across, wide) * shared(down, tall) / 4
    return both / (area[..., None] + area[..., None, :] - both).clamp(min=1e-6)
