"""What stages read: files that an earlier stage or a person wrote. What is wrong with one is an InputError."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camp_model import files
from stages.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def input_errors(where: str = "") -> Iterator[None]:
    """A ValueError of `camp_model`, which names file and key, becomes an InputError that begins with `where`."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{where}{error}") from None


def read_json(path: Path, expected: str, where: str = "") -> Any:
    """The content of a JSON file (`camp_model.files.read_json`)."""
    with input_errors(where):
        return files.read_json(path, expected)


def read_object(path: Path, expected: str, where: str = "") -> dict[str, Any]:
    """The content of a JSON file that holds an object (`camp_model.files.read_object`)."""
    with input_errors(where):
        return files.read_object(path, expected)


def read_table(
    path: Path,
    columns: Mapping[str, "pa.DataType | None"] | Sequence[str],
    expected: str = "what an earlier stage writes",
    *,
    form: str | None = None,
    where: str = "",
) -> "pa.Table":
    """Some columns of a Parquet file (`camp_model.files.read_table`)."""
    with input_errors(where):
        return files.read_table(path, columns, expected, form)


def read_fingerprint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its origin: the detector, the dataset, the tracked run; empty where it says nothing."""
    path = checkpoint / "fingerprint.json"
    return read_object(path, "what the stage train writes beside its weights") if path.is_file() else {}
