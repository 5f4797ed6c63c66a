"""What becomes of a picture: all that decides the numbers in a shard beside the detector and the file's own form.

The shards' keys hold this module's code and what it imports of `stages.detectors` (`stages.detectors.computing`). How
fast, in which order and how often pictures are looked at is in the modules beside it, and in no key.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from camp_model.regions import ImageRegions, StoreInfo
from stages.detectors.base import Description, NetworkInput, PrecomputedRegions, RegionExtractor
from stages.detectors.boxes import GEOMETRY_DIM, GEOMETRY_SCALE, append_geometry, given_boxes
from stages.detectors.images import RejectedImage, read_image
from stages.params.regions import RegionsParams

Detector = RegionExtractor | PrecomputedRegions
Item = NetworkInput | ImageRegions | RejectedImage
"""What is known of a picture once it is read: what the network is to see, its regions, or why there will be none."""


class PlannedImage(NamedTuple):
    """A row of images.parquet, with the boxes to describe where the params ask for given ones."""

    image_id: str
    path: str
    sha256: str
    width: int
    height: int
    boxes: np.ndarray | None = None
    """float32 [k, 4]"""


def store_info(params: RegionsParams, description: Description) -> StoreInfo:
    """What holds for all shards of a run."""
    return StoreInfo(
        region_dim=description.region_dim + (GEOMETRY_DIM if params.geometry else 0),
        max_regions=params.per_image,
        detector=description.fingerprint,
        dtype=params.dtype,
        categories=description.categories,
        attributes=description.attributes,
        geometry=GEOMETRY_SCALE if params.geometry else 0.0,
    )


def read_picture(detector: Detector, pictures: Path, image: PlannedImage, max_pixels: int) -> Item:
    """Read one picture below `pictures`, in a thread; precomputed regions need no picture."""
    try:
        if not hasattr(detector, "prepare"):
            return detector.read(image.image_id, image.path, image.width, image.height)
        return detector.prepare(read_image(pictures / image.path, image.sha256, max_pixels))
    except RejectedImage as error:
        return error


def describe(
    detector: RegionExtractor, batch: Sequence[tuple[PlannedImage, NetworkInput]], params: RegionsParams
) -> list[ImageRegions]:
    """The regions of pictures of one group, those of given boxes where the params ask for them."""
    given = None
    if params.boxes == "given":
        given = [
            given_boxes(image.boxes, item.width, item.height, params.per_image)
            for image, item in batch
            if image.boxes is not None
        ]
    return detector.forward([item for _, item in batch], given)


def with_geometry(regions: ImageRegions, params: RegionsParams) -> ImageRegions:
    """The regions as they are stored: with their places beside their features where the params ask for that."""
    if not params.geometry:
        return regions
    with np.errstate(all="ignore"):  # what is not finite is set aside
        return append_geometry(regions)
