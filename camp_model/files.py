"""Writes files and folders atomically, and reads files with errors that name file and key."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camp_model.seal import check_seal, seal, with_seal, without_seal

if TYPE_CHECKING:
    import pyarrow as pa

UNUSED_SECONDS = 7 * 24 * 3600.0
"""Age from which an unused file without other links is treated as left by a run with other images or params."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers of a disk that is full or read-only, or does not allow files of this size."""
ACCESS_ERRORS = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
"""Error numbers of a path that this user may not read or write, or where something else exists."""
MIN_FREE_BYTES = 1 << 16
"""Free bytes below which a failed write without an error number is treated as a full disk."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` if the block succeeds and is removed otherwise.

    Temporary files of the same file that killed processes of this machine have left are removed.

    Raises:
        OSError: one of DISK_ERRORS or ACCESS_ERRORS, with `path` as its file name.
    """
    _check_no_device(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
    _remove_stale_temporaries(path, f".{path.name}.{host}-")
    temporary = path.with_name(f".{path.name}.{host}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        with _write_errors(path, temporary):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # nothing was written to a read-only disk
            temporary.unlink()


def check_writable(path: Path) -> None:
    """Raise OSError if `replacing` could not write `path`: it writes a temporary file beside it, and removes it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with contextlib.suppress(_Written), replacing(path) as temporary:
        temporary.write_bytes(b"x")
        raise _Written


class _Written(Exception):
    """Ends a block of `replacing` before it replaces anything."""


def _check_no_device(path: Path) -> None:
    """Raise FileExistsError, which names it, if there is a device, pipe or socket, which a file would replace."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FileExistsError(errno.EEXIST, "A device, pipe or socket is there; expected a file", str(path))


@contextmanager
def _write_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Convert errors of writing to an OSError that names `path`, whatever the library raises.

    Errors that name another file, such as one that is read, are not changed.
    """
    try:
        yield
    except Exception as error:
        named = getattr(error, "filename", None)
        if isinstance(named, str | bytes | os.PathLike):
            named_path = Path(os.fsdecode(named))
            if named_path != path.parent and not any(named_path.is_relative_to(one) for one in (path, temporary)):
                raise
        stated = re.search(r"\(os error (\d+)\)", str(error))
        number = getattr(error, "errno", None) or (int(stated[1]) if stated else None)
        if number is None and isinstance(error, OSError | RuntimeError):
            disk = os.statvfs(path.parent)
            full = errno.ENOSPC if disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES else None
            number = errno.EROFS if disk.f_flag & os.ST_RDONLY else full
        if number not in DISK_ERRORS + ACCESS_ERRORS:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _remove_stale_temporaries(path: Path, beginning: str) -> None:
    """Remove temporary files beside `path` whose names start with `beginning` and a process that has ended."""
    for temporary in path.parent.iterdir():
        if temporary.name.startswith(beginning) and temporary.suffix == ".tmp":
            process = temporary.name.removeprefix(beginning).partition("-")[0]
            if process.isdecimal() and not _alive(int(process)):
                temporary.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another person's
        pass
    return True


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which replaces `path` if the block succeeds and is removed otherwise.

    Its name is always the same, and a folder left by a killed process is removed, so only one process may write it.
    """
    _check_no_device(path)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with _write_errors(path, temporary):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unused(folder: Path, wanted: Collection[str]) -> None:
    """Remove files that have no other link, were not used for a week, and are not `wanted`.

    A shard of other images or params goes when `dvc gc` has removed it, and a week after a run that never ended.
    """
    oldest = time.time() - UNUSED_SECONDS
    for path in folder.iterdir():
        try:
            facts = path.stat()
            if path.name not in wanted and facts.st_nlink == 1 and max(facts.st_mtime, facts.st_atime) < oldest:
                path.unlink()
        except FileNotFoundError:  # another process has removed it
            continue


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any, indent: int = 2) -> None:
    """Write values as JSON, its keys in their order, letters of every script as they are."""
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=False) + "\n")


def write_sealed(path: Path, values: Mapping[str, Any], indent: int = 2) -> None:
    """Write a JSON object with a seal: `read_json` detects changed values."""
    write_json(path, with_seal(values), indent)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write some columns of rows; a row's missing values stay empty."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a table as Parquet, sealed."""
    import pyarrow.parquet as pq  # here: whoever writes only texts need not wait for it

    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        seal(temporary)


def utf8_text(content: bytes) -> str:
    """The text of a UTF-8 file's bytes, without a byte-order mark.

    Raises:
        ValueError: a byte is not UTF-8; the message says which, and in which line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, begin = content.count(b"\n", 0, error.start) + 1, content.rfind(b"\n", 0, error.start) + 1
        byte = f"byte {error.start - begin} is {content[error.start]:#04x}"
        raise ValueError(f"line {line}: {byte}, not UTF-8; expected UTF-8") from None


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded, so that it holds no half character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file cannot be read, is not JSON, or holds other values than were sealed; the message names the
            file and what was `expected`.
    """
    try:
        content = json.loads(utf8_text(path.read_bytes()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON: {error}; expected {expected}") from None
    return without_seal(path, content) if isinstance(content, dict) else content


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        ValueError: as `read_json`, or the file holds something else.
    """
    content = read_json(path, expected)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, not a JSON object; expected {expected}")
    return content


def read_table(
    path: Path, columns: Mapping[str, "pa.DataType | None"] | Sequence[str], expected: str, form: str | None = None
) -> "pa.Table":
    """Read some columns of a Parquet file.

    Args:
        path: the file.
        columns: names; empty: all columns. A mapping also gives the type of each (None: any), and forbids nulls.
        expected: what the file should be, for error messages.
        form: the format that the file's metadata must name, in version 1; None: no check.

    Raises:
        ValueError: the file cannot be read, is damaged or of another format, lacks a column, or holds another type or a
            null in it; the message names file and column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_seal(path)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_form(path, schema.metadata or {}, form)
            for name in columns:
                if name not in schema.names:
                    raise ValueError(f"{path}: {name}: no such column; expected {', '.join(columns)}")
            table = file.read(columns=list(columns) or None)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last: of the names of columns
        raise ValueError(f"{path}: cannot be read as Parquet ({error!s:.200}); expected {expected}") from None
    table = table.select(list(columns)) if columns else table
    for name, kind in columns.items() if isinstance(columns, Mapping) else ():
        if kind is not None and table.schema.field(name).type != kind:
            raise ValueError(f"{path}: {name}: is {table.schema.field(name).type!s:.200}; expected {kind}")
        if table[name].null_count:
            raise ValueError(f"{path}: {name}: holds nulls; expected {kind or 'a value'} in each row")
    return table


def _check_form(path: Path, metadata: Mapping[bytes, bytes], form: str | None) -> None:
    stated = [metadata.get(key, b"")[:80].decode(errors="replace") for key in (b"camp.format", b"camp.version")]
    if form is not None and stated != [form, "1"]:
        raise ValueError(f"{path}: camp.format: is {stated[0]!r}, version {stated[1]!r}; expected {form}, 1")
