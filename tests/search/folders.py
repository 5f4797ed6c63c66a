"""A folder of pictures, an untrained model that says which features it reads, and a cache."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from camp_model.checkpoint import save_checkpoint
from camp_model.config import CampConfig
from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from search.collection import PictureCollection, open_folder
from search.features import Extraction, copy_detector
from search.pictures import Status
from stages.detectors.base import Description
from stages.detectors.scenes import build_network
from stages.detectors.weights import save_state
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from tests.stages.extraction.conftest import draw

DETECTOR = DetectorParams()
REGIONS = RegionsParams(per_image=4, min_per_image=4, batch_size=3, geometry=True)
VOCABULARY = Vocabulary.build([["a", "red", "circle", "two", "dogs", "snow", "in", "the"]])
Seen = TypeVar("Seen")
CONFIG = {"image_size": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def make_model(folder: Path, seed: int = 0, joint_weight: float = 0.0) -> Path:
    """An untrained model whose folder says which features it reads: those of an untrained detector of the scenes."""
    detector = folder.parent / "detector"
    if not detector.exists():
        detector.mkdir(parents=True)
        torch.manual_seed(0)
        sha256 = save_state(build_network(CONFIG, 3, 2).state_dict(), detector)
        Description("torchvision", "scenes", "test", sha256, 256, ["a", "b", "c"], ["x", "y"], CONFIG).save(detector)
    torch.manual_seed(seed)
    config = CampConfig(vocab_size=len(VOCABULARY), region_dim=261, word_dim=8, dim=12)
    save_checkpoint(folder, CAMP(config), VOCABULARY)
    facts = {"detector": Description.load(detector).fingerprint, "joint_weight": joint_weight}
    (folder / "fingerprint.json").write_text(json.dumps(facts))
    Extraction(detector=DETECTOR, regions=REGIONS).write(folder)
    copy_detector(detector, DETECTOR, folder)
    return folder


@dataclass
class Folder:
    """A folder of pictures, a model and a cache."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def model(self) -> Path:
        return self.root / "models/tiny"

    def draw(self, name: str, seed: int) -> Path:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path, seed)
        return path

    def open(self, model: Path | None = None) -> PictureCollection:
        return open_folder(self.images, model=model or self.model, cache=self.root / "cache")

    def names(self, collection: PictureCollection) -> list[str]:
        """The files that can be searched, in the order of the collection."""
        return [hit.file.name for hit in collection.first(1000)]


def shards(folder: Folder) -> dict[Path, int]:
    """Inode of each shard: one that was written again has another."""
    return {path: path.stat().st_ino for path in (folder.root / "cache").rglob("*.arrow")}


def wait_until(holds: Callable[[Seen], Any], look: Callable[[], Seen], seconds: float = 120) -> Seen:
    """What is seen once that holds of it."""
    deadline = time.monotonic() + seconds
    while not holds(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)
    return seen


def wait_for(collection: PictureCollection, seconds: float = 120) -> Status:
    """The status once indexing has come to its end."""
    return wait_until(lambda status: not status.scanning, collection.status, seconds)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Seven small pictures and an untrained model."""
    place = Folder(tmp_path)
    make_model(place.model)
    for i in range(7):
        place.draw(f"{i}.png", i)
    return place


@pytest.fixture
def opened(folder: Folder) -> Iterator[PictureCollection]:
    """The folder, indexed."""
    collection = folder.open()
    collection.start()
    wait_for(collection)
    yield collection
    collection.close()
