"""COCO caption annotations, their image folders, and the boxes of the instance annotations."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from stages.contracts import read_json
from stages.errors import InputError
from stages.params.dataset import CocoPart, DatasetParams
from stages.sources.base import (
    Source,
    SourceBox,
    SourceCaption,
    SourceImage,
    check_folder,
    image_ids,
    join,
    take,
)
from stages.workspace import named_path


class _Picture(NamedTuple):
    path: str
    split: str
    where: str


def in_test_share(coco_id: int, share: float) -> bool:
    """Whether a val image goes to the test split: the same for an id wherever and with whatever else it is read."""
    digest = hashlib.sha256(str(coco_id).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _pictures(content: Any, part: CocoPart, file: Path, test_share: float) -> dict[int, _Picture]:
    """The images of an annotation file by their COCO id."""
    pictures: dict[int, _Picture] = {}
    for number, record in enumerate(take(content, "images", list, str(file))):
        where = f"{file}: images[{number}]"
        coco_id = take(record, "id", int, where)
        if coco_id in pictures:
            raise InputError(f"{where}.id: {coco_id} is there twice, first at {pictures[coco_id].where}")
        split = "test" if part.split == "val" and in_test_share(coco_id, test_share) else part.split
        pictures[coco_id] = _Picture(join(part.images, take(record, "file_name", str, where)), split, where)
    return pictures


def _corners(record: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """COCO's box (left, top, width, height) as XYXY."""
    box = take(record, "bbox", list, where)
    if len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise InputError(f"{where}.bbox: {box!r} is not four numbers")
    x, y, width, height = box
    return x, y, x + width, y + height


def _boxes(file: Path, ids: dict[int, str]) -> list[SourceBox]:
    """The objects of the images in `ids` (COCO id -> image id); crowds and empty boxes are left out."""
    content = read_json(file, "the file that dataset.coco.parts.instances names")
    categories: dict[int, str] = {}
    for number, record in enumerate(take(content, "categories", list, str(file))):
        where = f"{file}: categories[{number}]"
        categories[take(record, "id", int, where)] = take(record, "name", str, where)
    boxes = []
    for number, record in enumerate(take(content, "annotations", list, str(file))):
        where = f"{file}: annotations[{number}]"
        # Instance files may cover more images than the caption file.
        image_id = ids.get(take(record, "image_id", int, where))
        if image_id is None or record.get("iscrowd"):
            continue
        category = take(record, "category_id", int, where)
        if category not in categories:
            raise InputError(f"{where}.category_id: {category} is not in categories")
        corners = _corners(record, where)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            boxes.append(SourceBox(image_id, corners, categories[category]))
    return boxes


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Read the annotation files, part by part.

    Raises:
        InputError: a file or folder is missing, a record lacks a key, a caption names no image, an id comes twice.
    """
    parts, root = params.coco.parts, named_path(params.root)
    if not parts:
        raise InputError("dataset.coco.parts: is empty; expected one entry for each annotation file")
    test_share = 0.0 if any(part.split == "test" for part in parts) else params.coco.test_share
    read: list[tuple[CocoPart, Path, Any, dict[int, _Picture]]] = []
    for part in parts:
        check_folder(root / part.images, "dataset.coco.parts.images")
        file = root / part.captions
        content = read_json(file, "the file that dataset.coco.parts.captions names")
        read.append((part, file, content, _pictures(content, part, file, test_share)))
    names = iter(image_ids([picture.path for *_, pictures in read for picture in pictures.values()]))
    source = Source(images=[], captions=[])
    for part, file, content, pictures in read:
        ids = {coco_id: next(names) for coco_id in pictures}
        source.images += [SourceImage(ids[coco_id], *picture) for coco_id, picture in pictures.items()]
        for number, record in enumerate(take(content, "annotations", list, str(file))):
            where = f"{file}: annotations[{number}]"
            coco_id = take(record, "image_id", int, where)
            if coco_id not in ids:
                raise InputError(f"{where}.image_id: {coco_id} is not in images")
            source.captions.append(SourceCaption(ids[coco_id], take(record, "caption", str, where), where))
        if part.instances is not None:
            source.boxes += _boxes(root / part.instances, ids)
    return source
