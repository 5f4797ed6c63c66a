"""Resolves the paths that params name, for hashing."""

from pathlib import Path

from camp_model.packages import PREFIX, package_folder
from stages.workspace import named_path


def content_path(name: str) -> Path:
    """The file or folder that params name: as `named_path`, or the folder of the package for `package:NAME`.

    If it is missing, the result is a path that does not exist.
    """
    if not name.startswith(PREFIX):
        return named_path(name)
    try:
        return package_folder(name)
    except ValueError:
        return Path(name)
