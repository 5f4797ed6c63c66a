"""A CSV or Parquet with the columns image, caption and split, one row for each caption: a person's own pictures."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.sources.base import Source, SourceCaption, SourceImage, check_folder, image_ids, join
from stages.workspace import named_path

COLUMNS = ("image", "caption", "split")


def _check_columns(file: Path, names: list[str]) -> None:
    for column in COLUMNS:
        if names.count(column) != 1:
            raise InputError(
                f"{file}: column {column!r} is there {names.count(column)} times; expected the columns "
                f"{', '.join(COLUMNS)}, found {', '.join(names) or 'none'}"
            )


def _read_csv(file: Path) -> list[list[Any]]:
    try:
        # Every cell stays the text it is: a caption "NA" or "null" is a caption.
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig", header=None)
    except ValueError as error:  # pandas' parser errors and undecodable bytes alike
        raise InputError(f"{file}: is not a CSV in UTF-8: {error}") from None
    header, *rows = frame.to_numpy().tolist()
    _check_columns(file, header)
    places = [header.index(column) for column in COLUMNS]
    return [[row[place] for place in places] for row in rows]


def _read_parquet(file: Path) -> list[list[Any]]:
    try:
        _check_columns(file, pq.read_schema(file).names)
        table = pq.read_table(file, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: is not a Parquet file: {error}") from None
    return [list(row) for row in zip(*(table.column(column).to_pylist() for column in COLUMNS), strict=True)]


def _read_rows(file: Path) -> list[list[Any]]:
    """image, caption and split of every row, as they stand in the file."""
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix.lower() not in readers:
        raise InputError(f"{file}: dataset.table.file must end in .csv or .parquet")
    if not file.is_file():
        raise InputError(f"{file}: no such file; dataset.table.file names it")
    return readers[file.suffix.lower()](file)


def read_source(params: DatasetParams, image_out: Path) -> Source:
    """Read the table.

    Raises:
        InputError: the file or folder is missing, no table, lacks a column, holds something other than text, or
            gives one image two splits.
    """
    root, options = named_path(params.root), params.table
    file = root / options.file
    rows = _read_rows(file)
    check_folder(root / options.images, "dataset.table.images")
    images: dict[str, tuple[str, str]] = {}
    captions: list[tuple[str, str, str]] = []
    for number, cells in enumerate(rows, start=1):
        where = f"{file}: row {number}"
        for column, cell in zip(COLUMNS, cells, strict=True):
            if not isinstance(cell, str) or not cell.strip():
                raise InputError(f"{where}: column {column!r} holds {cell!r}; expected a text")
        image, caption, split = cells[0].strip(), cells[1], cells[2].strip()
        path = join(options.images, image)
        first_split, first_where = images.setdefault(path, (split, where))
        if split != first_split:
            raise InputError(
                f"{where}: image {image!r} is in the split {split!r} here and in {first_split!r} at {first_where}"
            )
        captions.append((path, caption, where))
    ids = dict(zip(images, image_ids(list(images)), strict=True))
    return Source(
        images=[SourceImage(ids[path], path, split, where) for path, (split, where) in images.items()],
        captions=[SourceCaption(ids[path], caption, where) for path, caption, where in captions],
    )
