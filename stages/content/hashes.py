"""Hashes of the content of files and folders, cached for unchanged files."""

import functools
import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

from camp_model.files import sha256_of

HASHES = Path(".work") / "hashes.sqlite"
"""The stages' cache of hashes, below the root of the main workspace; a hash is valid while its file has not changed."""
SETTLED = 2.0
"""A file's hash is cached only if its last change was at least this many seconds ago: an immediate second change might
go unnoticed."""
LOCK_TIMEOUT = 5.0
"""Seconds to wait for another process that has locked the file of hashes."""
IGNORED = frozenset({"__pycache__", ".DS_Store"})
"""Names that are not counted: what Python compiles, and what macOS writes into each folder that it shows."""
BATCH = 4096
"""Number of files hashed before their hashes are written."""


def content_hash(path: Path, cache: Path) -> str:
    """Hex sha256 of a file, or of the names and contents of all files below a folder, following links.

    Names of IGNORED are not counted.

    Args:
        cache: as for `file_hashes`.

    Raises:
        OSError: something cannot be read.
    """
    files = [path] if path.is_file() else sorted(_files_below(path))
    digest = hashlib.sha256()
    for file, sha256 in zip(files, file_hashes(files, cache), strict=True):
        if isinstance(sha256, OSError):
            raise sha256
        name = "" if file == path else file.relative_to(path).as_posix()
        digest.update(f"{len(os.fsencode(name))} ".encode() + os.fsencode(name) + f" {sha256}\n".encode())
    return digest.hexdigest()


def file_hashes(files: Sequence[Path], cache: Path | None) -> Iterator[str | OSError]:
    """Hex sha256 of each file, in order, or the reason why it cannot be read.

    A file is not read again if its size, inode and change time (ctime, which programs cannot set back) are unchanged.

    Args:
        cache: the SQLite file of hashes, created if missing; None: every file is read.
    """
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    resolved = functools.cache(Path.resolve)  # each folder once: resolving every path would take most of the time
    with ExitStack() as opened, ThreadPoolExecutor() as threads:
        store = opened.enter_context(closing(_open(cache)))
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            try:
                rows = [_cached_row(store, file, resolved) for file in batch]
            except sqlite3.DatabaseError as error:
                store = opened.enter_context(closing(_reopen(cache, error)))
                rows = [_cached_row(store, file, resolved) for file in batch]
            missing = [i for i, row in enumerate(rows) if not isinstance(row, OSError) and row[-1] is None]
            read = dict(zip(missing, threads.map(_read, [batch[i] for i in missing]), strict=True))
            settled = (time.time() - SETTLED) * 1e9
            new = [
                (*row[:-1], read[i])
                for i, row in enumerate(rows)
                if i in read and not isinstance(row, OSError) and isinstance(read[i], str) and row[2] < settled
            ]
            try:
                with store:
                    store.executemany("insert or replace into seen values (?, ?, ?, ?, ?)", new)
            except sqlite3.DatabaseError as error:
                store = opened.enter_context(closing(_reopen(cache, error)))
            for i, row in enumerate(rows):
                yield row if isinstance(row, OSError) else read.get(i) or str(row[-1])


def _open(cache: Path | None) -> sqlite3.Connection:
    """Open the table of hashes; a damaged file is replaced, because all hashes can be computed again."""
    try:
        store = sqlite3.connect(cache or ":memory:", timeout=LOCK_TIMEOUT)
    except sqlite3.OperationalError as error:
        return _reopen(cache, error)
    try:
        store.execute("drop table if exists hashes")  # an earlier table, by modification time
        store.execute("create table if not exists seen (path text primary key, size, changed, inode, sha256)")
    except sqlite3.DatabaseError as error:
        store.close()
        return _reopen(cache, error)
    return store


def _reopen(cache: Path | None, error: sqlite3.DatabaseError) -> sqlite3.Connection:
    """Open another table: a new file if it is damaged, or has a table of another form; in memory if another process has
    locked it, which is not worth waiting for, or if it cannot be written, such as on a full disk."""
    if cache is None:
        raise error
    if not isinstance(error, sqlite3.OperationalError) or "column" in str(error):
        print(f"{cache}: cannot be read ({error}); all files are hashed again", file=sys.stderr)
        cache.unlink(missing_ok=True)
        return _open(cache)
    reason = "another process has locked it" if "locked" in str(error) else f"cannot be used ({error})"
    print(f"{cache}: {reason}; files are hashed without this cache", file=sys.stderr)
    return _open(None)


def _files_below(folder: Path) -> Iterator[Path]:
    entered: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        about = Path(parent).stat()
        if (about.st_dev, about.st_ino) in entered:  # a link to a folder that was entered before
            folders.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        folders[:] = [name for name in folders if name not in IGNORED]
        yield from (Path(parent, name) for name in files if name not in IGNORED and Path(parent, name).is_file())


def _cached_row(
    store: sqlite3.Connection, file: Path, resolved: Callable[[Path], Path]
) -> tuple[str, int, int, int, str | None] | OSError:
    """The file's row: path, size, change time in nanoseconds, inode, and its hash if known."""
    try:
        about = file.stat()
    except OSError as error:
        return error
    location = file.resolve() if file.is_symlink() else resolved(file.parent) / file.name
    name = os.fsencode(location).decode("utf-8", "backslashreplace")  # SQLite stores only UTF-8
    state = name, about.st_size, about.st_ctime_ns, about.st_ino
    question = "select sha256 from seen where path = ? and size = ? and changed = ? and inode = ?"
    answer = store.execute(question, state).fetchone()
    return (*state, answer[0] if answer else None)


def _read(file: Path) -> str | OSError:
    try:
        return sha256_of(file)
    except OSError as error:
        return error
