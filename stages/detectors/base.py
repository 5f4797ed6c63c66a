"""What every detector has in common: its description on disk and the interface that extraction uses."""

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from camp_model.files import write_sealed
from camp_model.regions import ImageRegions
from stages.contracts import read_object
from stages.detectors import DETECTORS
from stages.detectors.computing import changes_since, computed_by, computing_digest
from stages.errors import InputError, shown
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams, check_backend


@dataclass(frozen=True)
class Description:
    """data/detector/detector.json: everything that determines a detector's regions."""

    backend: str
    architecture: str
    weights_source: str
    """Where the weights came from, as the user named it."""
    weights_sha256: str
    region_dim: int
    categories: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over all fields except the weights' source, and over the code and libraries that compute regions."""
        values = asdict(self) | {"weights_source": "", "computing": computing_digest(self.backend)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        values = asdict(self)
        values["weights"] = {"source": values.pop("weights_source"), "sha256": values.pop("weights_sha256")}
        values |= {"fingerprint": self.fingerprint, "computed_by": computed_by(self.backend)}
        write_sealed(folder / "detector.json", values)

    @classmethod
    def load(cls, folder: Path) -> "Description":
        """Read detector.json.

        Raises:
            InputError: the file is missing, not JSON, or lacks a key.
        """
        path = folder / "detector.json"
        values = read_object(path, "what the stage train_detector writes")
        try:
            weights = values.pop("weights")
            for name in ("fingerprint", "computed_by"):  # as they were when the file was written
                values.pop(name, None)
            return cls(weights_source=weights["source"], weights_sha256=weights["sha256"], **values)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: is no description of a detector ({error})") from None


def tell_changes(before: Path, after: Path) -> None:
    """Say what a change of the code or libraries costs, and how to avoid that, if both folders hold the same
    detector."""
    path = before / "detector.json"
    try:
        old, new = Description.load(before), Description.load(after)
        values = json.loads(path.read_text(encoding="utf-8"))
        if old == new and values["fingerprint"] != new.fingerprint:
            print(changes_since(values["computed_by"], new.backend))
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return  # no detector before, or one without computed_by


@dataclass
class NetworkInput:
    """An image resized for the network, made in a decoding thread."""

    pixels: torch.Tensor
    """uint8 RGB [3, h, w] at the network's input size."""
    width: int
    height: int
    """Width and height of the original image, upright."""
    group: tuple[int, int]
    """Padded (height, width). Only images of one group share a batch, so the padding of an image, and with it its
    features, never depends on its neighbours."""


class RegionExtractor(Protocol):
    """Finds regions in images and describes each by a feature."""

    fingerprint: str
    region_dim: int
    categories: list[str]
    attributes: list[str]

    def prepare(self, image: np.ndarray) -> NetworkInput:
        """Resize one image, uint8 RGB [H, W, 3]. Safe to call from several threads."""
        ...

    def forward(
        self, batch: Sequence[NetworkInput], image_boxes: Sequence[np.ndarray] | None = None
    ) -> list[ImageRegions]:
        """Return the regions of images of one group, detected or at the `image_boxes` [k, 4] of each image."""
        ...

    def box_logits(self, features: np.ndarray) -> np.ndarray:
        """The predictor's class logits for features [k, region_dim], as the network computes them."""
        ...


class PrecomputedRegions(Protocol):
    """Regions that others extracted, looked up by image; no picture is opened."""

    fingerprint: str
    region_dim: int
    categories: list[str]
    attributes: list[str]

    def read(self, image_id: str, path: str, width: int, height: int) -> ImageRegions:
        """Return the regions of one image of images.parquet; RejectedImage if there are none."""
        ...


def extract(
    extractor: RegionExtractor,
    images: Sequence[np.ndarray],
    image_boxes: Sequence[np.ndarray] | None = None,
    batch_size: int = 8,
) -> list[ImageRegions]:
    """Regions of a few images, uint8 RGB [H, W, 3], in their order, without the stage's files and threads."""
    prepared = [extractor.prepare(image) for image in images]
    results: list[ImageRegions | None] = [None] * len(images)
    for group in sorted({item.group for item in prepared}):
        members = [i for i, item in enumerate(prepared) if item.group == group]
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            boxes = None if image_boxes is None else [image_boxes[i] for i in batch]
            for i, regions in zip(batch, extractor.forward([prepared[i] for i in batch], boxes), strict=True):
                results[i] = regions
    return [regions for regions in results if regions is not None]


def load_detector(
    folder: Path,
    regions: RegionsParams,
    device: str = "cpu",
    options: DetectorParams = DetectorParams(),  # noqa: B008
) -> RegionExtractor | PrecomputedRegions:
    """Load the detector that train_detector wrote to `folder`, ready to run on `device`.

    `options` holds the settings that only its backend reads.

    Raises:
        InputError: the description or the weights are missing or do not fit, or the backend is not installed.
    """
    description = Description.load(folder)
    if description.backend not in DETECTORS:
        raise InputError(
            f"{folder / 'detector.json'}: backend {shown(description.backend)} is not one of {', '.join(DETECTORS)}"
        )
    try:
        check_backend(regions, description.backend)
    except ValueError as error:
        raise InputError(f"params.yaml: {error}") from None
    module = importlib.import_module(DETECTORS[description.backend])
    detector: RegionExtractor | PrecomputedRegions = module.load(folder, description, regions, device, options)
    return detector
