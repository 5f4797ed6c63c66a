"""Word vectors from a text file, as GloVe and word2vec publish them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camp_model.vocabulary import Vocabulary
from stages.errors import InputError


def load_word_vectors(path: Path, vocabulary: Vocabulary, dim: int) -> dict[int, Tensor]:
    """The vectors of the words that both the file and the vocabulary hold, by word id.

    A line is a word and its numbers, separated by blanks; word2vec's header line (count and dimension) may come
    first. The first of two lines with the same word counts.

    Raises:
        InputError: the file cannot be read, has another dimension than `dim`, or a line that is no vector.
    """
    ids = {word: i for i, word in enumerate(vocabulary.words)}
    found: dict[int, Tensor] = {}
    first = 1  # line of the first vector
    try:
        # Lines end at newlines alone: a carriage return may be a word.
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                    _check_dimension(path, number, int(fields[1]), dim)
                    first = 2
                    continue
                if number == first:
                    _check_dimension(path, number, len(fields) - 1, dim)
                word = " ".join(fields[:-dim])  # some files hold words with blanks in them
                if (i := ids.get(word)) is not None and i not in found:
                    found[i] = _vector(path, number, fields[-dim:])
    except OSError as error:
        raise InputError(f"train.word_vectors: {path}: cannot be read ({error.strerror})") from None
    if not found:
        raise InputError(f"train.word_vectors: {path}: holds no word of the vocabulary")
    return found


def _check_dimension(path: Path, line: int, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(
            f"train.word_vectors: {path}: line {line}: {found} numbers; expected model.word_dim, {expected}"
        )


def _vector(path: Path, line: int, fields: list[str]) -> Tensor:
    try:
        values = np.array(fields, dtype=np.float32)
    except ValueError:
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        raise InputError(f"train.word_vectors: {path}: line {line}: is not a word and {len(fields)} numbers")
    return torch.from_numpy(values)
