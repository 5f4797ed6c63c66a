"""Regions that others extracted come into the store as they are: made-up files in each of their forms."""

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camp_model.regions import RegionStore
from stages.extract_regions import extract_regions
from stages.extraction.plan import ExtractSections
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.train_detector import train_detector

IDS = ["COCO_val2014_000000000042", "COCO_val2014_000000000139", "COCO_val2014_000000000285"]
CAPTIONS = {
    IDS[0]: ["A dog, running.", "Ein Hund läuft!", "A man and a dog."],
    IDS[1]: ["Two cats sleep", "A man and a dog.", "cats on a sofa"],
    IDS[2]: ["A red bus", "the bus stops", "People wait."],
}
DIM = 16


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three images, 100 x 80 pixels, whose pictures are not there."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    sizes = {"width": pa.array([100] * 3, pa.int32()), "height": pa.array([80] * 3, pa.int32())}
    images = {"image_id": IDS, "path": [f"val/{name}.jpg" for name in IDS], "split": ["train", "val", "test"], **sizes}
    pq.write_table(pa.table(images | {"sha256": ["0"] * 3}), folder / "images.parquet")
    pairs = [(name, text) for name, texts in CAPTIONS.items() for text in texts]
    captions = {"image_id": [name for name, _ in pairs], "text": [text for _, text in pairs]}
    pq.write_table(pa.table(captions), folder / "captions.parquet")
    return folder


def features(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def boxes(seed: int, count: int) -> np.ndarray:
    corners = np.sort(np.random.default_rng(seed).uniform(0, 80, (count, 2, 2)).astype(np.float32), axis=1)
    return corners.reshape(count, 4)


def convert(dataset: Path, form: str, source: Path, **regions: object) -> RegionStore:
    """The two stages, and the store they leave."""
    params = ExtractSections(
        dataset=DatasetParams(source="coco", root=str(dataset)),
        detector=DetectorParams(backend="precomputed", architecture=form, weights=str(source)),
        regions=RegionsParams(**{"per_image": 5, "min_per_image": 1, "dtype": "float32", **regions}),
    )
    detector, metrics = dataset.parent / "detector", dataset.parent / "detector.json"
    train_detector(params, dataset, detector, metrics)
    assert json.loads(metrics.read_text()) == {"pretrained": True}
    extract_regions(params, dataset, detector, dataset.parent / "regions", dataset.parent / "shards")
    return RegionStore(dataset.parent / "regions")


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def write_tsv(path: Path, ids: list[str], lxmert: bool = False, size: tuple[int, int] = (100, 80)) -> None:
    lines = []
    for i, name in enumerate(ids):
        count = i + 2
        found = encoded(boxes(i, count)), encoded(features(i, count))
        if lxmert:
            ids_and_confidences = (
                encoded(np.arange(count)),
                encoded(np.linspace(1, 0.5, count, dtype=np.float32)),
                encoded(np.arange(count)[::-1].copy()),
                encoded(np.full(count, 0.25, dtype=np.float32)),
            )
            cells = (name, str(size[1]), str(size[0]), *ids_and_confidences, str(count), *found)
        else:
            cells = (name, str(size[0]), str(size[1]), str(count), *found)
        lines.append("\t".join(cells) + "\n")
    path.write_text("".join(lines))


def scan_files(folder: Path) -> Path:
    """SCAN's files: train once per image, dev and test once per caption; captions tokenized and out of our order."""
    folder.mkdir()
    for split, name, repeat in (("train", IDS[2], 1), ("dev", IDS[0], 3), ("test", IDS[1], 3)):
        row = features(IDS.index(name), 4)
        np.save(folder / f"{split}_ims.npy", np.stack([row] * repeat))
        lines = [text.lower().replace(".", " .").replace(",", " ,").replace("!", "") for text in CAPTIONS[name]]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    return folder


def record(name: str, seed: int, kind: str = "<f4", box_kind: str = "<f4", dim: int = DIM, **change: str) -> str:
    """A line of bottom-up attention's .tsv with two boxes."""
    numbers = np.random.default_rng(seed).normal(size=(2, dim)).astype("<f4").astype(kind)
    cells = {
        "name": name,
        "width": "100",
        "height": "80",
        "count": "2",
        "boxes": encoded(boxes(seed, 2).astype(box_kind)),
        "features": encoded(numbers),
    }
    return "\t".join((cells | change).values()) + "\n"
