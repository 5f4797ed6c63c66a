"""The workspace that a stage runs in, and the main one that a DVC experiment's own workspace came from."""

import os
from pathlib import Path


def main_root(start: Path | None = None) -> Path:
    """The repository root of the main workspace, also from inside a DVC experiment's own workspace.

    Experiment workspaces live below `.dvc/tmp/exps` of the main one, so that every run lands in one store.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            return folder
    return start


def named_path(name: str) -> Path:
    """Where a file or folder that params name lies; every stage finds such a path through this function.

    An experiment's own workspace lacks what Git and DVC do not track, so it is looked for in the main one: a file if
    there is none here, and a folder always, for a folder here may hold only what Git tracks of it (`data/raw`).
    """
    path, root = Path(name), main_root()
    if path.is_file() or not (root / path).exists() or root == Path.cwd().resolve():
        return path
    return root / path
