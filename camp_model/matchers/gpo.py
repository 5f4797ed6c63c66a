"""Generalised pooling: the aggregator of VSE-infinity (Chen et al., CVPR 2021, sections 3.2 and 3.3).

The values x_lc of each channel c of L vectors are sorted, the largest first, and summed with weights theta that depend
on the rank k of a value and on L alone (equations 2 to 5):

    pooled_c = sum_k theta_k max_k({x_lc}),   theta = softmax_k(w . h_k / 0.1),   h = BiGRU(p_1, ..., p_L)

p_k is the sinusoidal encoding of rank k and h_k the mean of the GRU's two directions. The temperature, and the sizes of
encodings and states, are those of the released code. Mean and max pooling are special cases. VSE-infinity also adds a
two-layer MLP to its linear encoder of region features, and decays weights by 1e-4; here the encoder of every matcher is
linear.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from camp_model.tensors import take_rows, to_device

ENCODING_DIM, STATE_DIM = 32, 32
"""Length of a rank's encoding, and of the GRU's states."""
TEMPERATURE = 0.1


def positional_encodings(count: int) -> Tensor:
    """Sinusoidal encodings of the ranks 0 to `count` - 1: sines at even positions, cosines at odd ones.

    Returns:
        float64 [count, ENCODING_DIM].
    """
    ranks = torch.arange(count, dtype=torch.float64)[:, None]
    rates = torch.exp(torch.arange(0, ENCODING_DIM, 2, dtype=torch.float64) * (-math.log(10_000.0) / ENCODING_DIM))
    return torch.stack([(ranks * rates).sin(), (ranks * rates).cos()], dim=-1).flatten(1)


class GeneralisedPooling(nn.Module):
    """A sum of each channel's sorted values, weighted by their ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(ENCODING_DIM, STATE_DIM, batch_first=True, bidirectional=True)
        self.score = nn.Linear(STATE_DIM, 1, bias=False)

    def position_weights(self, counts: Tensor, size: int) -> Tensor:
        """The weight of each rank, for several numbers of vectors.

        Args:
            counts: int64 [...], numbers of vectors, from 1 to `size`.
            size: number of ranks.

        Returns:
            [..., size], zero beyond each count.
        """
        distinct, row = torch.unique(counts, return_inverse=True)  # [U], [...]
        weight = self.score.weight
        with torch.autocast(weight.device.type, enabled=False):
            encodings = to_device(positional_encodings(size).to(weight.dtype), weight.device)  # [size, ENCODING_DIM]
            encodings = encodings.expand(len(distinct), -1, -1)
            packed = pack_padded_sequence(encodings, distinct.cpu().flip(0), batch_first=True)  # the largest first
            states = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=size)[0].flip(0)
            forward, backward = states.chunk(2, dim=-1)  # [U, size, STATE_DIM] each
            scores = self.score((forward + backward) / 2).squeeze(-1) / TEMPERATURE  # [U, size]
        beyond = torch.arange(size, device=counts.device) >= distinct[:, None]
        weights: Tensor = take_rows(scores.masked_fill(beyond, -torch.inf).softmax(-1), row)
        return weights

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pool regions or words.

        Args:
            features: [..., L, d].
            mask: bool, broadcast to [..., L]; None: all are real.

        Returns:
            The pooled vectors [..., d], and [..., L] the mean over channels of each vector's weights, without gradient.
        """
        size = features.shape[-2]
        if mask is None:
            mask = torch.ones((*[1] * (features.ndim - 2), size), dtype=torch.bool, device=features.device)
        counts = mask.sum(-1)
        beyond = torch.arange(size, device=features.device) >= counts[..., None]  # [..., L]
        # If nothing is real, all ranks are beyond the count, and the pooled vector is 0.
        weights = self.position_weights(counts.clamp(min=1), size).to(features.dtype).masked_fill(beyond, 0.0)
        weights = weights[..., None]  # [..., L, 1]
        low = features.masked_fill(~mask[..., None], torch.finfo(features.dtype).min)
        ordered, sources = low.sort(dim=-2, descending=True)  # [..., L, d]
        pooled = (ordered.masked_fill(beyond[..., None], 0.0) * weights).sum(-2)  # [..., d]
        with torch.no_grad():
            shares = torch.zeros_like(ordered).scatter_(-2, sources, weights.expand_as(ordered)).mean(-1)  # [..., L]
        return pooled, shares
