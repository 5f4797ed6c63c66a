"""What is done with boxes around every detector: a dataset's own are made fit, and geometry goes beside features."""

from dataclasses import replace

import numpy as np

from camp_model.regions import ImageRegions

# Corners and area: what regions.geometry puts at the end of a feature, scaled to weigh like the rest of it.
GEOMETRY_DIM = 5
GEOMETRY_SCALE = 4.0


def append_geometry(regions: ImageRegions) -> ImageRegions:
    """The regions with (x0 / W, y0 / H, x1 / W, y1 / H, share of the area) at the end of each feature.

    Corners run from -1 to 1 and the area from 0 to 1, times GEOMETRY_SCALE.
    """
    corners = regions.boxes / np.array([regions.width, regions.height] * 2, dtype=np.float32)
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1, keepdims=True)
    geometry = np.concatenate([2 * corners - 1, area], axis=1) * GEOMETRY_SCALE
    return replace(regions, features=np.concatenate([regions.features, geometry.astype(np.float32)], axis=1))


def given_boxes(boxes: np.ndarray, width: int, height: int, limit: int) -> np.ndarray:
    """The boxes [k, 4] that a dataset brings for one image, fit to be described.

    Clipped to the image; those thinner than a pixel are dropped; the largest `limit` are kept, in their own order;
    an image without boxes is one region: all of it.
    """
    clipped = np.clip(boxes, 0, np.array([width, height] * 2, dtype=np.float32)).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    clipped, sides = clipped[(sides >= 1).all(axis=1)], sides[(sides >= 1).all(axis=1)]
    if not len(clipped):
        return np.array([[0, 0, width, height]], dtype=np.float32)
    largest = np.argsort(-sides.prod(axis=1), kind="stable")[:limit]
    chosen: np.ndarray = clipped[np.sort(largest)]
    return chosen
