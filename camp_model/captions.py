"""The caption table: one Parquet file per split, a row per caption."""

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from camp_model.files import read_table, write_table
from camp_model.out_of_vocabulary import OOV_WORDS
from camp_model.vocabulary import START, UNK, Vocabulary, tokenize

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = pa.schema(
    [
        pa.field("caption_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
    ],
    metadata={b"camp.format": b"captions", b"camp.version": b"1"},
)
EQUAL = b"camp.equal_captions"
"""Key of the file's metadata: number of captions whose tokens are also those of a caption of another image."""

VOCABULARY = b"camp.vocabulary"
"""Key of the file's metadata: the identity of the vocabulary of the tokens."""

MAX_WORDS = b"camp.max_words"
"""Key of the file's metadata: number of words after which captions were cut."""


def write_captions(
    path: Path,
    caption_ids: Sequence[int],
    image_ids: Sequence[str],
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]],
    equal: int = 0,
    vocabulary: Vocabulary | None = None,
    max_words: int | None = None,
) -> None:
    """Write one split's captions; the file appears whole or not at all.

    The metadata hold `equal`, the number of captions whose tokens are also those of a caption of another image, the
    identity of the `vocabulary` of the tokens, and `max_words`, the number of words after which captions were cut.

    Raises:
        ValueError: a caption without tokens.
    """
    lengths = [len(ids) for ids in tokens]
    if 0 in lengths:
        raise ValueError(f"{path}: caption_id {caption_ids[lengths.index(0)]} has no tokens; expected at least one")
    columns = [caption_ids, image_ids, texts, tokens, lengths]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    schema = SCHEMA.with_metadata(
        {
            **(SCHEMA.metadata or {}),
            EQUAL: str(equal).encode(),
            **({VOCABULARY: vocabulary.sha256.encode()} if vocabulary else {}),
            **({MAX_WORDS: str(max_words).encode()} if max_words else {}),
        }
    )
    write_table(path, pa.Table.from_arrays(arrays, schema=schema))


def _letters(text: str) -> str:
    """The letters of a text's words, their marks and the digits, which carry its meaning; all of the text if none.

    Marks are kept because vowels are marks in the scripts of India and Thailand.
    """
    words = "".join(tokenize(text))
    return "".join(character for character in words if unicodedata.category(character)[0] in "LMN") or text


def _numbers(keys: Iterable[Hashable]) -> np.ndarray:
    """Number keys from 0 in the order of their first appearance: int64, equal for equal keys."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


@dataclass(frozen=True)
class CaptionTable:
    """The captions of one split, stored in columns, so that a million captions take little memory."""

    path: Path
    caption_ids: np.ndarray
    """int64 [C]."""
    lengths: np.ndarray
    """int64 [C], words of each caption; at least 1."""
    _ids: np.ndarray
    """int32, the word ids of all captions, one after the other."""
    _starts: np.ndarray
    """int64 [C], where each caption starts in `_ids`."""
    _table: pa.Table

    @classmethod
    def load(cls, path: Path) -> "CaptionTable":
        """Read a file that `write_captions` wrote.

        Raises:
            ValueError: the file cannot be read, is of another format, or contradicts itself; the message names
                the file and the column.
        """
        columns = {field.name: field.type for field in SCHEMA}
        table = read_table(path, columns, "a caption table", "captions").combine_chunks()
        lengths = table["length"].to_numpy().astype(np.int64)
        tokens = [chunk.flatten().to_numpy() for chunk in table["tokens"].chunks]
        ids = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
        list_sizes = table["tokens"].combine_chunks().value_lengths().to_numpy()
        wrong = np.flatnonzero((lengths < 1) | (list_sizes != lengths))
        if len(wrong):
            raise ValueError(f"{path}: length: row {wrong[0]} says {lengths[wrong[0]]}; expected its number of tokens")
        if len(ids) and ids.min() < 0:
            raise ValueError(f"{path}: tokens: a negative word id")
        return cls(path, table["caption_id"].to_numpy(), lengths, ids, np.cumsum(lengths) - lengths, table)

    def __len__(self) -> int:
        return len(self.caption_ids)

    @cached_property
    def image_ids(self) -> list[str]:
        """The image of each caption, [C]."""
        return list(self._table["image_id"].to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """Each caption as written, [C]."""
        return list(self._table["text"].to_pylist())

    @cached_property
    def text_index(self) -> np.ndarray:
        """int64 [C], from 0, equal for captions with the same tokens, which no model can distinguish."""
        ends = (self._starts + self.lengths).tolist()
        return _numbers(self._ids[start:end].tobytes() for start, end in zip(self._starts.tolist(), ends, strict=True))

    @cached_property
    def wording_index(self) -> np.ndarray:
        """int64 [C], from 0, equal for captions with the same wording, which are right for the same images.

        Captions have the same wording if they have the same tokens. If the tokens may lack something (with an <unk>, or
        in the longest captions, which may be cut), their letters and digits must be equal, too.
        """
        unknown = np.zeros(len(self), dtype=bool)
        unknown[np.searchsorted(self._starts, np.flatnonzero(self._ids == UNK), side="right") - 1] = True
        vague = unknown | (self.lengths == self.lengths.max(initial=0))
        rest = (_letters(text) if is_vague else "" for text, is_vague in zip(self.texts, vague.tolist(), strict=True))
        return _numbers(zip(self.text_index.tolist(), rest, strict=True))

    def with_oov_ids(self, vocabulary: Vocabulary) -> "CaptionTable":
        """Copy the table for models that read spelling: words outside the vocabulary get their own ids.

        These ids are valid only in this process (`camp_model.out_of_vocabulary`).
        """
        ids = self._ids.copy()
        unknown = np.flatnonzero(ids == UNK)
        for row in np.unique(np.searchsorted(self._starts, unknown, side="right") - 1).tolist():
            start, stop = self._starts[row], self._starts[row] + self.lengths[row]
            first = start + (ids[start] == START)
            # <unk> stands for a caption without a word, too.
            for at, word in zip(range(first, stop), vocabulary.tokenize(self.texts[row]), strict=False):
                if ids[at] == UNK and word not in vocabulary:
                    (ids[at],) = OOV_WORDS.ids([word])
        return replace(self, _ids=ids)

    @property
    def has_start_end(self) -> bool:
        """Whether the captions stand between <start> and <end>."""
        return bool((self._ids[self._starts] == START).any())

    @property
    def equal(self) -> int | None:
        """Number of captions whose tokens are also those of a caption of another image; None if not counted."""
        return self._stated(EQUAL)

    @property
    def max_words(self) -> int | None:
        """Number of words after which captions were cut; None if not recorded, as in files of older versions."""
        return self._stated(MAX_WORDS)

    def _stated(self, key: bytes) -> int | None:
        number = (self._table.schema.metadata or {}).get(key)
        return None if number is None else int(number)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise ValueError if the tokens are ids of another vocabulary; files of older versions do not record it."""
        expected = "expected both from one run of tokenize_captions"
        if self.largest_id >= len(vocabulary):
            raise ValueError(
                f"{self.path}: tokens: word id {self.largest_id} is outside the vocabulary of {len(vocabulary)} words; "
                f"{expected}"
            )
        stated = (self._table.schema.metadata or {}).get(VOCABULARY)
        if stated not in (None, vocabulary.sha256.encode()):
            raise ValueError(f"{self.path}: tokens: are ids of words of another vocabulary; {expected}")

    @property
    def largest_id(self) -> int:
        """The largest word id in the table; it is below the size of the vocabulary that the table belongs to."""
        return int(self._ids.max(initial=0))

    def batch(self, rows: Iterable[int]) -> "tuple[Tensor, Tensor]":
        """Gather word ids and lengths of some captions.

        Returns:
            tokens: int64 [C, N], N the longest of them, padded with 0.
            lengths: int64 [C].
        """
        import torch  # here, so that writing captions does not wait for torch

        chosen = np.asarray(list(rows), dtype=np.int64)
        lengths = self.lengths[chosen]
        positions = np.arange(lengths.max(initial=0))
        real = positions < lengths[:, None]  # [C, N]
        tokens = np.zeros(real.shape, dtype=np.int64)
        tokens[real] = self._ids[(self._starts[chosen][:, None] + positions)[real]]
        return torch.from_numpy(tokens), torch.from_numpy(lengths)

    def image_index(self, order: Sequence[str]) -> np.ndarray:
        """The position of each caption's image in `order`, int64 [C].

        Raises:
            ValueError: a caption names an image that is not in `order`.
        """
        position = {image_id: i for i, image_id in enumerate(order)}
        index = np.array([position.get(image_id, -1) for image_id in self.image_ids], dtype=np.int64)
        missing = np.flatnonzero(index < 0)
        if len(missing):
            row = missing[0]
            raise ValueError(
                f"{self.path}: image_id: caption {self.caption_ids[row]} names image {self.image_ids[row]!r}, "
                f"which has no regions ({len(missing)} such captions)"
            )
        return index
