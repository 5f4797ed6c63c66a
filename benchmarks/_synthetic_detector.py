"""A stand-in for precomputed regions: as many rows as wanted, made up as they are asked for, no file behind them."""

from pathlib import Path

import numpy as np

from camp_model.regions import ImageRegions
from stages.detectors.base import Description
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams


class SyntheticRegions:
    """`per_image` regions for every image, differing from image to image."""

    def __init__(self, description: Description, params: RegionsParams) -> None:
        self.fingerprint, self.region_dim = description.fingerprint, description.region_dim
        self.categories: list[str] = []
        self.attributes: list[str] = []
        self.count = params.per_image

    def read(self, image_id: str, path: str, width: int, height: int) -> ImageRegions:
        features = np.full((self.count, self.region_dim), float(int(image_id) % 1000), dtype=np.float32)
        numbers = np.zeros(self.count, dtype=np.float32)
        ids = np.zeros(self.count, dtype=np.int32)
        boxes = np.tile(np.array([0, 0, 10, 10], dtype=np.float32), (self.count, 1))
        return ImageRegions(features, boxes, numbers, ids, ids, numbers, width, height)


def load(
    folder: Path, description: Description, params: RegionsParams, device: str, options: DetectorParams
) -> SyntheticRegions:
    return SyntheticRegions(description, params)
