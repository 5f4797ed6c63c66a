"""Presets: files laid over params.yaml."""

from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.params.pipeline import load_params


def _merge(base: Any, overlay: Any) -> None:
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def apply_preset(preset: Path, path: Path = Path("params.yaml")) -> None:
    """Lay the keys of `preset` over params.yaml, keeping its comments; nothing is written if the result is wrong."""
    from ruamel.yaml import YAML

    if not preset.is_file():
        raise InputError(f"{preset}: no such preset file")
    round_trip = YAML()
    round_trip.width = 200
    merged = round_trip.load(path.read_text(encoding="utf-8"))
    _merge(merged, round_trip.load(preset.read_text(encoding="utf-8")))
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            round_trip.dump(merged, file)
        try:
            load_params(temporary)
        except InputError as error:
            raise InputError(f"{preset}: {str(error).removeprefix(f'{temporary}: ')}") from None
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
