"""Work that does not fit into memory is halved, with a warning; it is an error only if a single item does not fit."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from camp_model.matchers.prepared import Prepared


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


T = TypeVar("T")


def attempt(run: Callable[[], T]) -> T | None:
    """What `run` returns; None if memory ran out. Its traceback, which would keep tensors alive, is gone by then."""
    try:
        return run()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return None


def in_parts(run: Callable[[slice], T], total: int, size: int) -> Iterator[T]:
    """`run` on slices of `size` of `total` items, on smaller ones from the first on that does not fit.

    Raises:
        torch.OutOfMemoryError, MemoryError or RuntimeError: a single item does not fit.
    """
    start = 0
    while start < total:
        chunk = slice(start, min(start + size, total))
        count = chunk.stop - start
        done = attempt(partial(run, chunk)) if count > 1 else run(chunk)
        if done is None:
            size = count // 2
            warnings.warn(f"out of memory: continuing with {size} images or captions at a time", stacklevel=2)
            continue
        yield done
        start = chunk.stop


class Tiles:
    """Scores tiles of at most `pairs` pairs, and of fewer from the first one on that does not fit."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    def score(self, logits: Callable[[Prepared, Prepared], Tensor], images: Prepared, captions: Prepared) -> Tensor:
        """`logits(images, captions)` [i, c], in as many parts as need be.

        Raises:
            torch.OutOfMemoryError, MemoryError or RuntimeError: a single pair does not fit.
        """
        height, width = len(images.features), len(captions.features)
        if height * width == 1:
            return logits(images, captions)
        if height * width <= self.pairs:
            scores = attempt(lambda: logits(images, captions))
            if scores is not None:
                return scores
            self.pairs = height * width // 2
            warnings.warn(f"out of memory: continuing with tiles of {self.pairs} pairs", stacklevel=2)
        if height >= width:
            halves = (slice(0, height // 2), slice(height // 2, height))
            return torch.cat([self.score(logits, images.take(half), captions) for half in halves])
        halves = (slice(0, width // 2), slice(width // 2, width))
        return torch.cat([self.score(logits, images, captions.take(half)) for half in halves], dim=1)
