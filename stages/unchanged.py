"""Checks that params and code do not change while a stage runs.

DVC records both as they are when the stage ends. If a user changes params.yaml in the meantime, for the next run, DVC
would record the new value with the result of the old one, and would find nothing to run.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from camp_model.files import sha256_of
from stages.errors import InputError, shown
from stages.params import document
from stages.params.section import PARAMS

OUTPUT_FOLDERS = ("data", "models", "metrics", "plots", "report", "named")
"""Folders that stages write; their content is in the stages' own locks."""


@contextlib.contextmanager
def check_unchanged(stage: str) -> Iterator[None]:
    """Compare a stage's params and code, as listed in dvc.yaml, before and after the body.

    Raises:
        InputError: one of them has changed; the body's results are kept.
    """
    name, pipeline = stage.rpartition(":")[2], Path("dvc.yaml")
    described = document.read(pipeline)["stages"].get(name, {}) if pipeline.is_file() else {}
    keys = [key for key in described.get("params", ()) if isinstance(key, str)]
    code = [
        path
        for dep in described.get("deps", ())
        if Path(dep).parts[0] not in OUTPUT_FOLDERS
        for path in _files(Path(dep))
    ]
    begun, hashes = _values(keys), _hashes(code)
    yield
    now, hashes_now = _values(keys), _hashes(code)
    changed = [
        f"{PARAMS}: {key}: was {shown(begun.get(key))} when {name} began and is {shown(now.get(key))} now"
        for key in begun | now
        if begun.get(key) != now.get(key)
    ]
    changed += [f"{path}: has changed since {name} began" for path in code if hashes[path] != hashes_now[path]]
    if changed:
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        raise InputError(
            f"{changed[0]}{more}; DVC would record the new state with the old state's result. "
            f"Run the stage again, or undo the change and keep the result: dvc commit -f {stage}"
        )


def _values(keys: list[str]) -> dict[str, Any]:
    """The values in params.yaml at some dotted keys and below them."""
    leaves = document.leaves(document.read(PARAMS)) if keys else ()
    return {name: value for name, value in leaves if any(f"{name}.".startswith(f"{key}.") for key in keys)}


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts] or [path]


def _hashes(paths: list[Path]) -> dict[Path, str | None]:
    return {path: sha256_of(path) if path.is_file() else None for path in paths}
