"""The storage that the workers of an extraction upload their shards to: a shared folder or an fsspec URL."""

import contextlib
import os
import posixpath
import tempfile
import uuid
from pathlib import Path
from typing import Any

from stages.errors import InputError, without_password


def filesystem_of(storage: str) -> tuple[Any, str]:
    """The fsspec filesystem of a storage, and the path in it.

    Raises:
        InputError: the kind of filesystem is unknown, a package that it needs is not installed, or it cannot be opened.
    """
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(storage)
    except Exception as error:  # each kind raises errors of its own
        raise _storage_error(storage, error) from None
    return filesystem, str(path)


def _storage_error(storage: str, reason: object) -> InputError:
    said = str(reason).partition("\n")[0] or type(reason).__name__
    return InputError(
        f"storage: {without_password(storage)}: {without_password(said)}; expected a folder or an fsspec URL"
    )


def check_storage(storage: str) -> None:
    """Raise InputError if the storage is of one process alone, or if a file cannot be put there, renamed and removed:
    workers do so hours later, after the detector was trained."""
    if any(part.partition(":")[0] == "memory" for part in storage.split("::")):
        raise _storage_error(storage, "is the memory of one process, which no other can read")
    filesystem, path = filesystem_of(storage)
    probe = posixpath.join(path, f".{uuid.uuid4().hex}.tmp")
    with tempfile.NamedTemporaryFile() as local:
        local.write(b"a file that is to be removed")
        local.flush()
        try:
            filesystem.makedirs(path, exist_ok=True)
            filesystem.put_file(local.name, probe)
            filesystem.mv(probe, f"{probe}.moved")
            filesystem.rm_file(f"{probe}.moved")
        except Exception as error:  # each kind raises errors of its own
            with contextlib.suppress(Exception):
                filesystem.rm_file(probe)
            raise _storage_error(storage, error) from None


def is_stored(storage: str, key: str) -> bool:
    """Whether the storage has the shard of a key."""
    filesystem, path = filesystem_of(storage)
    return bool(filesystem.exists(posixpath.join(path, f"{key}.arrow")))


def upload(shard: Path, storage: str) -> None:
    """Upload under a temporary name, then rename: a file with a shard's name is always complete."""
    filesystem, path = filesystem_of(storage)
    filesystem.makedirs(path, exist_ok=True)
    temporary = posixpath.join(path, f".{shard.name}.{os.getpid()}.tmp")
    filesystem.put_file(str(shard), temporary)
    filesystem.mv(temporary, posixpath.join(path, shard.name))
