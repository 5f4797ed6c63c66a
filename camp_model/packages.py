"""Sources that params name: an installed Python package with data (`package:NAME`), a folder, or a name of a hub."""

from importlib.util import find_spec
from pathlib import Path

PREFIX = "package:"


def package_folder(source: str) -> Path:
    """Find the folder of the package that `source`, package:NAME, names; its code is not run.

    Raises:
        ValueError: NAME is not a package's name, or no such package is installed.
    """
    name = source.removeprefix(PREFIX)
    if not name.isidentifier() or name.startswith("__"):
        raise ValueError(f"{source:.80}: names no package; expected package: and the name that Python imports it by")
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{source:.80}: is not installed; expected it after pip install {name.replace('_', '-'):.80}")
    return Path(spec.submodule_search_locations[0])


def names_folder(name: str) -> bool:
    """Whether a name has the form of a folder's; names of a hub are OWNER/NAME or NAME."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1
