"""COCO's caption annotations, their image folders, and the boxes of its instance annotations."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from camp_model.files import is_unicode
from stages.contracts import read_json
from stages.errors import InputError, shown
from stages.params.dataset import CocoPart, DatasetParams
from stages.sources.base import (
    BadRecord,
    Source,
    SourceBox,
    SourceCaption,
    SourceImage,
    image_ids,
    join_path,
    require_field,
)
from stages.sources.splits import position
from stages.workspace import named_path

UNLISTED = "of images that the caption file does not list"


class _Picture(NamedTuple):
    path: str
    split: str
    where: str
    folder: str


def in_test_share(coco_id: int, share: float) -> bool:
    """Whether a val image goes to the test split; this depends only on its id and the share."""
    return position(str(coco_id)) < share


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31


def _side(value: Any) -> float:
    """A stated width or height; NaN for what is no number: boxes of such a frame are set aside."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _stated_sizes(records: dict[int, dict[str, Any]], file: Path) -> dict[int, tuple[float, float]]:
    """COCO id -> width and height, the frame of its boxes, of the image records that state both."""
    sides = {coco_id: (record.get("width"), record.get("height")) for coco_id, record in records.items()}
    if half := sum((width is None) != (height is None) for width, height in sides.values()):
        print(f"{file}: {half} images state only one of width and height; their boxes are taken as of the picture")
    return {coco_id: (_side(w), _side(h)) for coco_id, (w, h) in sides.items() if w is not None and h is not None}


class _Part:
    """One caption file and its image records."""

    def __init__(self, part: CocoPart, root: Path, test_share: float, source: Source, paths: dict[str, str]) -> None:
        """`paths` maps the path of each picture read so far, of all parts, to its record."""
        self.options, self.file = part, root / part.captions
        self.content = read_json(self.file, "the file that dataset.coco.parts.captions names")
        self.pictures: dict[int, _Picture] = {}
        """By COCO id."""
        self.rejected: set[int] = set()
        """COCO ids of images whose record was set aside."""
        records = {}
        for number, record in enumerate(require_field(self.content, "images", list, str(self.file))):
            with source.reject_errors("image"):
                records[self._add(record, f"{self.file}: images[{number}]", test_share, paths)] = record
        self.stated = _stated_sizes(records, self.file)

    def _add(self, record: Any, where: str, test_share: float, paths: dict[str, str]) -> int:
        """Add an image record to `pictures`; return its COCO id."""
        part = self.options
        coco_id = require_field(record, "id", int, where)
        if coco_id in self.pictures:
            first = self.pictures[coco_id].where
            raise BadRecord(f"{where}.id", f"{coco_id} is there twice, first at {first}")
        self.rejected.add(coco_id)  # until the whole record is read
        split = "test" if part.split == "val" and in_test_share(coco_id, test_share) else part.split
        path = join_path(part.images, require_field(record, "file_name", str, where))
        # Checked before captions and boxes are read: they would go to the first record, which may be of another split.
        if path in paths:
            raise BadRecord(f"{where}.file_name", f"{shown(path)} is there twice, first at {paths[path]}")
        paths[path] = where
        self.pictures[coco_id] = _Picture(path, split, where, join_path(part.images))
        self.rejected.discard(coco_id)
        return coco_id


def _corners(record: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """COCO's box (left, top, width, height) as XYXY."""
    box = require_field(record, "bbox", list, where)
    if len(box) != 4 or not all(map(_is_number, box)):
        raise BadRecord(f"{where}.bbox", f"{shown(box)} is not four numbers")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise BadRecord(f"{where}.bbox", f"{shown(box)} has a negative side; expected left, top, width and height")
    return x, y, x + width, y + height


def _categories(content: dict[str, Any], file: Path) -> dict[int, str]:
    """The names of the object categories, by id."""
    categories: dict[int, str] = {}
    for number, record in enumerate(require_field(content, "categories", list, str(file))):
        where = f"{file}: categories[{number}]"
        name = require_field(record, "name", str, where)
        if not is_unicode(name):
            raise BadRecord(f"{where}.name", f"{shown(name)} holds half a character (a lone surrogate)")
        category = require_field(record, "id", int, where)
        if categories.setdefault(category, name) != name:
            raise BadRecord(f"{where}.id", f"{category} is {shown(categories[category])} already, here {shown(name)}")
    return categories


def _read_boxes(file: Path, part: _Part, ids: dict[int, str], source: Source) -> None:
    """Read the boxes of the images in `ids` (COCO id -> image id). Crowds, empty boxes and boxes of other images, all
    of which COCO's own files have, are left out and counted.

    The size that this file states for an image replaces that of the caption file, because it is the frame of the boxes.

    Raises:
        InputError: all boxes are of other images: the file belongs to another caption file.
    """
    content = read_json(file, "the file that dataset.coco.parts.instances names")
    categories = _categories(content, file)
    images = content.get("images", [])
    named = [record for record in images if isinstance(record, dict)] if isinstance(images, list) else []
    records = {record["id"]: record for record in named if isinstance(record.get("id"), int) and record["id"] in ids}
    source.stated |= {ids[coco_id]: size for coco_id, size in _stated_sizes(records, file).items()}
    left_out: Counter[str] = Counter()
    own = False
    for number, record in enumerate(require_field(content, "annotations", list, str(file))):
        where = f"{file}: annotations[{number}]"
        with source.reject_errors("box"):
            coco_id = require_field(record, "image_id", int, where)
            own = own or coco_id in ids or coco_id in part.rejected
            if coco_id in part.rejected:
                continue
            image_id = ids.get(coco_id)
            if image_id is None or record.get("iscrowd"):
                left_out[UNLISTED if image_id is None else "of crowds"] += 1
                continue
            category = require_field(record, "category_id", int, where)
            if category not in categories:
                raise BadRecord(f"{where}.category_id", f"{category} is not in categories")
            corners = _corners(record, where)
            if corners[2] > corners[0] and corners[3] > corners[1]:
                source.boxes.append(SourceBox(image_id, corners, categories[category]))
            else:
                left_out["without an area"] += 1
    if left_out[UNLISTED] and not own:
        of = f". Of its records {len(source.rejected)} cannot be used: {source.rejected[0]}" if source.rejected else ""
        raise InputError(f"{file}: annotations: all boxes are {UNLISTED}; expected those of {part.file}{of}")
    for reason, count in left_out.items():
        print(f"{file}: {count} boxes {reason} are left out")


def _read_captions(part: _Part, ids: dict[int, str], source: Source) -> None:
    for number, record in enumerate(require_field(part.content, "annotations", list, str(part.file))):
        where = f"{part.file}: annotations[{number}]"
        with source.reject_errors("caption"):
            coco_id = require_field(record, "image_id", int, where)
            if coco_id in part.rejected:
                continue
            if coco_id not in ids:
                raise BadRecord(f"{where}.image_id", f"{coco_id} is not in images")
            text = require_field(record, "caption", str, where)
            source.captions.append(SourceCaption(ids[coco_id], text, where, record.get("id")))


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Read the annotation files, part by part.

    A record is set aside if it lacks a key, repeats an id or a picture, is a caption of no image or an invalid box.

    Raises:
        InputError: a file is missing or in another form.
    """
    options, root = params.coco.parts, named_path(params.root)
    if not options:
        raise InputError("dataset.coco.parts: is empty; expected one entry for each annotation file")
    source, test_share = Source(images=[], captions=[]), 0.0
    given = {part.split for part in options}
    if "val" in given and "test" not in given:
        test_share = params.coco.test_share
        share, otherwise = f"dataset.coco.test_share: {test_share:g}", "or add a part of the split test"
        source.hashed_splits = {"val": (share, f"lower it, {otherwise}"), "test": (share, f"raise it, {otherwise}")}
    for number, option in enumerate(options):
        source.folders[f"dataset.coco.parts.images of part {number}"] = root / option.images
    paths: dict[str, str] = {}
    parts = [_Part(option, root, test_share, source, paths) for option in options]
    names = iter(image_ids([picture.path for part in parts for picture in part.pictures.values()]))
    for part in parts:
        ids = {coco_id: next(names) for coco_id in part.pictures}
        source.images += [SourceImage(ids[coco_id], *picture) for coco_id, picture in part.pictures.items()]
        source.stated |= {ids[coco_id]: size for coco_id, size in part.stated.items()}
        _read_captions(part, ids, source)
        if part.options.instances is not None:
            _read_boxes(root / part.options.instances, part, ids, source)
    return source
