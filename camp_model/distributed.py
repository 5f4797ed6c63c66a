"""Hardest negatives over the global batch of several processes.

Each process encodes its share of the batch, gathers the encodings of all, and computes the loss of its own pairs with
negatives from everywhere:

    batch = gather_batch(regions, region_mask, words, word_mask, image_index, caption_index)
    loss = hardest_negative_bce(model, *batch.tensors, caption_index=batch.caption_index, pairs=batch.pairs)
    loss.backward()

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
        regions: [b, R, d], with the same b on every process; R and N may differ and are padded.
        region_mask: bool [b, R].
        words: [b, N, d].
        word_mask: bool [b, N].
        image_index: int64 [b], meaning the same images on every process.
        caption_index: int64 [b], meaning the same texts on every process.

    Raises:
        ValueError: processes hold different numbers of pairs.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        own = (regions, region_mask, words, word_mask, image_index)
        return GlobalBatch(own, slice(0, len(regions)), caption_index)
    sizes = torch.tensor([len(regions), regions.shape[1], words.shape[1]], device=regions.device)
    every_size = torch.stack(_all_gather(sizes)).cpu()
    if not bool((every_size[:, 0] == len(regions)).all()):
        raise ValueError(f"pairs per process: {every_size[:, 0].tolist()}; expected the same number on each")
    num_regions, num_words = int(every_size[:, 1].max()), int(every_size[:, 2].max())
    more_regions, more_words = num_regions - regions.shape[1], num_words - words.shape[1]
    tensors = (
        _gather(pad(regions, (0, 0, 0, more_regions))),
        torch.cat(_all_gather(pad(region_mask, (0, more_regions)).to(torch.uint8))).bool(),
        _gather(pad(words, (0, 0, 0, more_words))),
        torch.cat(_all_gather(pad(word_mask, (0, more_words)).to(torch.uint8))).bool(),
        torch.cat(_all_gather(image_index.to(regions.device))),
    )
    texts = None if caption_index is None else torch.cat(_all_gather(caption_index.to(regions.device)))
    start = dist.get_rank() * len(regions)
    return GlobalBatch(tensors, slice(start, start + len(regions)), texts)


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
