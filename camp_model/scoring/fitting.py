"""Halve work that does not fit into memory, with a warning; only a single item that does not fit is an error."""

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
    """Return what `run` returns; None if memory ran out.

    The traceback of that error, which would keep tensors alive, is freed before this function returns.
    """
    try:
        return run()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return None


def in_parts(run: Callable[[slice], T], total: int, size: int) -> Iterator[T]:
    """Yield what `run` returns for slices of `size` of `total` items; after one that does not fit, for smaller slices.

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
    """Scores tiles of at most `pairs` pairs; after one that does not fit, tiles of fewer."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    def score(self, logits: Callable[[Prepared, Prepared], Tensor], images: Prepared, captions: Prepared) -> Tensor:
        """Return `logits(images, captions)`, [i, c], computed in as many parts as needed.

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
