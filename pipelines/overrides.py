"""Overrides of params by dotted keys: as DVC's experiments take them, in Hydra's grammar; the params they make."""

import json
import re
from collections.abc import Mapping
from typing import Any

from stages.errors import InputError
from stages.params.pipeline import Params


def set_param(key: str, value: Any) -> list[str]:
    """Arguments of `dvc exp run` that give the key of params.yaml this value, whatever it had before.

    A key that an empty mapping is for is taken out, which says the same: params are mappings that are empty by default,
    and where one stood over several lines DVC would write a file that is no YAML.
    """
    if not isinstance(value, dict | list):
        return ["--set-param", f"{key}={_hydra(value)}"]
    # Hydra, which DVC reads them with, would merge it with what is there.
    added = [] if value == {} else ["--set-param", f"+{key}={_hydra(value)}"]
    return ["--set-param", f"~{key}", *added]


def overridden(params: Params, overrides: Mapping[str, Any]) -> Params:
    """The params with other values for some keys.

    Raises:
        InputError: there is no such key, or a value is not allowed, or not beside the others.
    """
    values = params.to_dict()
    for dotted, value in overrides.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})  # one that there is not is refused below
            if not isinstance(place, dict):
                raise InputError(f"{dotted}: {section} has no keys; expected a key of params.yaml")
        place[key] = value
    return Params.from_dict(values)


def _hydra(value: Any) -> str:
    """A value as Hydra's grammar of overrides writes it: keys have no quotes, and in quotes only a quote is escaped."""
    if isinstance(value, dict):
        keys = (re.sub(r"([][(){}:=, \\])", r"\\\1", key) for key in value)
        return f"{{{', '.join(f'{key}: {_hydra(inner)}' for key, inner in zip(keys, value.values(), strict=True))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_hydra, value))}]"
    if isinstance(value, str):
        return '"' + re.sub(r'(\\*)("|\Z)', lambda end: end[1] * 2 + end[2].replace('"', r"\""), value) + '"'
    return json.dumps(value)
