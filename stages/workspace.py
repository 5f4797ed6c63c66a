"""The workspace that a stage runs in, and the main workspace that a DVC experiment's own workspace belongs to."""

import os
from pathlib import Path

STARTED_IN = "CAMP_STARTED_IN"
"""Environment variable: the folder that `camp` was started in, where the paths of its arguments start."""


def argument_path(path: Path) -> Path:
    """A path from the command line, relative to the folder that `camp` was started in."""
    return Path(os.environ.get(STARTED_IN, ""), path.expanduser())


def main_root(start: Path | None = None) -> Path:
    """The repository root of the main workspace, also if called in a DVC experiment's own workspace.

    Experiment workspaces are below `.dvc/tmp/exps` of the main one; with its root, all runs are recorded in one place.
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
    """Find the file or folder that params name; all stages use this function.

    An experiment's own workspace lacks what neither Git nor DVC tracks, so the main workspace is searched too: for a
    file if it is missing here, for a folder always, because here it may have only what Git tracks of it (`data/raw`).
    """
    path, root = Path(name), main_root()
    if path.is_file() or not (root / path).exists() or root == Path.cwd().resolve():
        return path
    return root / path
