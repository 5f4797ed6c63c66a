"""Extraction: what is in the store, and what changes in it with other images and params."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.regions import RegionStore
from stages import extract_regions as stage
from stages.detectors.base import Description
from stages.detectors.boxes import GEOMETRY_SCALE
from stages.detectors.selection import select
from stages.device import Precision
from stages.errors import InputError
from stages.extraction.filling import extract_missing
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.train_detector import train_detector
from tests.stages.extraction.conftest import COUNT


def test_the_store_has_every_image_in_order_with_boxes_in_its_own_pixels(workplace) -> None:
    workplace.run()
    store = RegionStore(workplace.out)
    assert store.image_ids == [f"{i:03d}" for i in range(COUNT)]
    assert (store.region_dim, store.max_regions) == (256, 4)
    assert store.detector == Description.load(workplace.detector).fingerprint
    features, mask = store.features(range(COUNT))
    assert features.dtype == np.float16 and np.isfinite(features).all() and mask.any(axis=1).all()
    for row in range(COUNT):
        width, height = store.size(row)
        assert (width, height) == [(120, 96), (96, 120), (150, 100)][row % 3]
        assert (store.boxes(row) <= [width, height] * 2).all() and (store.boxes(row) >= 0).all()
    assert pq.read_table(workplace.out / "rejected.parquet").num_rows == 0


def test_a_gpu_would_extract_in_float32_whatever_was_set_before(workplace) -> None:
    Precision("tf32", torch.device("cpu"))
    workplace.run()
    flags = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    assert [operator.fp32_precision for operator in flags] == ["ieee"] * 3


def test_another_run_does_nothing_and_batch_size_is_no_reason_to(workplace) -> None:
    workplace.run()
    before = workplace.shards()
    workplace.run(batch_size=8)
    assert workplace.shards() == before


def test_batches_do_not_change_features_beyond_float16(workplace) -> None:
    stores = []
    for batch_size in (1, 7):
        workplace.run(batch_size=batch_size)
        stores.append(RegionStore(workplace.out).features(range(COUNT))[0].astype(np.float32))
        for folder in (workplace.out, workplace.folder):
            for path in folder.glob("*.arrow"):
                path.unlink()
    np.testing.assert_allclose(stores[0], stores[1], atol=np.abs(stores[0]).max() * 2**-10)


def test_geometry_and_float32_are_other_shards(workplace) -> None:
    workplace.run()
    before = set(workplace.shards())
    workplace.run(geometry=True, dtype="float32")
    assert not before & set(workplace.shards()), "shards of other params are pruned"
    store = RegionStore(workplace.out)
    assert (store.region_dim, store.info.dtype, store.info.geometry) == (261, "float32", GEOMETRY_SCALE)
    corners = 2 * store.boxes(0) / np.array([*store.size(0)] * 2) - 1
    np.testing.assert_allclose(store.features([0])[0][0][: len(corners), -5:-1], corners * GEOMETRY_SCALE, rtol=1e-4)


def test_what_a_backend_alone_is_told_makes_other_shards_of_that_backend(workplace, monkeypatch) -> None:
    def keys(**options: float) -> list[str]:
        detector = workplace.params.detector.replace(**{name: {"nms_iou": value} for name, value in options.items()})
        workplace.params = workplace.params.replace(detector=detector)
        return [shard.key for shard in workplace.plan().shards]

    before = keys()
    assert keys(detectron2=0.3) == before
    assert not set(keys(torchvision=0.3)) & set(before)
    heard = []
    monkeypatch.setattr(
        "stages.detectors.two_stage.select", lambda *values: heard.append(values[-1]) or select(*values)
    )
    workplace.run()
    assert set(heard) == {0.3}


def test_given_boxes_are_described_in_their_order(workplace, capsys) -> None:
    boxes = {"000": [[10, 10, 60, 60], [0, 0, 120, 96]], "001": [[5, 5, 50, 90]]}
    rows = [(name, *map(float, box), "thing", []) for name, several in boxes.items() for box in several]
    names = ("image_id", "x0", "y0", "x1", "y1", "category", "attributes")
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    pq.write_table(table, workplace.dataset / "boxes.parquet")
    params = workplace.params.replace(
        dataset=DatasetParams(source="coco", root=str(workplace.pictures)),
        regions=workplace.params.regions.replace(boxes="given"),
    )
    stage.extract_regions(params, workplace.dataset, workplace.detector, workplace.out, workplace.folder)
    store = RegionStore(workplace.out)
    np.testing.assert_allclose(store.boxes(0), boxes["000"], atol=1e-3)
    np.testing.assert_allclose(store.boxes(1), boxes["001"], atol=1e-3)
    assert store.num_regions.tolist() == [2, *[1] * (COUNT - 1)]
    np.testing.assert_allclose(store.boxes(2), [[0, 0, 150, 100]], atol=1e-3)
    assert "more boxes" not in capsys.readouterr().out
    params = params.replace(regions=params.regions.replace(per_image=1, min_per_image=1))
    stage.extract_regions(params, workplace.dataset, workplace.detector, workplace.out, workplace.folder)
    np.testing.assert_allclose(RegionStore(workplace.out).boxes(0), boxes["000"][1:], atol=1e-3)
    said = "1 images have more boxes than regions.per_image, 1: the largest are their regions"
    assert said in capsys.readouterr().out


def test_a_changed_image_touches_its_shard_alone(workplace) -> None:
    workplace.run()
    before = workplace.shards()
    workplace.draw("020.png", 999)
    workplace.list()
    workplace.run()
    after = workplace.shards()
    assert len(before.keys() - after.keys()) == len(after.keys() - before.keys()) == 1
    assert all(after[name] == before[name] for name in before.keys() & after.keys()), (
        "the others were not written again"
    )


def test_added_images_are_extracted_and_the_other_shards_left(workplace) -> None:
    workplace.run()
    before = workplace.shards()
    for name in ("017a", "017b", "040"):
        workplace.draw(f"{name}.png", 7)
    workplace.list()
    workplace.run()
    after = workplace.shards()
    assert 1 <= len(after.keys() - before.keys()) <= 4 < len(after), "those that the three fall into, and neighbours"
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    assert len(RegionStore(workplace.out)) == COUNT + 3


def test_read_only_links_of_a_cache_are_replaced_and_never_written(workplace) -> None:
    workplace.run()
    cache = workplace.root / "cache"
    cache.mkdir()
    for path in list(workplace.out.iterdir()):
        path.chmod(0o444)
        os.link(path, cache / path.name)
    cached = {path.name: path.read_bytes() for path in cache.iterdir()}
    workplace.draw("020.png", 999)
    workplace.list()
    workplace.run()
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == cached


def test_broken_tables_and_devices_are_named(workplace) -> None:
    with pytest.raises(InputError, match=r"regions\.device: cuda:97 is not available here"):
        workplace.run(device="cuda:97")
    with pytest.raises(InputError, match="is not a part such as 2/4"):
        stage.share_of("5/4", [])
    (workplace.dataset / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"images\.parquet: cannot be read"):
        workplace.run()


def test_a_detector_other_than_the_plans_is_refused(workplace) -> None:
    plan = workplace.plan()
    other = replace(plan, info=replace(plan.info, detector="f" * 64))
    with pytest.raises(InputError, match=r"the plan's is ffffffffffff; expected the same weights, code and library"):
        extract_missing(other, workplace.folder)


def test_precomputed_regions_need_no_pictures(workplace) -> None:
    rng = np.random.default_rng(0)
    features = workplace.root / "features"
    features.mkdir()
    for i in range(COUNT):
        box = np.array([[0, 0, 50, 50]], dtype=np.float32)
        np.savez(features / f"{i:03d}.npz", x=rng.random((1, 8), dtype=np.float32), bbox=box, image_h=96, image_w=120)
    shutil.rmtree(workplace.pictures)
    detector = DetectorParams(backend="precomputed", architecture="npz", weights=str(features))
    params = workplace.params.replace(detector=detector)
    own = workplace.root / "detector"
    train_detector(params, workplace.dataset, own, workplace.root / "detector_metrics.json")
    stage.extract_regions(params, workplace.dataset, own, workplace.out, workplace.folder)
    store = RegionStore(workplace.out)
    assert len(store) == COUNT and store.region_dim == 8


def test_precomputed_boxes_follow_the_size_that_is_stated_of_a_picture_without_a_file(workplace) -> None:
    """Where annotations are corrected, the old boxes, or the old rejections, do not stay."""
    features = workplace.root / "features"
    features.mkdir()
    for i in range(COUNT):
        box = np.array([[0, 0, 50, 40]], dtype=np.float32)
        np.savez(features / f"{i:03d}.npz", x=np.ones((1, 8), np.float32), bbox=box, image_h=96, image_w=120)
    shutil.rmtree(workplace.pictures)
    detector = DetectorParams(backend="precomputed", architecture="npz", weights=str(features))
    params = workplace.params.replace(detector=detector)
    own, images = workplace.root / "detector", workplace.dataset / "images.parquet"
    boxes = []
    for scale in (1, 2):
        table = pq.read_table(images)
        stated = {"width": pa.array([120 * scale] * COUNT, pa.int32()), "height": pa.array([96 * scale] * COUNT)}
        for name, column in (stated | {"sha256": pa.array([""] * COUNT)}).items():
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, images)
        train_detector(params, workplace.dataset, own, workplace.root / "detector_metrics.json")
        stage.extract_regions(params, workplace.dataset, own, workplace.out, workplace.folder)
        boxes.append(RegionStore(workplace.out).boxes(0).tolist())
    assert boxes == [[[0, 0, 50, 40]], [[0, 0, 100, 80]]]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="shows that features of a GPU are those of the CPU; needs one"
)
def test_a_gpu_gives_the_features_of_the_cpu(workplace) -> None:
    """Same regions, features within float16's step of each other: no TF32 in extraction, whatever the batch."""
    stores = []
    for device in ("cpu", "cuda:0"):
        out, folder = workplace.root / f"store-{device}", workplace.root / f"shards-{device}"
        params = workplace.changed(device=device, dtype="float32")
        stage.extract_regions(params, workplace.dataset, workplace.detector, out, folder)
        stores.append(RegionStore(out))
    on_cpu, on_gpu = (store.features(range(COUNT))[0] for store in stores)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=np.abs(on_cpu).max() * 2**-10)
    for row in range(COUNT):
        np.testing.assert_allclose(stores[1].boxes(row), stores[0].boxes(row), atol=0.1)
