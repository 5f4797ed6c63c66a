"""What all detectors share for boxes: a dataset's own boxes are cleaned, and geometry is appended to features."""

from dataclasses import replace

import numpy as np

from camp_model.regions import ImageRegions

# regions.geometry appends corners and area to each feature, scaled to a magnitude like that of the rest.
GEOMETRY_DIM = 5
GEOMETRY_SCALE = 4.0


def append_geometry(regions: ImageRegions) -> ImageRegions:
    """Append (x0 / W, y0 / H, x1 / W, y1 / H, share of the area) to each feature.

    Corners are mapped to -1..1 and the area to 0..1; all are multiplied by GEOMETRY_SCALE.
    """
    corners = regions.boxes / np.array([regions.width, regions.height] * 2, dtype=np.float32)
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1, keepdims=True)
    geometry = np.concatenate([2 * corners - 1, area], axis=1) * GEOMETRY_SCALE
    return replace(regions, features=np.concatenate([regions.features, geometry.astype(np.float32)], axis=1))


def given_boxes(boxes: np.ndarray, width: int, height: int, limit: int) -> np.ndarray:
    """Clean the boxes [k, 4] that a dataset provides for one image, so that they can be described.

    Boxes are clipped to the image. Those thinner than a pixel are dropped, and the largest `limit` are kept in their
    order. An image without boxes gets one region that covers all of it.
    """
    clipped = np.clip(boxes, 0, np.array([width, height] * 2, dtype=np.float32)).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    clipped, sides = clipped[(sides >= 1).all(axis=1)], sides[(sides >= 1).all(axis=1)]
    if not len(clipped):
        return np.array([[0, 0, width, height]], dtype=np.float32)
    largest = np.argsort(-sides.prod(axis=1), kind="stable")[:limit]
    chosen: np.ndarray = clipped[np.sort(largest)]
    return chosen
