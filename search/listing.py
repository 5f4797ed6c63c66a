"""Lists the pictures of a folder, identified by their content."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stages.content.hashes import SETTLED, file_hashes
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


State = tuple[int, int, int]
"""Size, change time (ctime) in nanoseconds and inode of a file."""


@dataclass
class Listing:
    """The content of a folder."""

    paths: dict[str, str] = field(default_factory=dict)
    """sha256 of the bytes -> path below the folder, the first one if files have the same bytes."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path below the folder, reason)"""
    copies: int = 0
    """Number of files with the same bytes as another file."""
    files: dict[str, tuple[State, str]] = field(default_factory=dict, compare=False, repr=False)
    """Path below the folder -> state and sha256 of each file that had not just changed: its bytes are the same as long
    as its state is."""


def list_pictures(root: Path, hashes: Path, should_continue: Callable[[], bool], known: Listing) -> Listing:
    """List all pictures below a folder, sorted by name. Hidden files and folders, and links to folders, are left out.

    Args:
        hashes: the SQLite file that caches the hashes of files.
        should_continue: called now and then; if it returns False, the listing is abandoned and has no picture.
        known: an earlier listing; of a file that has not changed since, only the state is looked at.

    Raises:
        InputError: the folder cannot be read.
    """
    listing = Listing()
    states: dict[str, State] = {}
    settled = (time.time() - SETTLED) * 1e9
    for name in _walk(root, listing.unreadable):
        state = _state(f"{root}/{name}")
        if isinstance(state, str):
            listing.unreadable.append((name, state))
        else:
            states[name] = state
    changed = [name for name, state in states.items() if known.files.get(name, (None,))[0] != state]
    new: dict[str, str | OSError] = {}
    for start in range(0, len(changed), BATCH):
        if not should_continue():
            return listing
        chunk = changed[start : start + BATCH]
        new |= zip(chunk, file_hashes([root / name for name in chunk], hashes), strict=True)
    for name, state in states.items():
        sha256 = new[name] if name in new else known.files[name][1]
        if isinstance(sha256, OSError):
            listing.unreadable.append((name, f"cannot be read ({sha256.strerror})"))
            continue
        if state[1] < settled:
            listing.files[name] = state, sha256
        if sha256 in listing.paths:
            listing.copies += 1
        else:
            listing.paths[sha256] = name
    return listing


def _walk(root: Path, unreadable: list[tuple[str, str]]) -> Iterator[str]:
    """The paths below the folder of files that look like pictures; folders and formats that cannot be read are added to
    `unreadable`."""

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
        below = "" if Path(parent) == root else f"{_below(Path(parent), root)}/"
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  as in `_state`
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                yield below + name
            elif suffix in UNSUPPORTED:
                unreadable.append((below + name, f"is in a format that is not read ({suffix})"))


def _state(path: str) -> State | str:
    """The state of a file, or the reason not to read it."""
    try:
        about = os.stat(path)  # noqa: PTH116  with a Path for each file, a look at a large folder takes thrice as long
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(about.st_mode):
        return "is not a file"
    if about.st_size > LARGEST:
        return f"is larger than {LARGEST >> 20} MiB"
    return about.st_size, about.st_ctime_ns, about.st_ino


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
