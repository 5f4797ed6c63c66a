"""Presets: files that each say the keys of one subject, laid over the defaults of the params one after another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.errors import InputError, shown
from stages.params import document
from stages.params.pipeline import Params
from stages.params.section import PARAMS, Section


def merge(base: dict[str, Any], overlay: dict[str, Any], sections: object) -> dict[str, Any]:
    """`base` with the values of `overlay` in place of its own, sections key by key; a value that is a mapping, such as
    train.learning_rates, is replaced whole."""
    nested = {key: merge(base[key], value, inner) for key, value in overlay.items()
              if isinstance(inner := getattr(sections, str(key), None), Section) and isinstance(value, dict)
              and isinstance(base.get(key), dict)}  # fmt: skip
    return base | overlay | nested


def compose(presets: Sequence[Path]) -> tuple[Params, list[str]]:
    """The params that the defaults and the presets make, and a note on each key that a later preset overrides.

    Raises:
        InputError: a preset cannot be read, or what it says is wrong; the message names it.
    """
    params = defaults = Params()
    values = defaults.to_dict()
    notes: list[str] = []
    origin: dict[str, Path] = {}
    wrong: tuple[Path, str] | None = None
    for preset in presets:
        overlay = document.read(preset)
        before = dict(document.leaves(values, defaults))
        for key, value in document.leaves(overlay, defaults):
            if key in origin and before.get(key) != value:
                old, new = shown(before.get(key)), shown(value)
                notes.append(f"{key}: {new} from {preset}, not {old} from {origin[key]}")
            origin[key] = preset
        values = merge(values, overlay, defaults)
        try:
            params, wrong = Params.from_dict(values), None
        except InputError as error:  # a preset that follows may say the other half of a pair of keys
            wrong = wrong if wrong and wrong[1] == str(error) else (preset, str(error))
    if wrong:
        raise InputError(f"{wrong[0]}: {wrong[1]}")
    return params, notes


def apply_presets(presets: Sequence[Path], path: Path = PARAMS) -> list[str]:
    """Write the params of `compose` to params.yaml, keeping comments and the order of keys. Returns its notes.

    Raises:
        InputError: as `compose`, or params.yaml cannot be read or written; it stays as it was.
    """
    params, notes = compose(presets)
    document.rewrite(path, params.to_dict())
    return notes
