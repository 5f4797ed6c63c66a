"""The embedded engine, faiss: exact up to EXACT vectors, with inverted lists beyond."""

import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from camp_model.retrieval import import_faiss, load_index, save_index
from stages.contracts import input_errors
from stages.errors import InputError
from stages.indexing.engines import Ids, Vectors, search_whole_ties

EXACT = 200_000
"""Number of vectors up to which a query is compared with all."""
PROBED = 64
"""Lists of an inverted index that a query searches."""


class FaissEngine:
    """An index in this process's memory; safe for any number of threads.

    Args:
        dim: d, the width of a vector.
        size: expected number of vectors; beyond EXACT, the first vectors added train the clusters of the index.
    """

    def __init__(self, dim: int, size: int = 0) -> None:
        faiss = import_faiss()
        if size <= EXACT:
            index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        else:
            lists = 2 ** round(np.log2(4 * size**0.5))
            index = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
            index.nprobe = PROBED
            # 64 vectors per list and ten rounds suffice; training on all vectors would take longer than all the rest.
            index.cp.max_points_per_centroid, index.cp.niter = 64, 10
        self._index = index
        self._lock = threading.RLock()

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine.add`."""
        if not len(ids):
            return
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        import_faiss()
        with self._lock:
            if not self._index.is_trained:
                self._index.train(vectors)
            elif self.count():
                self.remove(ids)
            self._index.add_with_ids(vectors, np.ascontiguousarray(ids, dtype=np.int64))

    def remove(self, ids: Ids) -> None:
        """As `Engine.remove`."""
        with self._lock:
            self._index.remove_ids(np.ascontiguousarray(ids, dtype=np.int64))

    def search(self, queries: Vectors, count: int) -> tuple[Ids, Vectors]:
        """As `Engine.search`."""
        import_faiss()
        queries = np.ascontiguousarray(queries, dtype=np.float32)

        def found(depth: int) -> tuple[Ids, Vectors]:
            scores, ids = self._index.search(queries, depth)
            return ids, scores

        with self._lock:
            if not min(count, self.count()):
                return np.full((len(queries), count), -1, np.int64), np.full((len(queries), count), -np.inf, np.float32)
            return search_whole_ties(found, count, self.count())

    def count(self) -> int:
        """As `Engine.count`."""
        return int(self._index.ntotal)

    def save(self, path: Path) -> None:
        """Write the index; equal vectors give equal bytes."""
        save_index(self._index, path)

    @classmethod
    def load(cls, path: Path, dim: int) -> Self:
        """Read an index.

        Raises:
            InputError: the file is missing, damaged, not an index, or of another width.
        """
        with input_errors():
            index = load_index(path)
        if index.d != dim:
            raise InputError(f"{path}: its vectors are {index.d} wide; the model's are {dim}")
        engine = cls(dim)
        engine._index = index
        return engine
