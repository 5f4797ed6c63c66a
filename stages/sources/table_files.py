"""Reads files of captions as rows of cells: CSV and other delimited text, token files, Parquet, JSONL."""

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts import read_text
from stages.errors import InputError, shown
from stages.sources.formats import SUFFIXES

COLUMNS, OPTIONAL = ("image", "caption"), ("split", "group")
FLICKR30K = {"image_name": "image", "comment": "caption"}
"""The column names in the common CSV of Flickr30K."""
ALSO = FLICKR30K | {
    "file_name": "image", "filename": "image", "filepath": "image",
    "text": "caption", "captions": "caption", "title": "caption",
}  # fmt: skip
"""The column names in image folders of Hugging Face (metadata.csv or .jsonl) and in OpenCLIP; those above go first."""
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
"""Possible delimiters of a CSV: Excel writes semicolons where numbers have decimal commas."""


def _meant(name: str, also: Mapping[str, str]) -> str:
    """The column that a name in a file's header means."""
    plain = name.strip().strip('"').strip().lower()
    return also.get(plain, plain)


def _check_columns(file: Path, names: Sequence[str], delimited: str = "") -> dict[str, str]:
    """Return the columns to read and their names in the file, which may differ in case and surrounding spaces."""
    found = {}
    for column in (*COLUMNS, *OPTIONAL):
        # An exact name goes before names that only resemble it.
        same = [name for name in names if name == column]
        for also in ({}, FLICKR30K, ALSO):
            same = same or [name for name in names if _meant(name, also) == column]
        if len(same) != 1 and (column in COLUMNS or same):
            plain = (str(name)[:40] for name in names[:12])
            header = ", ".join(name if name.isprintable() else shown(name) for name in plain)
            raise InputError(
                f"{file}: column {column!r} is there {len(same)} times; expected the columns "
                f"{', '.join(COLUMNS)} and maybe {' or '.join(OPTIONAL)}{delimited}, found {header or 'none'}"
            )
        if same:
            found[column] = same[0]
    return found


_TOKENS = re.compile(r"([^\t]+)#\d+\t(.*)")
"""A line of the token files of Flickr8k and Flickr30K."""
Cells = list[Any] | str | None
"""The cells of a row, or why they cannot be read; None: an empty line."""


def _delimiter(header: str) -> str:
    """The delimiter of a CSV: the one that splits its header into the columns, or else a comma."""
    for also, delimiter in itertools.product((FLICKR30K, ALSO), DELIMITERS):
        if {_meant(name, also) for name in header.split(delimiter)} >= set(COLUMNS):
            return delimiter
    return ","


def _read_csv(file: Path) -> tuple[list[str], list[Cells]]:
    # Only a newline ends a row: a carriage return or U+2028 inside a caption does not.
    text = read_text(file, "a CSV in UTF-8").replace("\r\n", "\n")
    # Python's csv reader also ends rows at carriage returns, so a character that is not in the text replaces them.
    stand_in = next((chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text), "\r")
    first = next((line for line in io.StringIO(text) if line.strip(" \t\r\n,;|")), "").rstrip("\n")
    if _TOKENS.fullmatch(first):
        lines = re.split(r"\n|\r(?=[^\t\r\n]+#\d+\t)", text)  # old Macs' ends, too, but none inside a caption
        return list(COLUMNS), [_tokens(line, number) for number, line in enumerate(lines, start=1)]
    delimiter, divided = _delimiter(first), ", divided by commas"
    # Checked before quotes are parsed: with another delimiter they may have no meaning.
    if first and '"' not in first:
        _check_columns(file, first.split(delimiter), divided)
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows_text = io.StringIO(text.replace("\r", stand_in), newline="\n")
        records = _records(csv.reader(rows_text, delimiter=delimiter, strict=True), file)
    finally:
        csv.field_size_limit(limit)
    while records and not any(cell.strip() for cell in records[0][1]):
        records.pop(0)
    if not records:
        raise InputError(f"{file}: is not a CSV: holds nothing; expected the columns {', '.join(COLUMNS)}")
    header = [cell.replace(stand_in, "\r") for cell in records[0][1]]
    columns = _check_columns(file, header, divided)
    positions = [header.index(name) for name in columns.values()]
    rows: list[Cells] = []
    for number, (line, cells) in enumerate(records[1:], start=1):
        if _holds_rows(cells, header, columns["image"], delimiter):
            last = line + sum(cell.count("\n") for cell in cells)
            rows.append(
                f"is not a CSV at lines {line} to {last} (row {number}): a cell holds further rows; expected a cell "
                "that begins with double quotes to end with them"
            )
        elif len(cells) > len(header):
            rows.append(
                f"is not a CSV at line {line} (row {number}): {len(cells)} cells; expected {len(header)}, and double "
                f"quotes around a text that holds a {DELIMITERS[delimiter]}"
            )
        elif len(cells) < 2 and not "".join(cells).strip():
            rows.append(None)
        else:
            padded = cells + [""] * (len(header) - len(cells))
            rows.append([padded[at].replace(stand_in, "\r") for at in positions])
    return list(columns), rows


def _holds_rows(cells: list[str], header: list[str], image: str, delimiter: str) -> bool:
    """Whether a cell has swallowed rows, because its quotes end in a later one. A line of a caption may have as many
    commas as a row, but it names no picture where a row does."""
    at = header.index(image)
    for number, cell in enumerate(cells):
        lines = [line.split(delimiter) for line in cell.split("\n")]
        for place, line in enumerate(lines if len(lines) > 1 else ()):
            before = cells[:number] if place == 0 else []
            row = before + line + (cells[number + 1 :] if place == len(lines) - 1 else [])
            inside = len(before) <= at < len(before) + len(line)
            if len(row) == len(header) and inside and PurePath(row[at].strip()).suffix.lower() in SUFFIXES:
                return True
    return False


def _records(reader: Any, file: Path) -> list[tuple[int, list[str]]]:
    """Return the cells of every record of a CSV, and the line at which it begins.

    Raises:
        InputError: double quotes are misplaced; parsing on would swallow the rows up to the next ones.
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


def _tokens(line: str, number: int) -> Cells:
    """The image and the caption in a line of Flickr8k.token.txt, which has no header."""
    if not line.strip():
        return None
    fields = _TOKENS.fullmatch(line)
    if fields is None:
        return f"holds {shown(line)} at line {number}; expected image#number, a tab and a caption"
    return list(fields.groups())


def cells_of(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column. A text that is not UTF-8 is returned as its bytes, so that its row can be set aside."""
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


def _read_jsonl(file: Path) -> tuple[list[str], list[Cells]]:
    lines = read_text(file, "JSON objects in UTF-8, one in a line").split("\n")
    records = [_record(line, number) if line.strip() else None for number, line in enumerate(lines, start=1)]
    names = dict.fromkeys(key for record in records if isinstance(record, dict) for key in record)
    if not names and (wrong := next((record for record in records if record), None)):  # a whole JSON, for instance
        raise InputError(f"{file}: {wrong} in each line")
    columns = _check_columns(file, list(names))
    return list(columns), [
        [record.get(name) for name in columns.values()] if isinstance(record, dict) else record for record in records
    ]


def _record(line: str, number: int) -> dict[str, Any] | str:
    """The object in a line of a JSONL, or why there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON at line {number}: {str(error)[:200]}; expected a JSON object"
    return record if isinstance(record, dict) else f"holds {shown(record)} at line {number}; expected a JSON object"


def _read_parquet(file: Path) -> tuple[list[str], list[Cells]]:
    try:
        schema = pq.read_schema(file)
        columns = _check_columns(file, schema.names)
        for column, name in columns.items():
            held = schema.field(name).type
            kind = held.value_type if column == "caption" and isinstance(held, _LISTS) else held
            # Pictures as bytes, as in data sets of Hugging Face: the error names the type, and they are never read.
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                unpack = "; `python -m pipelines.unpack` writes such pictures into files" if column == "image" else ""
                raise InputError(f"{file}: column {column!r} holds {str(held)[:80]}; expected texts{unpack}")
        # By itself, Arrow decodes the texts of a dictionary while it reads: one that is not UTF-8 would cost the table.
        table = pq.read_table(file, columns=list(columns.values()), partitioning=None, binary_type=pa.large_binary())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: from names of columns
        raise InputError(f"{file}: is not a Parquet file: {str(error)[:200]}") from None
    cells = (cells_of(table.column(name)) for name in columns.values())
    return list(columns), [list(row) for row in zip(*cells, strict=True)]


def read_rows(file: Path) -> tuple[list[str], list[Cells]]:
    """Return the columns that the file has, and their cells in every row, unchanged.

    Raises:
        InputError: the file is missing, not a table, or lacks a column.
    """
    readers = {
        **dict.fromkeys((".csv", ".tsv", ".txt", ".token"), _read_csv),
        ".parquet": _read_parquet,
        ".jsonl": _read_jsonl,
    }
    if file.suffix.lower() not in readers:
        raise InputError(f"{file}: dataset.table.file must end in {', '.join(readers)}")
    if not file.is_file():
        raise InputError(f"{file}: no such file; dataset.table.file names it")
    try:
        return readers[file.suffix.lower()](file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); dataset.table.file names it") from None
