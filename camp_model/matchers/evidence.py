"""Counts and places as evidence of word gates, beyond the paper.

Attention is normalised, so a message says what the regions of a word look like, but not how many there are, and a
pooled pair has forgotten where they were. Here each word picks, from the caption alone, two other words that it speaks
of, its arguments: "two" the noun that it counts, "left" what is there and what it is left of. With p_i the place of
region i, a_li the attention of word l, and m_li in [0, 1] whether region i is one of what word l names:

    b_kjl  = softmax_l <q_kj, k_kl>                        argument k = 1, 2 of word j, from the caption alone
    e_j    = [tanh(r sum_l (b_2jl - b_1jl) sum_i a_li p_i),  exp(-2 (n - sum_l b_1jl sum_i m_li)^2) for n = 0 .. 6]
    z_j    = <t_j, message_j> + <e_j, w(t_j)>              what was the gate's logit, and the evidence for it
    logit  = MLP(...) + u sum_j <e_j, w(t_j)>              one word among many would hardly change what is pooled

Counting by unnormalised weights follows Zhang et al. (Learning to count objects in natural images, ICLR 2018), places
of what two words look at Hu et al. (Modeling relationships in referential expressions, CVPR 2017). A pair costs two
small products of regions and words; nothing of length d.
"""

import math

import torch
from torch import Tensor, nn

from camp_model.matchers.matching import at_least_float32
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared

KEY, PLACE, COUNTS = 64, 4, 7


class GateEvidence(nn.Module):
    """What is added to the logits of word gates; in float32 at least, also under autocast."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.region = nn.Linear(dim, PLACE + KEY)
        self.word = nn.Linear(dim, PLACE + COUNTS + KEY)
        self.query, self.argument = nn.Linear(dim, 2 * KEY), nn.Linear(dim, 2 * KEY)
        self.by_affinity = nn.Parameter(torch.tensor(0.5))
        self.membership = nn.Parameter(torch.tensor(-2.0))
        self.reach = nn.Parameter(torch.tensor(2.0))
        self.weight = nn.Parameter(torch.tensor(1.0))

    @torch.no_grad()
    def start_places(self, encoder: Tensor, geometry: float) -> None:
        """As `Matcher.start_places`: which words speak of left and right is then learnt several times sooner."""
        x0, y0, x1, y1, area = range(-5, 0)
        wanted = encoder.new_zeros(PLACE, encoder.shape[1])
        wanted[0, [x0, x1]] = wanted[1, [y0, y1]] = 0.5 / geometry
        wanted[2, area] = wanted[3, y1] = 1 / geometry
        self.region.weight[:PLACE] = wanted @ torch.linalg.pinv(encoder)
        self.region.bias[:PLACE] = 0

    def of_regions(self, regions: Tensor) -> Tensor:
        """Place and key of each region: [I, R, d] -> [I, R, PLACE + KEY]."""
        with torch.autocast(regions.device.type, enabled=False):
            values: Tensor = self.region(at_least_float32(regions))
        return values

    def of_words(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each word expects to see, its key, and its two arguments.

        Args:
            words: [C, N, d].
            mask: bool [C, N].

        Returns:
            [C, N, PLACE + COUNTS + KEY], and the weights [C, N, 2, N] over words of the caption.
        """
        captions, size, _ = words.shape
        with torch.autocast(words.device.type, enabled=False):
            words = at_least_float32(words)
            query, key = (
                layer(words).view(captions, size, 2, KEY).transpose(1, 2) for layer in (self.query, self.argument)
            )
            arguments = masked_softmax(query @ key.mT / math.sqrt(KEY), mask[:, None, None])
            return self.word(words), arguments.transpose(1, 2)

    def forward(self, images: Prepared, captions: Prepared, layout: Layout, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence for each word, [..., N], and for the pair, [...], from the affinities [..., N, R] of messages."""
        assert images.evidence is not None and captions.evidence is not None and captions.arguments is not None
        with torch.autocast(affinity.device.type, enabled=False):
            places, region_keys = images.evidence.tensor_split((PLACE,), -1)
            expected, word_keys = captions.evidence.tensor_split((PLACE + COUNTS,), -1)
            mask = None if images.mask is None else layout.regions(images.mask)[..., None, :]
            affinity = at_least_float32(affinity)
            products = torch.einsum(layout.products, region_keys, word_keys).transpose(-2, -1)
            member = (self.by_affinity * affinity + products / math.sqrt(KEY) + self.membership).sigmoid()
            attention = masked_softmax(affinity, mask)
            member = member if mask is None else member * mask
            places = attention @ layout.regions(places)  # [..., N, PLACE]
            first, second = layout.words(captions.arguments).unbind(-2)  # [..., N, N]
            offset = (self.reach * ((second - first) @ places)).tanh()
            count = first @ member.sum(-1, keepdim=True)  # [..., N, 1]
            counts = (-2 * (count - torch.arange(COUNTS, dtype=count.dtype, device=count.device)).square()).exp()
            evidence = (layout.words(expected) * torch.cat([offset, counts], -1)).sum(-1)
            evidence = evidence if captions.mask is None else evidence * layout.words(captions.mask)
            return evidence, self.weight * evidence.sum(-1)
