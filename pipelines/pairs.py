"""Pairs of names and values, as given in options or JSON."""

from collections.abc import Iterable
from typing import TypeVar

from stages.errors import InputError

V = TypeVar("V")


def by_name(pairs: Iterable[tuple[str, V]]) -> dict[str, V]:
    """The pairs as a dict.

    Raises:
        InputError: a name is there twice; a dict would silently keep its last value alone.
    """
    values: dict[str, V] = {}
    for name, value in pairs:
        if name in values:
            raise InputError(f"{name}: is there twice; expected it once")
        values[name] = value
    return values
