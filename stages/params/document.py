"""How params.yaml and presets are read and written: YAML 1.2, the dialect in which DVC reads and writes them too."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from camp_model.files import replacing
from stages.errors import InputError, shown

MOST_VALUES = 1_000_000
"""Of a document, aliases written out."""


def parse(text: str) -> Any:
    """The value of a YAML 1.2 text.

    Raises:
        ValueError: it is none; the message says where.
    """
    from ruamel.yaml import YAML

    try:
        values = YAML(typ="safe", pure=True).load(text)
        _size(values, set(), {})
    except Exception as error:  # a damaged file can raise almost anything from the parser
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise ValueError(f"is not YAML: {place}{problem[:200]}") from None
    return values


def _size(value: Any, ancestors: set[int], sizes: dict[int, int]) -> int:
    """How many values `leaves` makes of a value: of a list one, of a mapping all, each alias counted.

    Args:
        ancestors: ids of the mappings and lists that it lies in.
        sizes: by id, of the mappings and lists that were looked through.

    Raises:
        ValueError: it holds itself, as an alias can make it, or more than anybody writes, as aliases of aliases can.
    """
    if id(value) in ancestors:
        raise ValueError("a value holds itself (an alias to what it is in)")
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        ancestors.add(id(value))
        items = value.values() if isinstance(value, dict) else value
        count = sum([_size(item, ancestors, sizes) for item in items])
        sizes[id(value)] = 1 + count if isinstance(value, dict) else 1
        ancestors.discard(id(value))
        if sizes[id(value)] > MOST_VALUES:
            raise ValueError(f"aliases make more than {MOST_VALUES:,} values of it")
    return sizes[id(value)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a YAML file of params") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start:,}); expected a YAML file of params") from None


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        InputError: it cannot be read, is no YAML or holds something else.
    """
    try:
        values = parse(_text(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"{shown(values)} is not a mapping"
        raise InputError(f"{path}: {what}; expected sections of params, such as `train:` with `epochs: 5` below it")
    return values


def leaves(values: Mapping[str, Any], like: object = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is no mapping itself.

    Args:
        like: sections as objects. A mapping that is one value there, such as train.learning_rates, is one here.
    """
    for key, value in values.items():
        inner = getattr(like, str(key), None)
        if isinstance(value, Mapping) and value and not isinstance(inner, Mapping):
            yield from leaves(value, inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rewrite(path: Path, values: Mapping[str, Any]) -> None:
    """Give the YAML file `path` these values, whole or not at all; its comments and the order of its keys stay.

    Raises:
        InputError: the file cannot be read, or would not read back as these values.
    """
    from ruamel.yaml import YAML

    read(path)
    round_trip = YAML()
    round_trip.Representer = _representer()
    round_trip.width = 1_000_000  # nothing is folded
    round_trip.preserve_quotes = True  # a text that stays as it was may need those that it has
    document = round_trip.load(_text(path))
    _update(document, values)
    with replacing(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            round_trip.dump(document, file)
        if read(temporary) != values:
            raise InputError(f"{path}: cannot be kept in its form (anchors, tags?); expected plain YAML")


def _representer() -> Any:
    """Writes None as `null`, not as nothing."""
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        pass

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    return Representer


def _update(document: Any, values: Mapping[str, Any]) -> None:
    for key in [key for key in document if key not in values]:
        del document[key]
    for key, value in values.items():
        present = document.get(key)
        # One that becomes empty is written anew: over several lines, its `{}` would stand below the key's comment.
        if isinstance(value, Mapping) and value and isinstance(present, Mapping):
            _update(present, value)
        elif (
            key not in document
            or present != value
            or isinstance(present, bool) != isinstance(value, bool)
            or getattr(present, "_exp", None)  # ruamel writes such a number again with digits lost
        ):
            document[key] = _quoted(value)
            comments = document.ca.items.get(key)
            if comments and not comments[3]:
                comments[3] = None  # empty after a list over several lines, it would join the lines that follow
            if comments and comments[2]:  # a longer value has pushed it, and it would stay there
                columns = Counter(item[2].start_mark.column for item in document.ca.items.values() if item[2])
                comments[2].start_mark.column = columns.most_common(1)[0][0]


def _quoted(value: Any) -> Any:
    """Values as they are to be written: lists on one line, and in quotes what is neither a name nor a path."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString, PlainScalarString

    if isinstance(value, str):  # a bare str would take over the quotes of what stood there
        plain = re.fullmatch(r"[\w./-]*", value, re.ASCII)
        return PlainScalarString(value) if plain else DoubleQuotedScalarString(value)
    written: Any
    if isinstance(value, list):
        written = CommentedSeq(map(_quoted, value))
    elif isinstance(value, dict):
        written = CommentedMap({key: _quoted(item) for key, item in value.items()})
    else:
        return value
    if isinstance(value, dict) or not any(isinstance(item, dict) for item in value):
        written.fa.set_flow_style()
    return written
