"""Opens the engine that a param names, and brings its content up to date."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from camp_model.files import write_table
from stages.contracts import read_object, read_table
from stages.errors import InputError
from stages.indexing.engines import Engine, Ids, Vectors, vector_ids
from stages.indexing.faiss_engine import FaissEngine

FAISS = "faiss"
BATCH = 8192
"""Vectors sent to an engine at a time."""


@dataclass(frozen=True)
class IndexFacts:
    """data/index/index.json: what is indexed, and in which engine."""

    engine: str
    """The value of index.engine."""
    collection: str
    """Name of the collection on a server."""
    dim: int
    """Width of a vector."""
    count: int
    """Number of pictures."""
    weights: str
    """sha256 of the model's weights."""
    regions: str
    """sha256 of data/regions/manifest.parquet."""

    def to_dict(self) -> dict[str, Any]:
        """The content of index.json."""
        return {"format": "camp.index", "version": "1", **dataclasses.asdict(self)}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read index.json.

        Raises:
            InputError: it is missing, not JSON, or of another form.
        """
        path = folder / "index.json"
        values = read_object(path, "what the stage index writes")
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        if (values.pop("format", None), values.pop("version", None)) != ("camp.index", "1"):
            raise InputError(f"{path}: format, version: expected camp.index, 1")
        wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), str if kind is str else int)]
        if wrong or set(values) != set(kinds):
            raise InputError(
                f"{path}: {(wrong or sorted(set(values) ^ set(kinds)))[0]:.80}: expected {', '.join(kinds)}"
            )
        return cls(**values)


def collection_name(weights: str, detector: str) -> str:
    """The name of a server's collection for one model and one detector."""
    return f"camp_{hashlib.sha256(f'{weights} {detector}'.encode()).hexdigest()[:24]}"


def record_name(address: str, collection: str) -> str:
    """The name of the file that records what the collection on one server, or in one file of Milvus Lite, holds."""
    place = str(Path(address).resolve()) if address.endswith(".db") else address
    return hashlib.sha256(f"{place} {collection}".encode()).hexdigest()[:40] + ".parquet"


def open_index(folder: Path, facts: IndexFacts) -> Engine:
    """Open the engine of data/index, which has one vector per picture.

    Raises:
        InputError: index.faiss is missing or damaged, or the server does not answer or has other vectors.
    """
    if facts.engine == FAISS:
        engine: Engine = FaissEngine.load(folder / "index.faiss", facts.dim)
    else:
        engine = open_server(facts.engine, facts.collection, facts.dim)
    if engine.count() != facts.count:
        raise InputError(
            f"{folder}: the engine holds {engine.count()} vectors; expected {facts.count} (`dvc repro index` again)"
        )
    return engine


def open_server(address: str, collection: str, dim: int) -> Engine:
    """Open a collection of a Milvus server or a Milvus Lite file; it is created if missing.

    Raises:
        InputError: pymilvus is not installed, the server does not answer, or the collection has another width.
    """
    from stages.indexing.milvus_engine import MilvusEngine

    return MilvusEngine(address, collection, dim)


def build_faiss_engine(vectors: Vectors, names: Sequence[str]) -> FaissEngine:
    """Make a faiss index of pictures' vectors [n, d]."""
    engine = FaissEngine(vectors.shape[1], len(vectors))
    engine.add(vector_ids(names), vectors)
    return engine


def update_collection(engine: Engine, vectors: Vectors, shard_of: Mapping[str, str], record: Path) -> None:
    """Make a server's collection hold exactly these vectors; only changes are sent.

    Args:
        vectors: [n, d], in the order of `shard_of`.
        shard_of: picture id -> name of its shard, which determines its vector.
        record: a file that records what the collection held last time; it is rewritten.

    Raises:
        InputError: the collection has vectors that this function did not send.
    """
    before = _recorded(record)
    names, ids = list(shard_of), vector_ids(list(shard_of))
    # If this run is killed, the record has everything that it may have sent, which is then sent again.
    _write_record(record, dict.fromkeys([*before, *names], ""))
    known = engine.count() == len(before)
    new = np.array([i for i, name in enumerate(names) if not known or before.get(name) != shard_of[name]], np.int64)
    gone: Ids = vector_ids([name for name in before if name not in shard_of])
    for start in range(0, len(gone), BATCH):
        engine.remove(gone[start : start + BATCH])
    for start in range(0, len(new), BATCH):
        chosen = new[start : start + BATCH]
        engine.add(ids[chosen], vectors[chosen])
    if engine.count() != len(names):
        raise InputError(
            f"index.engine: the collection holds {engine.count()} vectors; expected {len(names)}. It holds others than "
            "this stage has put there: drop it, or name another server"
        )
    _write_record(record, shard_of)


def _write_record(record: Path, shard_of: Mapping[str, str]) -> None:
    columns = {"image_id": list(shard_of), "shard": list(shard_of.values())}
    write_table(record, pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))


def _recorded(record: Path) -> dict[str, str]:
    if not record.is_file():
        return {}
    try:
        table = read_table(record, {"image_id": pa.string(), "shard": pa.string()})
    except InputError:  # torn: everything is sent again
        return {}
    return dict(zip(table["image_id"].to_pylist(), table["shard"].to_pylist(), strict=True))
