"""The pictures and objects that the scenes detector is trained and measured on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from stages.contracts import read_table
from stages.detectors.images import RejectedImage, read_image
from stages.errors import InputError


@dataclass
class TrainingScene:
    """One training image with its objects."""

    pixels: torch.Tensor
    """uint8 [3, H, W]"""
    boxes: torch.Tensor
    """float32 [k, 4], XYXY"""
    labels: torch.Tensor
    """int64 [k], from 1: 0 is the background"""
    attributes: torch.Tensor
    """float32 [k, A], 1 where the attribute holds"""


def _occurring(table: pa.Table, path: Path) -> tuple[list[str], list[str]]:
    """Categories and attributes that occur, sorted."""
    categories = sorted(set(table["category"].to_pylist()))
    if not categories:
        raise InputError(
            f"{path}: is empty; detector.weights: train needs a dataset with boxes; presets/grid.yaml needs none"
        )
    return categories, sorted({name for row in table["attributes"].to_pylist() for name in row or ()})


def read_names(dataset: Path) -> tuple[list[str], list[str]]:
    """Categories and attributes of the dataset's boxes, sorted. InputError if there are no boxes."""
    path = dataset / "boxes.parquet"
    return _occurring(read_table(path, ("category", "attributes")), path)


def read_scenes(image_root: Path, dataset: Path, split: str, max_pixels: int) -> list[TrainingScene]:
    """Read the images of a split that have objects, all of one size, into memory.

    Args:
        image_root: the folder that the paths in images.parquet start from.
        dataset: the folder of images.parquet and boxes.parquet.
        split: train, val or test.
        max_pixels: width times height above which a picture is not decoded.

    Raises:
        InputError: an image or table cannot be read, the split has no boxes, or the images differ in size.
    """
    path = dataset / "boxes.parquet"
    table = read_table(path, ("image_id", "x0", "y0", "x1", "y1", "category", "attributes"))
    categories, attributes = _occurring(table, path)
    objects: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        objects.setdefault(row["image_id"], []).append(row)
    images = read_table(dataset / "images.parquet", ("image_id", "path", "split", "sha256"))
    scenes = []
    for image in images.to_pylist():
        if image["split"] != split or image["image_id"] not in objects:
            continue
        try:
            pixels = read_image(image_root / image["path"], image["sha256"], max_pixels)
        except RejectedImage as error:
            raise InputError(f"{image_root / image['path']}: {error}") from None
        rows = objects[image["image_id"]]
        scenes.append(
            TrainingScene(
                pixels=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
                boxes=torch.tensor([[row[side] for side in ("x0", "y0", "x1", "y1")] for row in rows]),
                labels=torch.tensor([categories.index(row["category"]) + 1 for row in rows]),
                attributes=torch.tensor(
                    [[float(name in (row["attributes"] or ())) for name in attributes] for row in rows]
                ),
            )
        )
    if not scenes:
        raise InputError(f"{path}: holds no box of the split {split}")
    if len({scene.pixels.shape for scene in scenes}) > 1:
        raise InputError(f"{dataset / 'images.parquet'}: images differ in size; detector.weights: train needs one size")
    return scenes
