"""A CSV or Parquet with the columns image and caption, one row for each caption: a person's own pictures.

A column `split` says where an image belongs. Without it a hash of the picture decides, or of what stands in a column
`group`, so that the pictures of one group (the views of a product, the frames of a film) stay together.
"""

import io
import re
import warnings
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts import read_text
from stages.errors import InputError, shown
from stages.params.dataset import SPLITS, DatasetParams
from stages.sources.base import BadRecord, Source, SourceCaption, SourceImage, image_ids, join
from stages.workspace import named_path

COLUMNS, OPTIONAL = ("image", "caption"), ("split", "group")


def _check_columns(file: Path, names: list[str]) -> list[str]:
    """The columns of `names` that are read."""
    for column in (*COLUMNS, *OPTIONAL):
        if names.count(column) != 1 and (column in COLUMNS or column in names):
            header = ", ".join(str(name)[:40] for name in names[:12])
            raise InputError(
                f"{file}: column {column!r} is there {names.count(column)} times; expected the columns "
                f"{', '.join(COLUMNS)} and maybe {' or '.join(OPTIONAL)}, found {header or 'none'}"
            )
    return [column for column in (*COLUMNS, *OPTIONAL) if column in names]


_Cells = list[Any] | str
"""The cells of a row, or why they cannot be told."""


def _read_csv(file: Path) -> tuple[list[str], list[_Cells]]:
    # A newline alone ends a row: a carriage return or U+2028 inside a caption does not.
    text = read_text(file, "a CSV in UTF-8").replace("\r\n", "\n")
    try:
        # Every cell stays the text it is: a caption "NA" or "null" is a caption.
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False, header=None, lineterminator="\n",
                on_bad_lines="warn",
            )  # fmt: skip
    except ValueError as error:  # pandas' parser errors
        raise InputError(f"{file}: is not a CSV in UTF-8: {str(error)[:200]}") from None
    header, *rows = frame.to_numpy().tolist()
    columns = _check_columns(file, header)
    places = [header.index(column) for column in columns]
    return columns, _with_overlong(([row[place] for place in places] for row in rows), file, said)


def _with_overlong(rows: Iterable[list[Any]], file: Path, said: Iterable[warnings.WarningMessage]) -> list[_Cells]:
    """The rows of a CSV with those in their places that pandas leaves out, for they have more cells than the header."""
    reasons: dict[int, str] = {}
    for line in "\n".join(str(warning.message).strip() for warning in said).splitlines():
        numbers = re.fullmatch(r"Skipping line (\d+): expected (\d+) fields, saw (\d+)", line)
        if numbers is None:
            raise InputError(f"{file}: is not a CSV in UTF-8: {line[:200]}")
        record, expected, cells = map(int, numbers.groups())
        reasons[record - 2] = (
            f"is not a CSV at line {record} (row {record - 1}): {cells} cells; expected {expected}, and double quotes "
            "around a text that holds a comma"
        )
    every: list[_Cells] = []
    for row in rows:
        while len(every) in reasons:
            every.append(reasons.pop(len(every)))
        every.append(row)
    return every + [reason for _, reason in sorted(reasons.items())]


def _texts(column: pa.ChunkedArray) -> list[Any]:
    """What a column holds; where texts are not UTF-8 their bytes, which `_row` finds to be no text."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_decoded(cell) for cell in column.cast(pa.large_binary()).to_pylist()]


def _decoded(cell: bytes | None) -> str | bytes | None:
    try:
        return cell.decode() if cell is not None else None
    except UnicodeDecodeError:
        return cell


def _read_parquet(file: Path) -> tuple[list[str], list[_Cells]]:
    try:
        schema = pq.read_schema(file)
        columns = _check_columns(file, schema.names)
        for column in columns:
            kind = schema.field(column).type
            # Pictures as bytes, as in the data sets of Hugging Face: named by their type, never read.
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                raise InputError(f"{file}: column {column!r} holds {str(kind)[:80]}; expected texts")
        table = pq.read_table(file, columns=columns, partitioning=None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of the names of columns
        raise InputError(f"{file}: is not a Parquet file: {str(error)[:200]}") from None
    return columns, [list(row) for row in zip(*(_texts(table.column(name)) for name in columns), strict=True)]


def _read_rows(file: Path) -> tuple[list[str], list[_Cells]]:
    """The columns that are there, and their cells in every row, as they stand in the file."""
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix.lower() not in readers:
        raise InputError(f"{file}: dataset.table.file must end in .csv or .parquet")
    if not file.is_file():
        raise InputError(f"{file}: no such file; dataset.table.file names it")
    try:
        return readers[file.suffix.lower()](file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); dataset.table.file names it") from None


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
        values["group"] = str(int(group))  # numbers of products; with gaps, pandas writes them as floats
    for column, cell in values.items():
        empty = column == "group" and (cell is None or cell == "")
        if not empty and (not isinstance(cell, str) or not cell.strip()):
            raise BadRecord(where, f"column {column!r} holds {shown(cell)}; expected a text")
    split, group = (str(values.get(name) or "").strip() for name in OPTIONAL)
    if "split" in columns and split not in SPLITS:
        raise BadRecord(where, f"split {shown(split)} is not one of {', '.join(SPLITS)}")
    return _Row(where, values["image"].strip(), values["caption"], split, group)


def _image_of(row: _Row, path: str, images: dict[str, _Row]) -> str:
    """The path of a row's image, which `images` knows from then on by its first row."""
    first = images.setdefault(path, row)
    for column, value, before in (("split", row.split, first.split), ("group", row.group, first.group)):
        if value != before:
            places = f"the {column} {shown(value)} here and in {shown(before)} at {first.where}"
            raise BadRecord(row.where, f"image {shown(row.image)} is in {places}")
    return path


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Read the table.

    A row that holds too many cells, something other than text, a wrong split, or another split or group of an image
    than before is set aside.

    Raises:
        InputError: the file is missing, no table, or lacks a column.
    """
    root, options = named_path(params.root), params.table
    file = root / options.file
    columns, rows = _read_rows(file)
    if not rows:
        raise InputError(f"{file}: holds no rows; expected one for each caption, ended by a newline")
    source = Source(images=[], captions=[], folders={"dataset.table.images": root / options.images})
    images: dict[str, _Row] = {}
    captions: list[tuple[str, _Row]] = []
    path_of = cache(partial(join, options.images))
    for number, cells in enumerate(rows, start=1):
        with source.setting_aside("caption"):
            if isinstance(cells, str):
                raise BadRecord(str(file), cells)
            row = _row(columns, cells, f"{file}: row {number}")
            captions.append((_image_of(row, path_of(row.image), images), row))
    ids = dict(zip(images, image_ids(list(images)), strict=True))
    folder = join(options.images)
    source.images = [
        SourceImage(ids[path], path, row.split, row.where, folder, row.group) for path, row in images.items()
    ]
    source.captions = [SourceCaption(ids[path], row.caption, row.where) for path, row in captions]
    return source
