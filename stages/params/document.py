"""Read and write params.yaml and presets in YAML 1.2, the dialect that DVC uses for them, too."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from camp_model.files import replacing
from stages.errors import InputError, shown

MAX_VALUES = 1_000_000
"""Largest number of values in a document, with each alias counted as a copy."""
MAX_BITS = 1024
"""Bits of a whole number; no float goes beyond, and Python refuses to print what is far longer."""


def parse(text: str) -> Any:
    """Parse a YAML 1.2 text.

    Raises:
        ValueError: the text is not YAML (the message says where), or its aliases hold themselves or too many values, or
            a whole number is longer than any that is used.
    """
    from ruamel.yaml import YAML

    try:
        values = YAML(typ="safe", pure=True).load(text)
        _size(values, set(), {}, "")
    except Exception as error:  # a damaged file can raise almost anything from the parser
        mark = getattr(error, "problem_mark", None)
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise ValueError(f"is not YAML: {position}{problem[:200]}") from None
    return values


def _size(value: Any, ancestors: set[int], sizes: dict[int, int], key: str) -> int:
    """Count the values in a value, with each alias counted as a copy; a list counts as one, as in `leaves`.

    Args:
        value: a parsed value.
        ancestors: ids of the mappings and lists that contain the value.
        sizes: id of a mapping or list -> its count, for those counted so far.
        key: where the value stands, for errors.

    Raises:
        ValueError: an alias makes the value hold itself, or aliases of aliases make more than MAX_VALUES, or a
            whole number has more than MAX_BITS.
    """
    if id(value) in ancestors:
        raise ValueError("a value holds itself (an alias to what it is in)")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError(
            f"{key or 'a value'}: is a number of {value.bit_length():,} bits; expected at most {MAX_BITS:,}"
        )
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        ancestors.add(id(value))
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        # A long key above many values is not copied whole for each of them.
        count = sum([_size(item, ancestors, sizes, f"{key}.{at}".removeprefix(".")[-200:]) for at, item in items])
        sizes[id(value)] = 1 + count if isinstance(value, dict) else 1
        ancestors.discard(id(value))
        if sizes[id(value)] > MAX_VALUES:
            raise ValueError(f"aliases make more than {MAX_VALUES:,} values of it")
    return sizes[id(value)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a YAML file of params") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start:,}); expected a YAML file of params") from None


def read(path: Path) -> dict[str, Any]:
    """Read the mapping that a YAML file holds.

    Raises:
        InputError: the file cannot be read, is not YAML, or holds something other than a mapping.
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
    """Yield (dotted key, value) of every value in nested mappings.

    Args:
        values: the mappings; an empty one counts as a value.
        like: the params as objects; a mapping that is a single value there, such as train.learning_rates, is one here.
        prefix: put before each key.
    """
    for key, value in values.items():
        inner = getattr(like, str(key), None)
        if isinstance(value, Mapping) and value and not isinstance(inner, Mapping):
            yield from leaves(value, inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rewrite(path: Path, values: Mapping[str, Any]) -> None:
    """Write values into the YAML file `path`, whole or not at all; its comments and the order of its keys stay.

    Raises:
        InputError: the file cannot be read, or the new content would not be read back as these values.
    """
    from ruamel.yaml import YAML

    read(path)
    round_trip = YAML()
    round_trip.Representer = _representer()
    round_trip.width = 1_000_000  # no line is folded
    round_trip.preserve_quotes = True  # a text that stays may need its quotes
    document = round_trip.load(_text(path))
    _update(document, values)
    with replacing(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            round_trip.dump(document, file)
        if read(temporary) != values:
            raise InputError(f"{path}: cannot be kept in its form (anchors, tags?); expected plain YAML")


def _representer() -> Any:
    """A class that writes None as `null`, not as nothing."""
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        pass

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    return Representer


def _update(document: Any, values: Mapping[str, Any]) -> None:
    """Change a parsed document in place, so that it holds these values."""
    for key in [key for key in document if key not in values]:
        del document[key]
    for key, value in values.items():
        present = document.get(key)
        # A mapping that becomes empty is replaced: its `{}` would otherwise stand below the key's comment.
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
                comments[3] = None  # after a list over several lines, an empty one would join the following lines
            if comments and comments[2]:  # otherwise a comment stays where a longer value has pushed it
                columns = Counter(item[2].start_mark.column for item in document.ca.items.values() if item[2])
                comments[2].start_mark.column = columns.most_common(1)[0][0]


def _quoted(value: Any) -> Any:
    """Prepare a value for writing: lists go on one line, and a text is quoted unless it is a name or a path."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString, PlainScalarString

    if isinstance(value, str):  # a bare str would inherit the quotes of the old value
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
