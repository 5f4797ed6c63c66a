"""Encode images and captions in batches, so that features are never in memory all at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from camp_model.captions import CaptionTable
from camp_model.encoders import length_mask
from camp_model.model import CAMP
from camp_model.tensors import free_gpu_bytes
from camp_model.vocabulary import Vocabulary

BATCH = 128
"""Images, or captions to cache, encoded at a time."""
CACHE_BYTES = 4 * 2**30
"""Largest size in bytes of the encoded images that are cached on the CPU."""
CACHE_SHARE = 0.25
"""Share of a GPU's free memory for cached images."""
BLOCK = 8192
"""Images in one block of `EncodedImages.blocks`."""


class Regions(Protocol):
    """A source of region features, such as `camp_model.regions.RegionStore`."""

    def __len__(self) -> int: ...

    def features(self, rows: Sequence[int]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Features [n, R, region_dim] and mask [n, R] of some images."""
        ...


def device_of(model: CAMP) -> torch.device:
    """The device of a model's weights; the CPU for a model without weights."""
    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def encode_batches(
    model: CAMP, regions: Regions, rows: Sequence[int] | npt.NDArray[np.int64], batch_size: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Encode some images of a store, batch by batch, on the model's device.

    Args:
        rows: [I], rows of the store.

    Yields:
        Regions [b, R, d] and mask [b, R], in the order of `rows`.

    Raises:
        ValueError: the store's features are damaged.
    """
    device = device_of(model)
    for start in range(0, len(rows), batch_size):
        features, mask = regions.features([int(row) for row in rows[start : start + batch_size]])
        region_mask = torch.from_numpy(np.ascontiguousarray(mask)).to(device)
        yield model.encode_regions(torch.from_numpy(features).to(device, torch.float32), region_mask), region_mask


def encode_images(model: CAMP, regions: Regions, rows: Sequence[int] | npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Encode some images of a store: regions [I, R, d] and mask [I, R]; arguments as in `encode_batches`.

    Raises:
        ValueError: as `encode_batches`, or there are no rows.
    """
    if not len(rows):
        raise ValueError("rows: is empty; expected the row of one image or more")
    batches = list(encode_batches(model, regions, rows))
    return torch.cat([encoded for encoded, _ in batches]), torch.cat([mask for _, mask in batches])


def encode_captions(
    model: CAMP, captions: CaptionTable, rows: Sequence[int] | npt.NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Encode some captions of a table: words [C, N, d] and mask [C, N], on the model's device."""
    tokens, lengths = captions.batch(rows)
    tokens = tokens.to(device_of(model))
    return model.encode_captions(tokens, lengths), length_mask(lengths.to(tokens.device), tokens.shape[1])


def word_ids(model: CAMP, vocabulary: Vocabulary, words: Sequence[str]) -> list[int]:
    """The id of each word of a sentence, up to the last word that fits into the text encoder's input; at least of one.

    A word outside the vocabulary has an id for its spelling, valid in this process, if the text encoder reads spelling;
    otherwise it has the id of <unk>.
    """
    ids = vocabulary.encode(words)
    outside = list(dict.fromkeys(word for word in words if word not in vocabulary))
    oov = dict(zip(outside, model.caption_encoder.oov_ids(outside), strict=True))
    ids = [oov.get(word, number) for word, number in zip(words, ids, strict=True)]
    if not ids:
        return ids
    read = model.caption_encoder.words_read(torch.tensor([ids], device=device_of(model)), torch.tensor([len(ids)]))
    return ids[: max(1, int(read))]


def captions_as_read(models: Sequence[CAMP], vocabulary: Vocabulary, captions: CaptionTable) -> CaptionTable:
    """Give words outside the vocabulary their own ids, if one of the models reads spelling.

    Raises:
        ValueError: the table's word ids are of another vocabulary.
    """
    captions.check_vocabulary(vocabulary)
    spelling = any(model.caption_encoder.reads_spelling for model in models)
    return captions.with_oov_ids(vocabulary) if spelling else captions


def encode_sentences(model: CAMP, sentences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Encode sentences, each given as word ids: words [C, N, d] and mask [C, N], on the model's device.

    Raises:
        ValueError: there is no sentence, or one has no word.
    """
    if not sentences:
        raise ValueError("no sentence; expected at least one")
    lengths = torch.tensor([len(ids) for ids in sentences])
    tokens = pad_sequence([torch.tensor(ids) for ids in sentences], batch_first=True).to(device_of(model))
    return model.encode_captions(tokens, lengths), length_mask(lengths.to(tokens.device), tokens.shape[1])


def cache_captions(
    model: CAMP,
    captions: CaptionTable,
    rows: npt.NDArray[np.int64] | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Encode every distinct caption of a table once, if the text encoder caches captions.

    Order and batches are always the same, so that a resumed training has the same states to the bit.

    Args:
        rows: int64 [n], rows of the captions to encode; None: all.
        progress: called with the number of captions encoded since the last call.
    """
    rows = np.arange(len(captions)) if rows is None else rows
    rows = rows[np.unique(captions.text_index[rows], return_index=True)[1]]
    rows = rows[np.argsort(captions.lengths[rows], kind="stable")]
    for start in range(0, len(rows), BATCH):
        tokens, lengths = captions.batch(rows[start : start + BATCH])
        if not model.caption_encoder.cache_states(tokens.to(device_of(model)), lengths):
            return
        if progress is not None:
            progress(len(lengths))


class EncodedImages:
    """Images that are read repeatedly: cached if their encodings fit into memory, otherwise encoded each time.

    Args:
        model: encodes them.
        regions: the store.
        rows: int64 [I], rows of the store.
        share: share of the cache's memory that these images may take; below 1 if several models share it.
    """

    def __init__(self, model: CAMP, regions: Regions, rows: npt.NDArray[np.int64], share: float = 1.0) -> None:
        self.model, self.regions, self.rows = model, regions, rows
        first, _ = encode_images(model, regions, rows[:1])
        needed = len(rows) * first.numel() * first.element_size()
        self.encoded = encode_images(model, regions, rows) if needed <= share * _cache_limit(first.device) else None

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield blocks of images: their positions, regions [i, R, d] and mask [i, R]; every image comes once."""
        for start in range(0, len(self.rows), BLOCK):
            block = slice(start, min(start + BLOCK, len(self.rows)))
            if self.encoded is not None:
                yield block, self.encoded[0][block], self.encoded[1][block]
            else:
                yield block, *encode_images(self.model, self.regions, self.rows[block])

    def take(self, positions: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Regions [n, R, d] and mask [n, R] of the images at some positions."""
        if self.encoded is None:
            return encode_images(self.model, self.regions, self.rows[positions])
        chosen = torch.from_numpy(positions).to(self.encoded[0].device)
        return self.encoded[0][chosen], self.encoded[1][chosen]


def _cache_limit(device: torch.device) -> float:
    """Bytes that encoded images may take on a device."""
    return free_gpu_bytes(device) * CACHE_SHARE if device.type == "cuda" else CACHE_BYTES
