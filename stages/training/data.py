"""Batches of aligned image-caption pairs, loaded beside the training step.

Shapes: B pairs of a batch, R regions, D region_dim, N words of the longest caption of the batch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from camp_model.captions import CaptionTable
from camp_model.regions import RegionStore
from camp_model.tensors import to_device
from camp_model.vocabulary import Vocabulary
from stages.contracts import input_errors
from stages.errors import InputError
from stages.foils.words import CONTENT_KINDS, ids_of_kinds, load_words
from stages.training.foils import FoilBatch, Indices

PREFETCH = 4
"""Batches that are prefetched while a step runs."""


@dataclass(frozen=True)
class Batch:
    """Aligned pairs: row i of every tensor belongs to pair i."""

    features: Tensor
    """[B, R, D]"""
    region_mask: Tensor
    """bool [B, R]"""
    tokens: Tensor
    """int64 [B, N]"""
    lengths: Tensor
    """int64 [B], on the CPU"""
    image_index: Tensor
    """int64 [B], equal if two captions have the same image"""
    caption_index: Tensor
    """int64 [B], equal if two captions have the same tokens"""
    foils: FoilBatch | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, with features in float32."""
        names = ("features", "region_mask", "tokens", "image_index", "caption_index")
        tensors = {name: to_device(getattr(self, name), device) for name in names}
        tensors["features"] = tensors["features"].float()
        return replace(self, **tensors, foils=None if self.foils is None else self.foils.to(device))

    def pinned(self) -> "Batch":
        """The batch in pinned memory, which is copied to a GPU while it computes."""
        tensors = {f.name: getattr(self, f.name).pin_memory() for f in fields(self) if f.name != "foils"}
        return replace(self, **tensors)


class Split:
    """The captions of a split and the regions of their images; `content` holds the ids of content words.

    Raises:
        InputError: captions have images without regions or words of another vocabulary, or a file is damaged.
    """

    def __init__(self, store: RegionStore, captions: Path, vocabulary: Vocabulary, content: Sequence[int] = ()) -> None:
        self.store, self.content = store, content
        with input_errors():
            self.captions = CaptionTable.load(captions)
            self.rows: Indices = self.captions.image_index(store.image_ids)
            self.captions.check_vocabulary(vocabulary)
        if not len(self.captions):
            raise InputError(f"{captions}: holds no captions")
        self.images: Indices = np.unique(self.rows)

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, captions: Indices) -> Batch:
        """The pairs of some captions, each with its own image.

        Raises:
            InputError: a shard of regions is missing or damaged.
        """
        features, mask = self.regions(self.rows[captions])
        tokens, lengths = self.captions.batch(captions)
        image_index, caption_index = (torch.from_numpy(i[captions]) for i in (self.rows, self.captions.text_index))
        return Batch(features, mask, tokens, lengths, image_index, caption_index)

    def regions(self, rows: Indices) -> tuple[Tensor, Tensor]:
        """Features [n, R, D], as stored, and mask [n, R] of some rows of the store."""
        with input_errors():
            features, mask = self.store.features(rows)
        return torch.from_numpy(features), torch.from_numpy(mask)


def load_splits(regions: Path, captions: Path) -> tuple[dict[str, Split], Vocabulary]:
    """The splits train and val of the folders data/regions and data/captions, and their vocabulary.

    Raises:
        InputError: as `Split`; or a file cannot be read, or a split has only one image.
    """
    with input_errors():
        store = RegionStore(regions)
        vocabulary = Vocabulary.load(captions / "vocabulary.json")
    content = ids_of_kinds(load_words(captions / "lexicon.json"), vocabulary, CONTENT_KINDS)
    splits = {name: Split(store, captions / f"{name}.parquet", vocabulary, content) for name in ("train", "val")}
    for name, split in splits.items():
        if len(split.images) < 2:  # a single image is always ranked first
            raise InputError(f"{captions / f'{name}.parquet'}: image_id: one image only; expected 2 or more")
    return splits, vocabulary


def epoch_batches(pairs: int, batch_size: int, seed: int, epoch: int, processes: int = 1) -> list[Indices]:
    """The captions of each step of an epoch: every caption once, in an order that seed and epoch decide.

    Batch sizes differ by at most 1, so that no epoch ends with a batch too small to have negatives.
    """
    order = np.random.default_rng([seed, epoch]).permutation(pairs)
    return np.array_split(order, steps_per_epoch(pairs, batch_size, processes))


def steps_per_epoch(pairs: int, batch_size: int, processes: int) -> int:
    """Number of batches in an epoch, of at most `batch_size` pairs.

    A batch has at least 2 pairs, because a single one has no negative, and one for each process. Where `batch_size` is
    hardly larger, as many batches as that allows are larger than it: of 2, one batch of an odd number has 3.
    """
    return min(-(-pairs // batch_size), max(1, pairs // max(2, processes)))


T = TypeVar("T")


def prefetch(items: Iterator[T], depth: int = PREFETCH) -> Iterator[T]:
    """Yield the same items, produced up to `depth` ahead by a thread, whose exceptions are raised here."""
    end = object()
    thread = ThreadPoolExecutor(1, "prefetch")
    try:
        ready: deque[Future[Any]] = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := ready.popleft().result()) is not end:
            ready.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
