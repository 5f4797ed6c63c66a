"""The detector of the scenes learns, reproducibly, and says how well; a pretrained one is only identified."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.regions import ImageRegions
from stages.detectors import computing
from stages.detectors.base import Description, load_detector
from stages.detectors.scenes_dataset import TrainingScene, read_scenes
from stages.detectors.scenes_training import map50
from stages.detectors.two_stage import TwoStageExtractor
from stages.errors import InputError
from stages.params.dataset import DatasetParams, ScenesParams
from stages.params.detector import DetectorParams, DetectorTrainParams
from stages.params.regions import RegionsParams
from stages.prepare_dataset import prepare_dataset
from stages.train_detector import TrainDetectorSections, train_detector

PARAMS = TrainDetectorSections(
    dataset=DatasetParams(scenes=ScenesParams(train=24, val=6, test=2)),
    detector=DetectorParams(train=DetectorTrainParams(steps=12, batch_size=4)),
)

MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "dataset"
    prepare_dataset(PARAMS.dataset, folder)
    return folder


def test_training_is_reproducible_and_leaves_a_detector_that_loads(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shas = []
    for name in ("one", "two"):
        train_detector(PARAMS, dataset, tmp_path / name, tmp_path / f"{name}.json")
        shas.append(Description.load(tmp_path / name).weights_sha256)
    assert shas[0] == shas[1]
    assert "step 12/12" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "one.json").read_text())
    assert 0 <= metrics["val_map50"] <= 1 and np.isfinite(metrics["train_loss"])
    description = Description.load(tmp_path / "one")
    assert set(description.categories) <= {"circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent"}
    assert {"red", "striped", "small"} <= set(description.attributes)
    extractor = load_detector(tmp_path / "one", RegionsParams())
    assert isinstance(extractor, TwoStageExtractor) and extractor.fingerprint == description.fingerprint
    other = PARAMS.replace(detector=DetectorParams(train=PARAMS.detector.train.replace(seed=1)))
    train_detector(other, dataset, tmp_path / "three", tmp_path / "three.json")
    assert Description.load(tmp_path / "three").fingerprint != description.fingerprint


def test_training_lowers_the_loss(dataset: Path, tmp_path: Path) -> None:
    values = []
    for steps in (4, 60):
        settings = DetectorTrainParams(steps=steps, batch_size=4)
        train_detector(
            PARAMS.replace(detector=DetectorParams(train=settings)), dataset, tmp_path / "d", tmp_path / "m.json"
        )
        values.append(json.loads((tmp_path / "m.json").read_text())["train_loss"])
    assert values[1] < 0.85 * values[0]


def test_boxes_without_attributes_as_those_of_coco_train_it_too(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    boxes = pq.read_table(dataset / "boxes.parquet")
    column = boxes.schema.get_field_index("attributes")
    without = boxes.set_column(
        column, boxes.schema.field(column), pa.array([[]] * len(boxes), boxes.field(column).type)
    )
    pq.write_table(without, tmp_path / "dataset/boxes.parquet")
    train_detector(PARAMS, tmp_path / "dataset", tmp_path / "d", tmp_path / "m.json")
    assert np.isfinite(json.loads((tmp_path / "m.json").read_text())["train_loss"])


def test_scenes_are_read_with_their_objects(dataset: Path) -> None:
    scenes = read_scenes(PARAMS.dataset.image_root(dataset), dataset, "val", 1_000_000)
    rows = pq.read_table(dataset / "boxes.parquet").to_pylist()
    assert len(scenes) == 6
    assert sum(len(scene.boxes) for scene in scenes) == sum(row["image_id"].startswith("val") for row in rows)
    for scene in scenes:
        assert scene.pixels.shape == (3, 160, 160) and scene.pixels.dtype == torch.uint8
        assert (scene.attributes.sum(dim=1) == 3).all(), "a colour, a texture and a size"
        assert scene.labels.min() >= 1


def scene(boxes: list[list[float]], labels: list[int]) -> TrainingScene:
    return TrainingScene(torch.zeros(3, 9, 9), torch.tensor(boxes), torch.tensor(labels), torch.zeros(len(labels), 1))


def found(boxes: list[list[float]], classes: list[int], scores: list[float]) -> ImageRegions:
    none = np.zeros(len(boxes))
    return ImageRegions(none, np.array(boxes, np.float32), np.array(scores), np.array(classes), none, none, 9, 9)


def test_map_is_what_it_is_by_hand() -> None:
    truth = [scene([[0, 0, 10, 10], [20, 20, 30, 30]], [1, 1]), scene([[0, 0, 8, 8]], [2])]
    right = [found([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 0], [0.9, 0.8]), found([[0, 0, 8, 8]], [1], [0.7])]
    assert map50(right, truth, 3) == pytest.approx(1.0)
    # Category 1: the best-scoring box is wrong, the next two are right: precision is 2/3 at every recall.
    wrong_first = [found([[50, 50, 60, 60], [0, 0, 10, 10], [20, 20, 30, 30]], [0, 0, 0], [0.9, 0.8, 0.7]), right[1]]
    assert map50(wrong_first, truth, 3) == pytest.approx((2 / 3 + 1) / 2)
    # IoU 0.45 is no hit, nor is the right place with the wrong class.
    shifted = [found([[0, 0, 10, 4.5]], [0], [0.9]), found([[0, 0, 8, 8]], [0], [0.9])]
    assert map50(shifted, truth, 3) == pytest.approx(0.0)
    assert map50([found([], [], []), found([], [], [])], truth, 3) == 0.0


def test_a_pretrained_detector_is_identified(dataset: Path, tmp_path: Path) -> None:
    name = MOBILENET
    params = PARAMS.replace(detector=DetectorParams(architecture=name, weights="random"))
    train_detector(params, dataset, tmp_path / "detector", tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"pretrained": False}, "random weights are not"
    written = json.loads((tmp_path / "detector/detector.json").read_text())
    assert written["weights"]["source"] == "random, seed 0" and len(written["weights"]["sha256"]) == 64
    assert (written["backend"], written["architecture"], written["region_dim"]) == ("torchvision", name, 1024)


def test_a_dataset_that_cannot_train_it_is_named(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    copy.mkdir()
    for path in dataset.glob("*.parquet"):
        (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"train-00000\.\w+: the file is missing"):
        train_detector(PARAMS, copy, tmp_path / "d", tmp_path / "m.json")
    small = PARAMS.replace(regions=RegionsParams(max_pixels=100))
    with pytest.raises(InputError, match=r"train-00000\.\w+: claims \d+ x \d+ pixels, above regions\.max_pixels"):
        train_detector(small, dataset, tmp_path / "d", tmp_path / "m.json")
    boxes = pq.read_table(copy / "boxes.parquet")
    pq.write_table(boxes.slice(0, 0), copy / "boxes.parquet")
    with pytest.raises(
        InputError,
        match=r"boxes\.parquet: is empty; detector\.weights: train needs a dataset with boxes; presets/grid\.yaml",
    ):
        train_detector(PARAMS, copy, tmp_path / "d", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_a_failure_leaves_the_last_good_detector(dataset: Path, tmp_path: Path) -> None:
    good = PARAMS.replace(detector=DetectorParams(architecture=MOBILENET, weights="random"))
    train_detector(good, dataset, tmp_path / "detector", tmp_path / "m.json")
    before = {path.name: path.read_bytes() for path in (tmp_path / "detector").iterdir()}
    wrong = PARAMS.replace(detector=DetectorParams(architecture=MOBILENET, weights=str(tmp_path / "none.pth")))
    with pytest.raises(InputError, match="is no file"):
        train_detector(wrong, dataset, tmp_path / "detector", tmp_path / "m.json")
    assert {path.name: path.read_bytes() for path in (tmp_path / "detector").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "m.json"]


def test_a_training_that_diverges_leaves_no_detector(dataset: Path, tmp_path: Path) -> None:
    """Its weights would be no numbers, and its metrics no JSON."""
    settings = DetectorTrainParams(steps=4, batch_size=2, learning_rate=1e6)
    with pytest.raises(InputError, match=r"detector\.train: the loss is not finite; a lower .*learning_rate may help"):
        train_detector(
            PARAMS.replace(detector=DetectorParams(train=settings)), dataset, tmp_path / "d", tmp_path / "m.json"
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"detector\.train\.learning_rate: 1e\+300 is not between 0 and 1e\+10"):
        PARAMS.replace(detector={"train": {"learning_rate": 1e300}})


def test_a_change_of_what_computes_is_told(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = PARAMS.replace(detector=DetectorParams(architecture=MOBILENET, weights="random"))
    folder = tmp_path / "detector"
    for _ in range(2):
        train_detector(params, dataset, folder, tmp_path / "m.json")
    assert "has changed" not in capsys.readouterr().out
    before = Description.load(folder).fingerprint
    computing._computed_by.cache_clear()
    monkeypatch.setattr(computing, "_version", lambda library: "9.9")
    assert Description.load(folder).fingerprint != before, "what would compute now decides"
    train_detector(params, dataset, folder, tmp_path / "m.json")
    told = capsys.readouterr().out
    assert "torch 2" in told and "is now 9.9" in told and "extract all images again" in told
    line = re.search(r"HARMLESS = (\{.*\})", told)
    assert line is not None
    monkeypatch.setattr(computing, "HARMLESS", json.loads(line[1]))
    assert Description.load(folder).fingerprint == before
    computing._computed_by.cache_clear()
