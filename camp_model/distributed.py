"""Hardest negatives over the global batch of several processes.

Each process encodes its share of the batch, gathers the encodings of all, and computes the loss of its own pairs with
negatives from everywhere:

    batch = gather_batch(regions, region_mask, words, word_mask, image_index, caption_index)
    loss = hardest_negative_bce(model, *batch.tensors, caption_index=batch.caption_index, pairs=batch.pairs)
    (loss * batch.weight).backward()

With gradients averaged over processes, as DistributedDataParallel does, the step is that of one process with the whole
batch: gradients with respect to gathered encodings flow back to the process that made them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class GlobalBatch:
    """The encoded batch of all processes."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    """regions [B, R, d], region_mask [B, R], words [B, N, d], word_mask [B, N], image_index [B]."""
    pairs: slice
    """This process's pairs."""
    caption_index: Tensor | None = None
    """[B]"""
    weight: float = 1.0
    """b times the number of processes / B: the mean over processes of mean losses, each times its weight, is the mean
    over the batch. 1 where all processes have the same number b of pairs."""


def gather_batch(
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    caption_index: Tensor | None = None,
) -> GlobalBatch:
    """Gather the encoded pairs of all processes, in the order of their ranks.

    Args:
        regions: [b, R, d]; b (at least 1), R and N may differ between processes.
        region_mask: bool [b, R].
        words: [b, N, d].
        word_mask: bool [b, N].
        image_index: int64 [b], meaning the same images on every process.
        caption_index: int64 [b], meaning the same texts on every process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        own = (regions, region_mask, words, word_mask, image_index)
        return GlobalBatch(own, slice(0, len(regions)), caption_index)
    shape = torch.tensor([len(regions), regions.shape[1], words.shape[1]], device=regions.device)
    sizes = torch.stack(_all_gather(shape)).cpu()
    counts, (most, num_regions, num_words) = sizes[:, 0].tolist(), sizes.max(0).values.tolist()
    more = most - len(regions), num_regions - regions.shape[1], num_words - words.shape[1]

    def gathered(values: Tensor, *widen: int) -> Tensor:
        """The values of all processes, padded to equal shapes for the exchange, without the pairs that this added."""
        every = _gather(pad(values, (*widen, 0, more[0])))
        if len(set(counts)) == 1:
            return every
        return torch.cat([part[:count] for part, count in zip(torch.split(every, most), counts, strict=True)])

    tensors = (
        gathered(regions, 0, 0, 0, more[1]),
        gathered(region_mask.to(torch.uint8), 0, more[1]).bool(),
        gathered(words, 0, 0, 0, more[2]),
        gathered(word_mask.to(torch.uint8), 0, more[2]).bool(),
        gathered(image_index.to(regions.device)),
    )
    texts = None if caption_index is None else gathered(caption_index.to(regions.device))
    start, total = sum(counts[: dist.get_rank()]), sum(counts)
    return GlobalBatch(tensors, slice(start, start + len(regions)), texts, len(regions) * len(counts) / total)


def _all_gather(values: Tensor) -> list[Tensor]:
    values = values.contiguous()
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values)
    return gathered


class _Gather(torch.autograd.Function):
    """Concatenates the values of all processes; the backward pass sums, for each, their gradients of its own values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.size = len(values)
        return torch.cat(_all_gather(values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # autograd owns the gradient itself
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.size
        return total[start : start + ctx.size]


def _gather(values: Tensor) -> Tensor:
    gathered: Tensor = _Gather.apply(values)  # type: ignore[no-untyped-call, unused-ignore]
    return gathered
