"""Every engine gives the same answers to the same calls: faiss, and Milvus through Milvus Lite."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.errors import InputError
from stages.indexing.engines import Engine, vector_ids
from stages.indexing.faiss_engine import FaissEngine
from stages.indexing.milvus_engine import MilvusEngine
from stages.indexing.opening import update_collection
from stages.params.index import IndexParams

DIM, COUNT = 16, 300
Make = Callable[[], Engine]


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


NAMES = [f"picture {i}" for i in range(COUNT)]
IDS, VECTORS, QUERIES = vector_ids(NAMES), unit(COUNT), unit(7, seed=1)


def expected(ids: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
    """What comparing all says."""
    return ids[np.argsort(-(QUERIES @ vectors.T), axis=1)[:, :count]]


@pytest.fixture(params=["faiss", "milvus"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    engines: list[Engine] = []

    def milvus() -> Engine:
        engines.append(MilvusEngine(str(tmp_path / "vectors.db"), "camp_test", DIM))
        return engines[-1]

    if request.param == "milvus" and not all(map(importlib.util.find_spec, ("pymilvus", "milvus_lite"))):
        pytest.skip("pymilvus and milvus-lite are not installed: pip install -e '.[milvus]'")
    yield milvus if request.param == "milvus" else lambda: FaissEngine(DIM)
    for engine in engines:
        engine.close()


def test_the_nearest_are_found(make: Make) -> None:
    engine = make()
    assert engine.count() == 0
    engine.add(IDS[:200], VECTORS[:200])
    engine.add(IDS[200:], VECTORS[200:])
    assert engine.count() == COUNT
    ids, cosines = engine.search(QUERIES, 10)
    assert ids.tolist() == expected(IDS, VECTORS, 10).tolist()
    assert cosines == pytest.approx(-np.sort(-(QUERIES @ VECTORS.T), axis=1)[:, :10], abs=1e-5)


def test_what_is_removed_is_not_found(make: Make) -> None:
    engine = make()
    engine.add(IDS, VECTORS)
    engine.remove(np.concatenate([IDS[::2], vector_ids(["never there"])]))
    assert engine.count() == COUNT // 2
    assert engine.search(QUERIES, 10)[0].tolist() == expected(IDS[1::2], VECTORS[1::2], 10).tolist()


def test_a_vector_of_a_known_id_takes_the_place_of_the_other(make: Make) -> None:
    engine = make()
    engine.add(IDS, VECTORS)
    engine.add(IDS[:1], QUERIES[:1])
    assert engine.count() == COUNT
    ids, cosines = engine.search(QUERIES[:1], 1)
    assert (ids[0, 0], cosines[0, 0]) == (IDS[0], pytest.approx(1.0))


def test_where_there_are_fewer_the_rest_is_empty(make: Make) -> None:
    engine = make()
    engine.add(IDS[:3], VECTORS[:3])
    ids, cosines = engine.search(QUERIES, 5)
    assert ids.shape == cosines.shape == (len(QUERIES), 5)
    assert (ids[:, 3:] == -1).all() and np.isneginf(cosines[:, 3:]).all()
    assert sorted(ids[0, :3].tolist()) == sorted(IDS[:3].tolist())


def test_equal_vectors_are_ordered_by_id(make: Make) -> None:
    engine = make()
    engine.add(IDS[:5], np.repeat(VECTORS[:1], 5, axis=0))
    assert engine.search(VECTORS[:1], 5)[0][0].tolist() == sorted(IDS[:5].tolist())


def test_which_of_equal_vectors_are_found_does_not_depend_on_how_many_are_wanted_or_came_first(make: Make) -> None:
    engine = make()
    equal = np.concatenate([VECTORS[:1], np.repeat(VECTORS[1:2], 20, axis=0), VECTORS[2:3]])
    engine.add(IDS[:22], equal)
    first = [IDS[0], *sorted(IDS[1:21].tolist()), IDS[21]]
    for order in (slice(None), slice(None, None, -1)):
        engine.add(IDS[:22][order], equal[order])
        for count in (0, 1, 2, 8, 15, 20, 21):
            assert engine.search(2 * VECTORS[:1] + VECTORS[1:2], count)[0][0].tolist() == first[:count]


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_is_brought_up_to_date(make: Make, tmp_path: Path, killed: bool) -> None:
    engine, record = make(), tmp_path / "record.parquet"
    update_collection(engine, VECTORS[:200], dict.fromkeys(NAMES[:200], "a"), record)
    assert engine.search(QUERIES, 10)[0].tolist() == expected(IDS[:200], VECTORS[:200], 10).tolist()
    if killed:  # in the middle of the next call
        with pytest.raises(KeyboardInterrupt):
            update_collection(_Dying(engine), VECTORS[100:], dict.fromkeys(NAMES[100:], "a"), record)
    shards = {name: "a" if i < 50 else "b" for i, name in enumerate(NAMES[100:])}
    changed = np.concatenate([VECTORS[100:150], unit(150, seed=2)])
    update_collection(engine, changed, shards, record)
    assert engine.count() == 200
    assert engine.search(QUERIES, 10)[0].tolist() == expected(IDS[100:], changed, 10).tolist()


class _Dying:
    """An engine whose process ends when the second thing is asked of it that changes something."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.calls = engine, 0

    def __getattr__(self, name: str) -> object:
        self.calls += name in ("add", "remove")
        if self.calls > 1:
            raise KeyboardInterrupt
        return getattr(self.engine, name)


def test_only_what_changed_is_sent(tmp_path: Path) -> None:
    engine, record = FaissEngine(DIM), tmp_path / "record.parquet"
    update_collection(engine, VECTORS, dict.fromkeys(NAMES, "a"), record)
    sent: list[int] = []
    engine.add = lambda ids, vectors: sent.extend(ids.tolist())  # type: ignore[method-assign]
    update_collection(engine, VECTORS, dict.fromkeys(NAMES, "a") | {NAMES[7]: "b"}, record)
    assert sent == [IDS[7]]


def test_a_faiss_index_is_the_same_bytes_and_reads_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        engine = FaissEngine(DIM)
        engine.add(IDS, VECTORS)
        engine.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = FaissEngine.load(tmp_path / "a", DIM)
    assert again.search(QUERIES, 10)[0].tolist() == expected(IDS, VECTORS, 10).tolist()
    again.remove(IDS[:1])
    assert again.count() == COUNT - 1
    with pytest.raises(InputError, match=r"a: its vectors are 16 wide; the model's are 17"):
        FaissEngine.load(tmp_path / "a", DIM + 1)
    (tmp_path / "a").write_bytes(b"no index")
    with pytest.raises(InputError, match=r"a: cannot be read as an index"):
        FaissEngine.load(tmp_path / "a", DIM)


def test_beyond_exact_search_an_inverted_index_finds_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stages.indexing.faiss_engine.EXACT", 1000)
    vectors = unit(4000, seed=3)
    ids = np.arange(4000)
    engine = FaissEngine(DIM, 4000)
    engine.add(ids, vectors)
    engine.save(tmp_path / "index")
    engine = FaissEngine.load(tmp_path / "index", DIM)
    engine.remove(ids[:10])
    engine.add(ids[:10], vectors[:10])
    assert engine.count() == 4000
    hits = [
        len(set(a) & set(b)) for a, b in zip(engine.search(QUERIES, 10)[0], expected(ids, vectors, 10), strict=True)
    ]
    assert np.mean(hits) > 5


def test_a_server_that_does_not_answer_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install -e '.[milvus]'")
    monkeypatch.setattr("stages.indexing.milvus_engine.TIMEOUT", 1.0)
    with pytest.raises(InputError, match=r"index.engine: 'http://127.0.0.1:9': the request failed"):
        MilvusEngine("http://127.0.0.1:9", "camp_test", DIM)


@pytest.mark.parametrize(("address", "token"), [("http://127.0.0.1:9", "im78"), ("vectors.db", "")])
def test_a_servers_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, address: str, token: str) -> None:
    asked: list[str] = []

    def refuse(address: str, token: str, timeout: float) -> None:
        asked.append(token)
        raise OSError(f"http://root:im78@{address}")

    monkeypatch.setitem(sys.modules, "pymilvus", SimpleNamespace(DataType=None, MilvusClient=refuse))
    monkeypatch.setitem(sys.modules, "pymilvus.exceptions", SimpleNamespace(MilvusException=OSError))
    monkeypatch.setenv("MILVUS_TOKEN", "im78")
    with pytest.raises(InputError, match="the request failed") as caught:
        MilvusEngine(address, "camp_test", DIM)
    assert asked == [token] and "im78" not in str(caught.value)


def test_a_collection_of_another_width_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install -e '.[milvus]'")
    MilvusEngine(str(tmp_path / "vectors.db"), "camp_test", DIM).close()
    with pytest.raises(InputError, match="its vectors are 16 wide; expected 8"):
        MilvusEngine(str(tmp_path / "vectors.db"), "camp_test", 8)


@pytest.mark.parametrize("engine", ["faiss", "http://host:19530", "https://cloud.example", ".work/vectors.db"])
def test_engines_that_params_may_name(engine: str) -> None:
    assert IndexParams.from_dict({"engine": engine}).engine == engine


@pytest.mark.parametrize("engine", ["milvus", "annoy", "", "host:19530", "http://", 7])
def test_other_engines_are_an_error_that_names_the_key(engine: object) -> None:
    with pytest.raises(InputError, match="engine"):
        IndexParams.from_dict({"engine": engine})


def test_on_macos_faiss_starts_no_threads_beside_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "")
    engine = FaissEngine(DIM)

    def threads(work: Callable[[], object]) -> int:
        with ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(2,)) as pool:
            return int(pool.submit(lambda: (work(), faiss.omp_get_max_threads())).result()[1])

    for platform, count in (("linux", 2), ("darwin", 1)):
        monkeypatch.setattr(sys, "platform", platform)
        assert threads(lambda: engine.add(IDS, VECTORS)) == threads(lambda: engine.search(QUERIES, 3)) == count
