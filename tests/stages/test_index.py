"""The stage index: what it writes, what it does not do twice, and what it says of inputs that do not fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from camp_model.checkpoint import load_checkpoint
from camp_model.joint import pooled_vectors
from camp_model.regions import RegionStore, read_shard, write_manifest, write_shard
from camp_model.vocabulary import Vocabulary
from stages import index as stage
from stages.errors import InputError
from stages.indexing import vectors as vectors_module
from stages.indexing.engines import vector_ids
from stages.indexing.opening import IndexFacts, open_index
from stages.params.index import IndexParams
from tests.stages.conftest import SmallRun


def build(run: SmallRun, engine: str = "faiss", work: str = ".work/vectors") -> Path:
    out = run.root / "data/index"
    stage.index(IndexParams(engine=engine), regions=run.regions, model=run.model, out=out, work=run.root / work)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def vectors_of(run: SmallRun) -> np.ndarray:
    """The means of the encoded regions, as the contrastive term takes them."""
    import torch

    store, (model, _, _) = RegionStore(run.regions), load_checkpoint(run.model)
    features, mask = store.features(range(len(store)))
    with torch.inference_mode():
        region_mask = torch.from_numpy(mask)
        return pooled_vectors(
            model.encode_regions(torch.from_numpy(features).float(), region_mask), region_mask
        ).numpy()


def test_the_index_holds_the_vector_of_each_picture(small: SmallRun) -> None:
    out = build(small)
    store = RegionStore(small.regions)
    engine = open_index(out, IndexFacts.load(out))
    vectors = vectors_of(small)
    ids, cosines = engine.search(vectors, 1)
    assert ids[:, 0].tolist() == vector_ids(store.image_ids).tolist()
    assert cosines[:, 0] == pytest.approx(1.0, abs=1e-5)


def test_the_same_input_gives_the_same_bytes(small: SmallRun) -> None:
    first = files(build(small))
    assert files(build(small)) == first
    assert files(build(small, work="elsewhere")) == first
    assert set(first) == {"index.faiss", "index.json"}


def test_shards_that_are_known_are_not_encoded_again(small: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    build(small)
    encoded: list[int] = []
    real = vectors_module.picture_vectors
    monkeypatch.setattr(
        vectors_module, "picture_vectors", lambda model, store, rows: encoded.extend(rows) or real(model, store, rows)
    )
    build(small)
    assert encoded == []
    store = RegionStore(small.regions)
    images = [(f"new {name}", regions) for name, regions in list(read_shard(small.regions / "a.arrow").items())[:3]]
    write_shard(small.regions / "c.arrow", store.info, "c.arrow", images)
    before = [("a.arrow", 10), ("b.arrow", 10), ("c.arrow", 3)]
    names = [*store.image_ids, *(name for name, _ in images)]
    places = [(shard, row) for shard, count in before for row in range(count)]
    counts = [*store.num_regions.tolist(), *(len(regions.features) for _, regions in images)]
    rows = [(name, *place, count) for name, place, count in zip(names, places, counts, strict=True)]
    write_manifest(small.regions, store.info, rows)
    out = build(small)
    assert encoded == [20, 21, 22]
    whole = files(out)
    assert files(build(small, work="elsewhere")) == whole


def test_torn_vectors_are_made_again(small: SmallRun) -> None:
    first = files(build(small))
    for path in (small.root / ".work/vectors").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert files(build(small)) == first


def test_another_model_makes_other_vectors(small: SmallRun, make_checkpoint: Callable[..., None]) -> None:
    first = files(build(small))
    make_checkpoint(small.model, Vocabulary.load(small.token_tables / "vocabulary.json"), seed=5)
    second = files(build(small))
    assert second["index.faiss"] != first["index.faiss"] and second["index.json"] != first["index.json"]


def test_milvus_gives_the_answers_of_faiss(small: SmallRun) -> None:
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install -e '.[milvus]'")
    vectors = vectors_of(small)
    answers = []
    for engine in ("faiss", str(small.root / "vectors.db")):
        out = build(small, engine)
        opened = open_index(out, IndexFacts.load(out))
        answers.append(opened.search(vectors, 7))
    assert files(out).keys() == {"index.json"}
    assert answers[0][0].tolist() == answers[1][0].tolist()
    assert answers[0][1] == pytest.approx(answers[1][1], abs=1e-5)


def test_each_server_is_brought_up_to_date_with_what_it_holds_itself(small: SmallRun) -> None:
    """Though another got the same number of pictures since."""
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install -e '.[milvus]'")
    store, vectors = RegionStore(small.regions), vectors_of(small)
    places = [(shard, row) for shard in ("a.arrow", "b.arrow") for row in range(10)]
    of_all = zip(store.image_ids, places, store.num_regions.tolist(), strict=True)
    rows = [(name, *place, count) for name, place, count in of_all]
    first, second = (str(small.root / name) for name in ("first.db", "second.db"))
    for engine, some in ((first, rows[:-1]), (second, rows[1:]), (first, rows[1:])):
        write_manifest(small.regions, store.info, some)
        out = build(small, engine)
    ids, _ = open_index(out, IndexFacts.load(out)).search(vectors[[0, -1]], 1)
    gone, added = vector_ids([store.image_ids[0], store.image_ids[-1]])
    assert ids[0, 0] != gone and ids[1, 0] == added


def test_a_store_of_another_width_is_an_error(small: SmallRun, make_checkpoint: Callable[..., None]) -> None:
    make_checkpoint(small.model, Vocabulary.load(small.token_tables / "vocabulary.json"), dim=12, region_dim=9)
    with pytest.raises(InputError, match=r"config\.json: region_dim: 9, but the features of .* have 8"):
        build(small)
    assert not (small.root / "data/index").exists()


@pytest.mark.parametrize("damage", ['{"format": "camp.index"}', "no json", "[]"])
def test_a_damaged_description_is_an_error_that_names_it(small: SmallRun, damage: str) -> None:
    out = build(small)
    (out / "index.json").write_text(damage)
    with pytest.raises(InputError, match=r"index\.json"):
        IndexFacts.load(out)


def test_an_index_without_its_vectors_is_an_error(small: SmallRun) -> None:
    out = build(small)
    (out / "index.faiss").unlink()
    with pytest.raises(InputError, match=r"index\.faiss: cannot be read"):
        open_index(out, IndexFacts.load(out))


def test_a_changed_byte_in_the_index_is_an_error_and_in_remembered_vectors_makes_them_anew(small: SmallRun) -> None:
    out = build(small)
    first = files(out)
    for folder, damaged in ((out, out / "index.faiss"), (out, out / "index.json")):
        content = bytearray(damaged.read_bytes())
        place = content.index(b'"count": ') + 9 if damaged.suffix == ".json" else len(content) // 2
        content[place] ^= 1
        damaged.write_bytes(content)
        with pytest.raises(InputError, match=f"{damaged.name}: is damaged"):
            open_index(folder, IndexFacts.load(folder))
        build(small)
    remembered = sorted(small.root.rglob("*.npy"))
    content = bytearray(remembered[0].read_bytes())
    content[len(content) // 2] ^= 1
    remembered[0].write_bytes(content)
    assert files(build(small)) == first
