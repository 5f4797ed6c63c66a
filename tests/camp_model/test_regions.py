"""The region store gives back what was written and refuses what is torn or of another store."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from camp_model.regions import (
    ImageRegions,
    RegionStore,
    StoreInfo,
    read_header,
    read_shard,
    write_manifest,
    write_rejected,
    write_shard,
)

INFO = StoreInfo(region_dim=8, max_regions=4, detector="abc", categories=["cat", "dog"], attributes=["red"])


def regions(count: int, seed: int = 0, dim: int = 8) -> ImageRegions:
    rng = np.random.default_rng(seed)
    return ImageRegions(
        features=rng.normal(size=(count, dim)).astype(np.float32),
        boxes=rng.uniform(0, 99, (count, 4)).astype(np.float32),
        scores=rng.uniform(size=count).astype(np.float32),
        classes=rng.integers(0, 2, count).astype(np.int32),
        attributes=np.zeros(count, dtype=np.int32),
        attribute_scores=rng.uniform(size=count).astype(np.float32),
        width=100 + seed,
        height=50,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images in two shards, the manifest in another order than the shards."""
    write_shard(tmp_path / "x.arrow", INFO, "x", [("a", regions(2, 1)), ("b", regions(4, 2))], [("broken", "why")])
    write_shard(tmp_path / "y.arrow", INFO, "y", [("c", regions(1, 3)), ("d", regions(3, 4)), ("e", regions(4, 5))])
    rows = [("c", "y.arrow", 0, 1), ("d", "y.arrow", 1, 3), ("a", "x.arrow", 0, 2), ("b", "x.arrow", 1, 4)]
    write_manifest(tmp_path, INFO, [*rows, ("e", "y.arrow", 2, 4)])
    write_rejected(tmp_path, INFO, [("broken", "broken.jpg", "why")])
    return tmp_path


def test_features_and_masks_of_any_rows_in_any_order(folder: Path) -> None:
    store = RegionStore(folder)
    assert (len(store), store.region_dim, store.max_regions, store.detector) == (5, 8, 4, "abc")
    assert store.image_ids == ["c", "d", "a", "b", "e"]
    features, mask = store.features([3, 0, 3])
    assert features.shape == (3, 4, 8) and features.dtype == np.float16
    np.testing.assert_array_equal(features[0], regions(4, 2).features.astype(np.float16))
    np.testing.assert_array_equal(features[2], features[0])
    np.testing.assert_array_equal(features[1, :1], regions(1, 3).features.astype(np.float16))
    assert mask.tolist() == [[True] * 4, [True, False, False, False], [True] * 4]
    assert not features[1, 1:].any(), "rows beyond the real regions are zeros"


def test_one_image_has_only_its_real_regions(folder: Path) -> None:
    store = RegionStore(folder)
    row = store.row_of("a")
    expected = regions(2, 1)
    np.testing.assert_array_equal(store.boxes(row), expected.boxes)
    np.testing.assert_array_equal(store.scores(row), expected.scores)
    np.testing.assert_array_equal(store.classes(row), expected.classes)
    np.testing.assert_array_equal(store.attributes(row), expected.attributes)
    np.testing.assert_array_equal(store.attribute_scores(row), expected.attribute_scores)
    assert store.size(row) == (101, 50)
    assert (store.categories, store.attribute_names) == (["cat", "dog"], ["red"])
    with pytest.raises(ValueError, match="holds no image 'z'"):
        store.row_of("z")


def test_features_lie_in_the_file_and_are_not_read_at_opening(folder: Path) -> None:
    before = pa.total_allocated_bytes()
    store = RegionStore(folder)
    view = store._shard(0).columns["features"]
    assert not view.flags.owndata and not view.flags.writeable
    assert pa.total_allocated_bytes() - before < 10_000


def test_a_mapped_store_is_read_on_when_its_files_have_gone(folder: Path) -> None:
    store = RegionStore(folder)
    before, _ = store.features(range(5))
    mapped = RegionStore(folder)
    mapped.map_all()
    for shard in folder.glob("*.arrow"):
        shard.unlink()
    np.testing.assert_array_equal(mapped.features(range(5))[0], before)
    assert mapped.mapped_rows([0, 1]) != store.mapped_rows([0, 1]), "another mapping may be of another file"
    with pytest.raises(ValueError, match=r"arrow"):
        RegionStore(folder).map_all()


def test_pages_of_a_store_are_given_back_and_read_again(tmp_path: Path) -> None:
    def mapped_bytes() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssFile"))

    info, size = StoreInfo(region_dim=2048, max_regions=36, detector="abc"), 64 * 36 * 2048 * 2
    write_shard(tmp_path / "x.arrow", info, "x", [(str(i), regions(36, i, 2048)) for i in range(64)])
    write_manifest(tmp_path, info, [(str(i), "x.arrow", i, 36) for i in range(64)])
    store = RegionStore(tmp_path, check=False)
    store.map_all()
    begun = mapped_bytes()
    before, _ = store.features(range(64))
    assert mapped_bytes() - begun > 0.9 * size
    store.release()
    assert mapped_bytes() - begun < 0.1 * size
    np.testing.assert_array_equal(store.features(range(64))[0], before)


def test_a_worker_opens_the_store_itself(folder: Path) -> None:
    store = RegionStore(folder)
    store.features([0])
    data = pickle.dumps(store)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).features([1])[0], store.features([1])[0])


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shard(tmp_path / f"{name}.arrow", INFO, "key", [("a", regions(2))], [("b", "why")])
    assert (tmp_path / "one.arrow").read_bytes() == (tmp_path / "two.arrow").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.arrow", "two.arrow"], "no temporaries stay"


def test_overhead_is_at_most_one_percent_at_published_sizes(tmp_path: Path) -> None:
    info = StoreInfo(region_dim=2048, max_regions=36, detector="abc")
    images = [(f"{i:012d}", regions(36, i, 2048)) for i in range(64)]
    write_shard(tmp_path / "x.arrow", info, "x" * 40, images)
    raw = 64 * 36 * 2048 * 2
    assert (tmp_path / "x.arrow").stat().st_size <= 1.01 * raw


def test_an_image_takes_the_room_of_its_own_regions(tmp_path: Path) -> None:
    info = StoreInfo(region_dim=2048, max_regions=100, detector="abc")
    counts = [10 + i % 3 for i in range(64)]
    write_shard(tmp_path / "x.arrow", info, "x", [(str(i), regions(k, i, 2048)) for i, k in enumerate(counts)])
    assert (tmp_path / "x.arrow").stat().st_size <= 1.02 * sum(counts) * 2048 * 2


def write_padded_shard(path: Path, key: str, images: list[tuple[str, ImageRegions]]) -> None:
    """A shard of version 1, which padded every image to `max_regions`."""

    def column(name: str, width: int, kind: pa.DataType, fill: int = 0) -> pa.Array:
        values = np.full((len(images), INFO.max_regions, width), fill, dtype=kind.to_pandas_dtype())
        for i, (_, item) in enumerate(images):
            values[i, : len(item.features)] = getattr(item, name).reshape(-1, width)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), INFO.max_regions * width)

    columns = {
        "image_id": pa.array([image_id for image_id, _ in images]),
        "num_regions": pa.array([len(item.features) for _, item in images], pa.int32()),
        "features": column("features", INFO.region_dim, pa.float16()),
        "boxes": column("boxes", 4, pa.float32()),
        "scores": column("scores", 1, pa.float32()),
        "classes": column("classes", 1, pa.int32(), -1),
        "attributes": column("attributes", 1, pa.int32(), -1),
        "attribute_scores": column("attribute_scores", 1, pa.float32()),
        "width": pa.array([item.width for _, item in images], pa.int32()),
        "height": pa.array([item.height for _, item in images], pa.int32()),
    }
    said = {"camp.format": "regions", "camp.version": "1", "camp.info": json.dumps(asdict(INFO), sort_keys=True)}
    said |= {"camp.key": json.dumps(key), "camp.rejected": json.dumps([["broken", "why"]])}
    batch = pa.record_batch(columns, metadata=said)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def test_padded_shards_of_before_are_still_read_beside_new_ones(folder: Path) -> None:
    new = RegionStore(folder)
    expected = [new.features(range(5)), *([read(row) for row in range(5)] for read in (new.boxes, new.classes))]
    before = read_header(folder / "x.arrow")
    (folder / "x.arrow").unlink()  # the arrays above lie in it
    write_padded_shard(folder / "x.arrow", "x", [("a", regions(2, 1)), ("b", regions(4, 2))])
    old = RegionStore(folder)
    for was, now in zip(expected[0], old.features(range(5)), strict=True):
        np.testing.assert_array_equal(was, now)
    for row in range(5):
        np.testing.assert_array_equal(old.boxes(row), expected[1][row])
        np.testing.assert_array_equal(old.classes(row), expected[2][row])
        assert old.size(row) == new.size(row)
    assert read_header(folder / "x.arrow") == before
    assert not old._shard(old._shard_names.index("x.arrow")).columns["features"].flags.owndata
    np.testing.assert_array_equal(read_shard(folder / "x.arrow")["b"].scores, regions(4, 2).scores)


def test_a_shard_gives_its_images_back(folder: Path) -> None:
    images = read_shard(folder / "y.arrow")
    assert list(images) == ["c", "d", "e"]
    expected = regions(3, 4)
    for name, values in vars(images["d"]).items():
        wanted = getattr(expected, name)
        np.testing.assert_array_equal(values, wanted.astype(np.float16) if name == "features" else wanted)


def test_a_version_from_the_future_is_refused(folder: Path) -> None:
    batch = pa.ipc.open_file(str(folder / "x.arrow")).get_batch(0)
    batch = batch.replace_schema_metadata({**batch.schema.metadata, b"camp.version": b"3"})
    with pa.OSFile(str(folder / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(ValueError, match=r"version '3'; expected 'regions' version 1 or 2"):
        read_header(folder / "x.arrow")


def test_header_tells_who_is_in_a_shard(folder: Path) -> None:
    header = read_header(folder / "x.arrow")
    assert (header.key, header.image_ids, header.num_regions) == ("x", ["a", "b"], [2, 4])
    assert header.rejected == [("broken", "why")]
    assert header.info == INFO


def test_a_shard_of_rejected_images_alone_is_whole(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.arrow", INFO, "x", [], [("a", "why")])
    assert read_header(tmp_path / "x.arrow").rejected == [("a", "why")]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_torn_shard_is_never_read(folder: Path, keep: float) -> None:
    path = folder / "x.arrow"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"x\.arrow: is not a complete Arrow file"):
        read_header(path)
    store = RegionStore(folder)
    with pytest.raises(ValueError, match=r"x\.arrow"):
        store.features([store.row_of("a")])


def test_a_shard_of_another_store_is_refused(folder: Path) -> None:
    other = StoreInfo(region_dim=8, max_regions=4, detector="another")
    write_shard(folder / "x.arrow", other, "x", [("a", regions(2)), ("b", regions(4))])
    store = RegionStore(folder)
    with pytest.raises(ValueError, match="of another store"):
        store.boxes(store.row_of("a"))


def test_a_store_without_manifest_or_of_another_version_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected a store of regions"):
        RegionStore(folder / "nowhere")
    (folder / "manifest.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"manifest\.parquet: cannot be read"):
        RegionStore(folder)
    (folder / "manifest.parquet").write_bytes((folder / "rejected.parquet").read_bytes())
    with pytest.raises(ValueError, match="is of format 'regions_rejected'"):
        RegionStore(folder)


def test_what_a_store_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    too_many, too_wide, infinite, too_large = regions(5), regions(2, dim=9), regions(2), regions(2)
    infinite.features[1, 3] = np.nan
    too_large.features[0, 0] = 1e6  # finite in float32, not in float16
    too_small, no_box, short = regions(2), regions(2), regions(2)
    too_small.features *= 1e-9
    no_box.boxes[1, 2] = np.inf
    short.scores = short.scores[:1]
    for item, message in (
        (too_many, r"b: features of shape \(5, 8\)"),
        (too_wide, r"b: features of shape \(2, 9\)"),
        (infinite, "b: a feature is not finite"),
        (too_large, "b: a feature is not finite in float16"),
        (too_small, "b: every feature is 0 in regions.dtype: float16: the largest is .*e-0?9"),
        (no_box, "b: a box or a score is not finite"),
        (short, "scores: 2 rows for 3 regions"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shard(tmp_path / "x.arrow", INFO, "x", [("a", regions(1)), ("b", item)])
    assert not list(tmp_path.iterdir())
