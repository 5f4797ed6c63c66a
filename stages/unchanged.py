"""Checks that params, code and the files that params name do not change while a stage runs.

DVC records params and code as they are when the stage ends. If a user changes params.yaml in the meantime, for the next
run, DVC would record the new value with the result of the old one, and would find nothing to run. Of files that params
name it records the hash that the stage named_files wrote before: what is read of a newer file would be found again for
the old one.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from camp_model.files import sha256_of
from stages.content.hashes import HASHES, IGNORED
from stages.content.named import CONTENT, content_of, read_content
from stages.errors import InputError, shown
from stages.params import document
from stages.params.section import PARAMS
from stages.workspace import main_root

OUTPUT_FOLDERS = ("data", "models", "metrics", "plots", "report", "named")
"""Folders that stages write; their content is in the stages' own locks."""

KEPT_BY_DVC = ("data", "models", "report")
"""Those whose content DVC keeps in its cache."""


@contextlib.contextmanager
def check_unchanged(stage: str) -> Iterator[None]:
    """Compare a stage's params and code, as listed in dvc.yaml, before and after the body, and the files that its
    params name with the hashes that named_files wrote; these before the body too, which may be long.

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
    reads_named = any(isinstance(key, dict) and str(CONTENT) in key for key in described.get("params", ()))
    if reads_named:
        _check_named(name)
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
    if reads_named:
        _check_named(name)


def removed_outputs(stage: str) -> str:
    """What to add to the error of a stage whose last outputs DVC removed before it ran the stage; else nothing."""
    name, lock = stage.rpartition(":")[2], Path("dvc.lock")
    try:
        outputs = document.read(lock)["stages"].get(name, {}).get("outs", []) if stage and lock.is_file() else []
    except (InputError, KeyError):
        return ""
    gone = [
        out["path"] for out in outputs if Path(out["path"]).parts[0] in KEPT_BY_DVC and not Path(out["path"]).exists()
    ]
    if not gone:
        return ""
    return (
        f"\n{', '.join(gone)}: DVC removed the last before it ran {name}; `dvc checkout {' '.join(gone)}` restores it"
    )


def _check_named(stage: str) -> None:
    """Raise InputError if a file or folder that the stage's params name is not as named_files hashed it."""
    recorded = read_content(CONTENT)
    before = recorded.get(stage, {})
    named = {stage: {key: entry["path"] for key, entry in before.items()}}
    for key, entry in content_of(named, recorded, main_root() / HASHES)[stage].items():
        if entry != before[key]:
            raise InputError(
                f"{entry['path']}: has changed since named_files hashed it for {key}; DVC would record the new "
                f"content's result for the old. Run `dvc repro` again or, if {stage} is done and had read it before, "
                f"undo the change and keep the result: dvc commit -f {stage}"
            )


def _values(keys: list[str]) -> dict[str, Any]:
    """The values in params.yaml at some dotted keys and below them."""
    leaves = document.leaves(document.read(PARAMS)) if keys else ()
    return {name: value for name, value in leaves if any(f"{name}.".startswith(f"{key}.") for key in keys)}


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file() and IGNORED.isdisjoint(file.parts)] or [path]


def _hashes(paths: list[Path]) -> dict[Path, str | None]:
    return {path: sha256_of(path) if path.is_file() else None for path in paths}
