"""A CSV, Parquet or JSONL with the columns image and caption: a person's own pictures.

A row is a caption, or in a Parquet or JSONL an image with a list of them.

A column `split` says where an image belongs. Without it a hash of the picture decides, or of what stands in a column
`group`, so that the pictures of one group (the views of a product, the frames of a film) stay together.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts import read_text
from stages.errors import InputError, shown
from stages.params.dataset import SPLITS, DatasetParams
from stages.sources.base import BadRecord, Source, SourceCaption, SourceImage, image_ids, join, split_named
from stages.sources.checks import is_unicode
from stages.workspace import named_path

COLUMNS, OPTIONAL = ("image", "caption"), ("split", "group")
FLICKR30K = {"image_name": "image", "comment": "caption"}
"""What the CSV of Flickr30K that goes around calls the columns."""
ALSO = FLICKR30K | {
    "file_name": "image", "filename": "image", "filepath": "image",
    "text": "caption", "captions": "caption", "title": "caption",
}  # fmt: skip
"""What image folders of Hugging Face (metadata.csv or .jsonl) and OpenCLIP call them; the names above go first."""
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
"""What may stand between the cells of a CSV: Excel writes semicolons where numbers have decimal commas."""


def _meant(name: str, also: Mapping[str, str]) -> str:
    """The column that a name of a file's header means."""
    plain = name.strip().strip('"').strip().lower()
    return also.get(plain, plain)


def _check_columns(file: Path, names: Sequence[str], delimited: str = "") -> dict[str, str]:
    """The columns that are read, and what the file calls them: in capitals or between spaces where that is clear."""
    found = {}
    for column in (*COLUMNS, *OPTIONAL):
        # The very name goes before others that only look like it.
        same = [name for name in names if name == column]
        for also in ({}, FLICKR30K, ALSO):
            same = same or [name for name in names if _meant(name, also) == column]
        if len(same) != 1 and (column in COLUMNS or same):
            header = ", ".join(str(name)[:40] for name in names[:12])
            raise InputError(
                f"{file}: column {column!r} is there {len(same)} times; expected the columns "
                f"{', '.join(COLUMNS)} and maybe {' or '.join(OPTIONAL)}{delimited}, found {header or 'none'}"
            )
        if same:
            found[column] = same[0]
    return found


_Cells = list[Any] | str | None
"""The cells of a row, or why they cannot be told; None: an empty line."""


def _delimiter(header: str) -> str:
    """What stands between the cells of a CSV: that which divides its header into the columns, or else a comma."""
    for also, delimiter in itertools.product((FLICKR30K, ALSO), DELIMITERS):
        if {_meant(name, also) for name in header.split(delimiter)} >= set(COLUMNS):
            return delimiter
    return ","


def _read_csv(file: Path) -> tuple[list[str], list[_Cells]]:
    # A newline alone ends a row: a carriage return or U+2028 inside a caption does not.
    text = read_text(file, "a CSV in UTF-8").replace("\r\n", "\n")
    # To Python's reader a carriage return does, so another character, that the text does not hold, stands for it.
    stand_in = next((chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text), "\r")
    first = next((line for line in io.StringIO(text) if line.strip(" \t\r\n,;|")), "").rstrip("\n")
    delimiter, divided = _delimiter(first), ", divided by commas"
    # Before quotes further down, which may mean nothing where something else divides the cells.
    if first and '"' not in first:
        _check_columns(file, first.split(delimiter), divided)
    limit = csv.field_size_limit(len(text) + 1)
    try:
        lines = io.StringIO(text.replace("\r", stand_in), newline="\n")
        records = _records(csv.reader(lines, delimiter=delimiter, strict=True), file)
    finally:
        csv.field_size_limit(limit)
    while records and not any(cell.strip() for cell in records[0][1]):
        records.pop(0)
    if not records:
        raise InputError(f"{file}: is not a CSV: holds nothing; expected the columns {', '.join(COLUMNS)}")
    header = [cell.replace(stand_in, "\r") for cell in records[0][1]]
    columns = _check_columns(file, header, divided)
    places = [header.index(name) for name in columns.values()]
    rows: list[_Cells] = []
    for number, (line, cells) in enumerate(records[1:], start=1):
        if len(cells) > len(header):
            rows.append(
                f"is not a CSV at line {line} (row {number}): {len(cells)} cells; expected {len(header)}, and double "
                f"quotes around a text that holds a {DELIMITERS[delimiter]}"
            )
        elif len(cells) < 2 and not "".join(cells).strip():
            rows.append(None)
        else:
            padded = cells + [""] * (len(header) - len(cells))
            rows.append([padded[place].replace(stand_in, "\r") for place in places])
    return list(columns), rows


def _records(reader: Any, file: Path) -> list[tuple[int, list[str]]]:
    """The cells of every record of a CSV, and the line that it begins at.

    Raises:
        InputError: double quotes stand where they mean nothing; read on, they would swallow the rows up to the next.
    """
    records, line = [], 1
    try:
        for cells in reader:
            records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        at = f"line {line}" if reader.line_num <= line else f"lines {line} to {reader.line_num}"
        raise InputError(
            f"{file}: is not a CSV at {at}: {str(error)[:200]}; expected a cell that begins with double quotes to end "
            'with them, and those inside it to be doubled: """Hello"" says the dog"'
        ) from None
    return records


def _texts(column: pa.ChunkedArray) -> list[Any]:
    """What a column holds; where texts are not UTF-8 their bytes, which `_row` finds to be no text."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        kind = pa.large_list(pa.large_binary()) if isinstance(column.type, _LISTS) else pa.large_binary()
        return [_decoded(cell) for cell in column.cast(kind).to_pylist()]


def _decoded(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_decoded(one) for one in cell]
    try:
        return cell.decode() if cell is not None else None
    except UnicodeDecodeError:
        return cell


def _read_jsonl(file: Path) -> tuple[list[str], list[_Cells]]:
    lines = read_text(file, "JSON objects in UTF-8, one in a line").split("\n")
    records = [_record(line, number) if line.strip() else None for number, line in enumerate(lines, start=1)]
    names = dict.fromkeys(key for record in records if isinstance(record, dict) for key in record)
    columns = _check_columns(file, list(names))
    return list(columns), [
        [record.get(name) for name in columns.values()] if isinstance(record, dict) else record for record in records
    ]


def _record(line: str, number: int) -> dict[str, Any] | str:
    """The object that stands in a line of a JSONL, or why it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON at line {number}: {str(error)[:200]}"
    return record if isinstance(record, dict) else f"holds {shown(record)} at line {number}; expected a JSON object"


def _read_parquet(file: Path) -> tuple[list[str], list[_Cells]]:
    try:
        schema = pq.read_schema(file)
        columns = _check_columns(file, schema.names)
        for column, name in columns.items():
            held = schema.field(name).type
            kind = held.value_type if column == "caption" and isinstance(held, _LISTS) else held
            # Pictures as bytes, as in the data sets of Hugging Face: named by their type, never read.
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                raise InputError(f"{file}: column {column!r} holds {str(held)[:80]}; expected texts")
        table = pq.read_table(file, columns=list(columns.values()), partitioning=None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of the names of columns
        raise InputError(f"{file}: is not a Parquet file: {str(error)[:200]}") from None
    cells = (_texts(table.column(name)) for name in columns.values())
    return list(columns), [list(row) for row in zip(*cells, strict=True)]


def _read_rows(file: Path) -> tuple[list[str], list[_Cells]]:
    """The columns that are there, and their cells in every row, as they stand in the file."""
    readers = {
        ".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl,
    }  # fmt: skip
    if file.suffix.lower() not in readers:
        raise InputError(f"{file}: dataset.table.file must end in {', '.join(readers)}")
    if not file.is_file():
        raise InputError(f"{file}: no such file; dataset.table.file names it")
    try:
        return readers[file.suffix.lower()](file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); dataset.table.file names it") from None


def _captions_of(columns: list[str], rows: list[_Cells]) -> Iterator[tuple[int, list[Any] | str]]:
    """The number of its row, from 1, and the cells of every caption: a row with a list of them is as many."""
    place = columns.index("caption")
    for number, cells in enumerate(rows, start=1):
        if isinstance(cells, list) and isinstance(cells[place], list):
            for caption in cells[place] or [None]:
                yield number, [*cells[:place], caption, *cells[place + 1 :]]
        elif cells is not None:
            yield number, cells


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
        if not empty and (not isinstance(cell, str) or not cell.strip() or not is_unicode(cell)):
            raise BadRecord(where, f"column {column!r} holds {shown(cell)}; expected a text")
    split, group = (str(values.get(name) or "").strip() for name in OPTIONAL)
    split = split_named(split)
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
    if all(cells is None for cells in rows):
        ended = "" if file.suffix.lower() in (".parquet", ".jsonl") else ", ended by a newline"
        raise InputError(f"{file}: holds no rows; expected one for each caption{ended}")
    if "split" in columns and not any(isinstance(row, list) and row[columns.index("split")] for row in rows):
        place = columns.index("split")
        print(f"{file}: the column split holds nothing: a hash decides")
        rows = [row[:place] + row[place + 1 :] if isinstance(row, list) else row for row in rows]
        columns = [column for column in columns if column != "split"]
    source = Source(images=[], captions=[], folders={"dataset.table.images": root / options.images})
    images: dict[str, _Row] = {}
    captions: list[tuple[str, _Row]] = []
    path_of = cache(partial(join, options.images))
    for number, cells in _captions_of(columns, rows):
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
    if "split" not in columns:
        val, test = f"val_share: {options.val_share:g}", f"test_share: {options.test_share:g}"
        otherwise = f"or give {file} a column split"
        source.hashed_splits = {
            "train": (f"dataset.table.{val} and {test}", f"lower them, {otherwise}"),
            "val": (f"dataset.table.{val}", f"raise it, {otherwise}"),
            "test": (f"dataset.table.{test}", f"raise it, {otherwise}"),
        }
    return source
