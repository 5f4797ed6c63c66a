"""A user's own pictures: a CSV, Parquet or JSONL file with the columns image and caption.

A row is one caption or, in Parquet and JSONL, one image with a list of captions.

A column `split` states the split of an image. Without it a hash decides: of the picture, or of the value in a column
`group`, so that pictures of one group (views of a product, frames of a film) get the same split.
"""

import math
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from camp_model.files import is_unicode
from stages.errors import InputError, shown
from stages.params.dataset import SPLITS, DatasetParams
from stages.sources.base import BadRecord, Source, SourceCaption, SourceImage, image_ids, join_path, normalise_split
from stages.sources.table_files import OPTIONAL, Cells, read_rows
from stages.workspace import named_path


def _captions_of(columns: list[str], rows: list[Cells]) -> Iterator[tuple[int, list[Any] | str]]:
    """Yield every caption's row number, from 1, and cells; a row with a list of captions yields one of each."""
    at = columns.index("caption")
    for number, cells in enumerate(rows, start=1):
        if isinstance(cells, list) and isinstance(cells[at], list):
            for caption in cells[at] or [None]:
                yield number, [*cells[:at], caption, *cells[at + 1 :]]
        elif cells is not None:
            yield number, cells


_WRITTEN_LIST = re.compile(r"""\[\s*['"].*['"]\s*\]""", re.DOTALL)
"""A list of texts as Python or JSON writes it: pandas does so in a CSV."""

_WHOLE_NUMBER = re.compile(r"\s*([+-]?\d+)\.0\s*")


class _Row(NamedTuple):
    where: str
    image: str
    caption: str
    split: str = ""
    group: str = ""


def _row(columns: list[str], cells: list[Any], where: str) -> _Row:
    values = dict(zip(columns, cells, strict=True))
    group = values.get("group")
    if not isinstance(group, bool) and (isinstance(group, int) or (isinstance(group, float) and group.is_integer())):
        values["group"] = str(int(group))  # product numbers; pandas writes them as floats if some are missing
    elif isinstance(group, str) and (whole := _WHOLE_NUMBER.fullmatch(group)):
        values["group"] = whole[1]  # the same in a CSV: a row without a group must not move the others' groups
    elif isinstance(group, float) and math.isnan(group):  # as NumPy has it where a number is missing
        values["group"] = None
    for column, cell in values.items():
        empty = column == "group" and (cell is None or cell == "")
        if not empty and (not isinstance(cell, str) or not cell.strip() or not is_unicode(cell)):
            raise BadRecord(where, f"column {column!r} holds {shown(cell)}; expected a text")
    if _WRITTEN_LIST.fullmatch(values["caption"].strip()):
        raise BadRecord(
            where,
            f"column 'caption' holds a list as text, {shown(values['caption'])}; expected one caption in each row",
        )
    split, group = (str(values.get(name) or "").strip() for name in OPTIONAL)
    split = normalise_split(split)
    if "split" in columns and split not in SPLITS:
        raise BadRecord(where, f"split {shown(split)} is not one of {', '.join(SPLITS)}")
    return _Row(where, values["image"].strip(), values["caption"], split, group)


def _image_of(row: _Row, path: str, images: dict[str, _Row]) -> str:
    """Return the path of a row's image, after recording the image's first row in `images`."""
    first = images.setdefault(path, row)
    for column, value, before in (("split", row.split, first.split), ("group", row.group, first.group)):
        if value != before:
            both = f"the {column} {shown(value)} here and in {shown(before)} at {first.where}"
            raise BadRecord(row.where, f"image {shown(row.image)} is in {both}")
    return path


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Read the table.

    A row is set aside if it has too many cells, a cell that is not text, a wrong split, or another split or group than
    an earlier row of the same image.

    Raises:
        InputError: the file is missing, not a table, or lacks a column.
    """
    root, options = named_path(params.root), params.table
    file = root / options.file
    columns, rows = read_rows(file)
    if all(cells is None for cells in rows):
        ended = "" if file.suffix.lower() in (".parquet", ".jsonl") else ", ended by a newline"
        raise InputError(f"{file}: holds no rows; expected one for each caption{ended}")
    if "split" in columns and not any(isinstance(row, list) and row[columns.index("split")] for row in rows):
        at = columns.index("split")
        print(f"{file}: the column split holds nothing: a hash decides")
        rows = [row[:at] + row[at + 1 :] if isinstance(row, list) else row for row in rows]
        columns = [column for column in columns if column != "split"]
    source = Source(images=[], captions=[], folders={"dataset.table.images": root / options.images})
    images: dict[str, _Row] = {}
    captions: list[tuple[str, _Row]] = []
    path_of = cache(partial(join_path, options.images))
    for number, cells in _captions_of(columns, rows):
        with source.reject_errors("caption"):
            if isinstance(cells, str):
                raise BadRecord(str(file), cells)
            row = _row(columns, cells, f"{file}: row {number}")
            captions.append((_image_of(row, path_of(row.image), images), row))
    ids = dict(zip(images, image_ids(list(images)), strict=True))
    folder = join_path(options.images)
    source.images = [
        SourceImage(ids[path], path, row.split, row.where, folder, row.group) for path, row in images.items()
    ]
    source.captions = [SourceCaption(ids[path], row.caption, row.where) for path, row in captions]
    if "split" not in columns:
        val, test = f"val_share: {options.val_share:g}", f"test_share: {options.test_share:g}"
        otherwise = f"or give {file} a column split"
        source.hashed_splits = {
            "train": (f"dataset.table.{val} and {test}", f"lower them, {otherwise}"),
            "val": (f"dataset.table.{val}", f"raise it, {otherwise}"),
            "test": (f"dataset.table.{test}", f"raise it, {otherwise}"),
        }
    return source
