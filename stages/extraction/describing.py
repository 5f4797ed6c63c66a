"""What happens to each picture: the code that decides the numbers in a shard, besides the detector and the file format.

The shards' keys include this module's code and the modules of `stages.detectors` that it imports
(`stages.detectors.computing`). Other modules here decide how fast, how often and in which order pictures are read,
which no key includes.
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
"""The result of reading a picture: the network's input, its regions if they are precomputed, or why it is rejected."""


class PlannedImage(NamedTuple):
    """A row of images.parquet, with its boxes if `regions.boxes` is `given`."""

    image_id: str
    path: str
    sha256: str
    width: int
    height: int
    boxes: np.ndarray | None = None
    """float32 [k, 4]"""


def store_info(params: RegionsParams, description: Description) -> StoreInfo:
    """Describe what all shards of a run have in common."""
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
    """Read one picture below `pictures`, called in threads; precomputed regions need no picture."""
    try:
        if not hasattr(detector, "prepare"):
            return detector.read(image.image_id, image.path, image.width, image.height)
        return detector.prepare(read_image(pictures / image.path, image.sha256, max_pixels))
    except RejectedImage as error:
        return error


def describe(
    detector: RegionExtractor, batch: Sequence[tuple[PlannedImage, NetworkInput]], params: RegionsParams
) -> list[ImageRegions]:
    """Extract the regions of pictures of one group, at the given boxes if the params say so."""
    given = None
    if params.boxes == "given":
        given = [
            given_boxes(image.boxes, item.width, item.height, params.per_image)
            for image, item in batch
            if image.boxes is not None
        ]
    return detector.forward([item for _, item in batch], given)


def with_geometry(regions: ImageRegions, params: RegionsParams) -> ImageRegions:
    """Return the regions as they are stored: with geometry appended to their features if the params say so."""
    if not params.geometry:
        return regions
    with np.errstate(all="ignore"):  # regions that are not finite are set aside later
        return append_geometry(regions)
