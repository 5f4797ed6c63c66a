"""The table of foils: one Parquet file per split, a row per foil."""

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
"""A caption table whose texts and tokens are those of the foils, with four more columns; a caption may come often."""
AT_ONCE = 10_000
"""Rows that become a part of a table together."""


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
    """Rows of SCHEMA as a table; never more than AT_ONCE of them are held, for a row takes many times its bytes."""
    rows, tables = iter(rows), [SCHEMA.empty_table()]
    while some := list(islice(rows, AT_ONCE)):
        tables.append(pa.Table.from_pylist(some, SCHEMA))
    return pa.concat_tables(tables).combine_chunks()


def read_foils(path: Path) -> Foils:
    """Read a file of a `foil_table`.

    Raises:
        InputError: the file cannot be read or is of another format.
    """
    with input_errors():
        captions = CaptionTable.load(path)
    types = {field.name: field.type for field in _MORE}
    columns = read_table(path, types, f"{path.name} of the stage tokenize_captions").to_pydict()
    return Foils(captions, columns["kind"], columns["position"], columns["word"], columns["foil_word"])
