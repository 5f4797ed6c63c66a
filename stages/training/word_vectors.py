"""Reads word vectors from a text file in the format of GloVe and word2vec, or from an installed package."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.types as kinds
import torch
from torch import Tensor

from camp_model.packages import PREFIX, package_folder
from camp_model.vocabulary import Vocabulary
from stages.contracts import input_errors, read_table
from stages.errors import InputError, shown
from stages.workspace import named_path


def load_word_vectors(source: str, vocabulary: Vocabulary, dim: int) -> dict[int, Tensor]:
    """Read the vectors of the words that are in both `source` and the vocabulary, by word id.

    Args:
        source: a text file, or package:NAME.
        dim: length of a vector.

    Raises:
        InputError: the source cannot be read, has another dimension than `dim`, or has no word of the vocabulary.
    """
    packaged = source.startswith(PREFIX)
    vectors = (_of_package if packaged else _of_text)(source, vocabulary, dim)
    if not vectors:
        raise InputError(f"train.word_vectors: {source}: holds no word of the vocabulary")
    return vectors


def _of_package(source: str, vocabulary: Vocabulary, dim: int) -> dict[int, Tensor]:
    """The vectors of a package that has one .npy array, a row per word, and one Parquet file with the words."""
    with input_errors("train.word_vectors: "):
        root = package_folder(source)
    arrays, tables = sorted(root.rglob("*.npy")), sorted(root.rglob("*.parquet"))
    if (len(arrays), len(tables)) != (1, 1):
        raise InputError(
            f"train.word_vectors: {source}: {len(arrays)} .npy and {len(tables)} Parquet files; expected one array of "
            "vectors and one table of words"
        )
    (path,), (words_path,) = arrays, tables
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"train.word_vectors: {path}: cannot be read ({error!s:.200}); expected an array") from None
    table = read_table(words_path, (), "the words", where="train.word_vectors: ")
    texts = {name: table[name] for name in table.column_names if _is_text(table[name].type)}
    if not texts:
        raise InputError(
            f"train.word_vectors: {words_path}: has no column of texts, but {', '.join(table.column_names)[:200]}; "
            "expected the words"
        )
    words = texts.get("word", next(iter(texts.values())))
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(words) != len(vectors):
        raise InputError(
            f"train.word_vectors: {path}: is {vectors.dtype} {list(vectors.shape)}; expected numbers, a row for each "
            f"of the {len(table)} words of {words_path.name}"
        )
    if vectors.shape[1] != dim:
        raise InputError(
            f"train.word_vectors: {source}: {vectors.shape[1]} numbers in a vector; expected model.word_dim, {dim}"
        )
    ids = {word: i for i, word in enumerate(vocabulary.words)}
    chosen: dict[int, Tensor] = {}
    for row, word in enumerate(words.to_pylist()):
        if (i := ids.get(word)) is not None and i not in chosen:
            with np.errstate(over="ignore"):  # what is too large is refused
                chosen[i] = torch.from_numpy(np.array(vectors[row], dtype=np.float32))
            if not chosen[i].isfinite().all():
                raise InputError(f"train.word_vectors: {path}: row {row}: holds a number that is not finite")
    return chosen


def _is_text(kind: Any) -> bool:
    """Whether a Parquet column's type is one of texts, in any of Arrow's forms."""
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _of_text(source: str, vocabulary: Vocabulary, dim: int) -> dict[int, Tensor]:
    """The vectors of a text file.

    A line is a word and its numbers, separated by blanks. word2vec's header line (count and dimension) may come first.
    If a word occurs twice, the first line is used. The first line of a word without blanks must have `dim` numbers.
    """
    path = named_path(source)
    ids = {word: i for i, word in enumerate(vocabulary.words)}
    vectors: dict[int, Tensor] = {}
    other: dict[str, int] = {}  # word of the vocabulary, line that begins with it and is not in this form
    stated, held, checked = 0, 0, False  # words that a header says, lines of words, whether `dim` is theirs
    try:
        # Lines end only at newlines: a carriage return may be a word.
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdecimal() and len(field) < 20 for field in fields):
                    _check_dimension(path, number, int(fields[1]), dim)
                    stated = int(fields[0])
                    continue
                held += not line.isspace()
                if not checked and _numbers(fields[1:]):
                    _check_dimension(path, number, len(fields) - 1, dim)
                    checked = True
                word = " ".join(fields[:-dim])  # some files have words with blanks
                if (i := ids.get(word)) is not None and i not in vectors:
                    vectors[i] = _vector(path, number, fields[-dim:])
                elif (begin := line.split(maxsplit=1)[:1]) and begin[0] in ids and _numbers(line.split()[1:-dim]):
                    other.setdefault(begin[0], number)
    except OSError as error:
        raise InputError(f"train.word_vectors: {path}: cannot be read ({error.strerror})") from None
    if held < stated:
        print(f"train.word_vectors: {path}: the header says {stated:,} words, the file has {held:,}; it may be cut off")
    if lost := {word: number for word, number in other.items() if ids[word] not in vectors}:
        word, number = next(iter(lost.items()))
        print(
            f"train.word_vectors: {path}: {len(lost)} words of the vocabulary, such as {shown(word)} in line {number}, "
            f"do not have exactly {dim} numbers there; their vectors start random"
        )
    return vectors


def _check_dimension(path: Path, line: int, numbers: int, expected: int) -> None:
    if numbers != expected:
        raise InputError(
            f"train.word_vectors: {path}: line {line}: {numbers} numbers; expected model.word_dim, {expected}"
        )


def _numbers(fields: list[str]) -> bool:
    """Whether all of these are numbers (True if empty), and not the rest of a word with blanks."""
    try:
        return bool(np.array(fields, dtype=np.float32).ndim)
    except ValueError:
        return False


def _vector(path: Path, line: int, fields: list[str]) -> Tensor:
    try:
        values = np.array(fields, dtype=np.float32)
    except ValueError:
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        raise InputError(f"train.word_vectors: {path}: line {line}: is not a word and {len(fields)} numbers")
    return torch.from_numpy(values)
