"""The table of foils: one Parquet file per split, one row per foil."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from camp_model.captions import SCHEMA as CAPTION_SCHEMA
from camp_model.captions import CaptionTable
from stages.contracts import input_errors, read_table

_MORE = (
    pa.field("kind", pa.string(), nullable=False),
    pa.field("position", pa.int32(), nullable=False),  # of the changed word in tokens
    pa.field("word", pa.string(), nullable=False),  # the caption's own
    pa.field("foil_word", pa.string(), nullable=False),
)
SCHEMA = pa.schema([*CAPTION_SCHEMA, *_MORE], CAPTION_SCHEMA.metadata)
"""A caption table with the foils' texts and tokens and four more columns; a caption may occur several times."""
AT_ONCE = 10_000
"""Rows that are converted to a table at a time."""


@dataclass(frozen=True)
class Foils:
    """The foils of one split. Row i of `captions` and of every other column belongs to foil i."""

    captions: CaptionTable
    kinds: list[str]
    positions: list[int]
    words: list[str]
    foil_words: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def foil_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Convert rows of SCHEMA to a table, AT_ONCE at a time: as Python objects they take many times the bytes."""
    rows, tables = iter(rows), [SCHEMA.empty_table()]
    while some := list(islice(rows, AT_ONCE)):
        tables.append(pa.Table.from_pylist(some, SCHEMA))
    return pa.concat_tables(tables).combine_chunks()


def read_foils(path: Path) -> Foils:
    """Read a file that has a `foil_table`.

    Raises:
        InputError: the file cannot be read or is of another format.
    """
    with input_errors():
        captions = CaptionTable.load(path)
    types = {field.name: field.type for field in _MORE}
    columns = read_table(path, types, f"{path.name} of the stage tokenize_captions").to_pydict()
    return Foils(captions, columns["kind"], columns["position"], columns["word"], columns["foil_word"])
