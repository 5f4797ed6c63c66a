"""The content of files and folders as a hash, remembered for files that have not changed since."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

SETTLED = 2.0
"""Seconds after its last change from which a file's hash is remembered: within them it may change unseen."""
BATCH = 4096
"""Files hashed between two moments at which the hashes are written down."""


def content_hash(path: Path, cache: Path) -> str:
    """Hex sha256 of a file, or of the names and contents of all files below a folder, links followed.

    A file whose size, time of change and inode are those of last time is not read again.

    Args:
        cache: the SQLite file of hashes, made where it is missing.

    Raises:
        OSError: something cannot be read.
    """
    files = [path] if path.is_file() else sorted(_files_below(path))
    cache.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with closing(sqlite3.connect(cache, timeout=60)) as store, ThreadPoolExecutor() as threads:
        store.execute("create table if not exists hashes (path text primary key, size, mtime, inode, sha256)")
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            rows = [_remembered(store, file) for file in batch]
            missing = [i for i, row in enumerate(rows) if row[-1] is None]
            for i, sha256 in zip(missing, threads.map(_read, [batch[i] for i in missing]), strict=True):
                rows[i] = (*rows[i][:-1], sha256)
            settled = (time.time() - SETTLED) * 1e9
            with store:
                new = [rows[i] for i in missing if rows[i][2] < settled]
                store.executemany("insert or replace into hashes values (?, ?, ?, ?, ?)", new)
            for file, row in zip(batch, rows, strict=True):
                name = "" if file == path else file.relative_to(path).as_posix()
                digest.update(f"{len(os.fsencode(name))} ".encode() + os.fsencode(name) + f" {row[-1]}\n".encode())
    return digest.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    entered: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        about = Path(parent).stat()
        if (about.st_dev, about.st_ino) in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        yield from (Path(parent, name) for name in files if Path(parent, name).is_file())


def _remembered(store: sqlite3.Connection, file: Path) -> tuple[str, int, int, int, str | None]:
    """The file's row: path, size, time of change in nanoseconds, inode, and its hash where it is known."""
    about = file.stat()
    state = os.fsdecode(file.resolve()), about.st_size, about.st_mtime_ns, about.st_ino
    question = "select sha256 from hashes where path = ? and size = ? and mtime = ? and inode = ?"
    answer = store.execute(question, state).fetchone()
    return (*state, answer[0] if answer else None)


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
