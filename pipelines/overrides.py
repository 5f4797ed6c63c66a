"""Overrides of params as DVC's experiments take them: values in Hydra's grammar."""

import json
import re
from typing import Any


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
