"""The interface of vector search engines: four calls. The engines are existing libraries; none is implemented here.

Shapes: n vectors of width d, q queries, k results of each. Vectors have unit length, so inner products are cosines.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stages.errors import InputError

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


class Engine(Protocol):
    """Searches vectors by their inner product with a query."""

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors [n, d]; a vector with an existing id replaces the old one."""
        ...

    def remove(self, ids: Ids) -> None:
        """Remove the vectors with these ids; unknown ids are ignored."""
        ...

    def search(self, queries: Vectors, count: int) -> tuple[Ids, Vectors]:
        """Find the best vectors for each query [q, d]: ids and cosines [q, k], best first, ties by id.

        If there are fewer than `count`, the rest is -1 and -inf.
        """
        ...

    def count(self) -> int:
        """Number of vectors."""
        ...


def vector_ids(names: Sequence[str]) -> Ids:
    """The number of a picture in engines: 63 bits of a hash of its id, the same on every machine.

    Raises:
        InputError: two of the names have the same number (for a million names, once in 20 million times).
    """
    ids = np.array(
        [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1 for name in names], dtype=np.int64
    )
    if len(np.unique(ids)) < len(set(names)):
        raise InputError(f"{len(names)} picture ids: two of them have the same hash of 63 bits; rename one of them")
    return ids


def sort_results(ids: Any, scores: Any, count: int) -> tuple[Ids, Vectors]:
    """Results of one query as [count], best first, ties by id, padded with -1 and -inf."""
    ids, scores = np.asarray(ids, np.int64), np.asarray(scores, np.float32)
    real = ids >= 0
    ids, scores = ids[real], scores[real]
    order = np.lexsort((ids, -scores))[:count]
    out_ids, out_scores = np.full(count, -1, np.int64), np.full(count, -np.inf, np.float32)
    out_ids[: len(order)], out_scores[: len(order)] = ids[order], scores[order]
    return out_ids, out_scores


def search_whole_ties(found: Callable[[int], tuple[Ids, Vectors]], count: int, most: int) -> tuple[Ids, Vectors]:
    """Results of several queries as `Engine.search` promises them, where `count` cuts through equal scores, too.

    An engine by itself returns any of equal ones, so it is asked for more until its last result is worse.

    Args:
        found: number of results -> ids and scores [q, number], best first, the rest of them -1.
        most: largest number that the engine can be asked for.
    """
    wanted = max(1, min(count, most))
    depth = min(wanted + 1, most)
    while True:
        ids, scores = found(depth)
        if depth == most or ((ids[:, -1] < 0) | (scores[:, -1] < scores[:, wanted - 1])).all():
            break
        depth = min(2 * depth, most)
    rows = [sort_results(*row, count) for row in zip(ids, scores, strict=True)]
    return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])
