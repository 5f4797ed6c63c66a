"""Lists the pictures of a folder, identified by their content."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stages.content.hashes import file_hashes
from stages.errors import InputError
from stages.sources.formats import SUFFIXES

UNSUPPORTED = frozenset({
    ".jxl", ".jxr", ".svg", ".psd", ".tga",
    ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srw", ".orf", ".raf", ".rw2", ".pef", ".x3f", ".3fr", ".iiq",
})  # fmt: skip
"""File extensions of pictures in formats that it does not decode."""
LARGEST = 2**28
"""Size in bytes above which a file is not read."""
BATCH = 256
"""Number of files hashed between two calls of `should_continue`."""


@dataclass
class Listing:
    """The content of a folder."""

    paths: dict[str, str] = field(default_factory=dict)
    """sha256 of the bytes -> path below the folder, the first one if files have the same bytes."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path below the folder, reason)"""
    copies: int = 0
    """Number of files with the same bytes as another file."""


def list_pictures(root: Path, hashes: Path, should_continue: Callable[[], bool]) -> Listing:
    """List all pictures below a folder, sorted by name. Hidden files and folders, and links to folders, are left out.

    Args:
        hashes: the SQLite file that caches the hashes of files.
        should_continue: called now and then; if it returns False, the pictures listed so far are returned.

    Raises:
        InputError: the folder cannot be read.
    """
    listing = Listing()
    paths = []
    for path in _walk(root, listing.unreadable):
        size = _size(path)
        if isinstance(size, str):
            listing.unreadable.append((_below(path, root), size))
        else:
            paths.append(path)
    for start in range(0, len(paths), BATCH):
        if not should_continue():
            break
        chunk = paths[start : start + BATCH]
        for path, sha256 in zip(chunk, file_hashes(chunk, hashes), strict=True):
            if isinstance(sha256, OSError):
                listing.unreadable.append((_below(path, root), f"cannot be read ({sha256.strerror})"))
            elif sha256 in listing.paths:
                listing.copies += 1
            else:
                listing.paths[sha256] = _below(path, root)
    return listing


def _walk(root: Path, unreadable: list[tuple[str, str]]) -> Iterator[Path]:
    """The files that look like pictures; folders and formats that cannot be read are added to `unreadable`."""

    def fail(error: OSError) -> None:
        folder = Path(error.filename or root)
        if folder == root:
            raise InputError(f"{root}: cannot be read ({error.strerror}); expected a folder of pictures")
        if not isinstance(error, FileNotFoundError):  # a folder that has just been removed is not reported
            unreadable.append((_below(folder, root), f"is a folder that cannot be read ({error.strerror})"))

    if not root.is_dir():
        raise InputError(f"{root}: is not a folder; expected a folder of pictures")
    for parent, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        unreadable += [(_below(link, root), "is a link to a folder, which is not followed") for link in links]
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                yield Path(parent, name)
            elif suffix in UNSUPPORTED:
                unreadable.append((_below(Path(parent, name), root), f"is in a format that is not read ({suffix})"))


def _size(path: Path) -> int | str:
    """Size of a file in bytes, or the reason not to read it."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not path.is_file():
        return "is not a file"
    return f"is larger than {LARGEST >> 20} MiB" if size > LARGEST else size


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
