"""Reads files that an earlier stage or a user wrote. Anything wrong with one is an InputError."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camp_model import files
from stages.errors import InputError, shown

if TYPE_CHECKING:
    import pyarrow as pa

    from camp_model.config import CampConfig
    from camp_model.regions import RegionStore


@contextmanager
def input_errors(where: str = "") -> Iterator[None]:
    """Convert a ValueError of `camp_model`, which names file and key, to an InputError that begins with `where`."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{where}{error}") from None


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file (`camp_model.files.read_json`)."""
    with input_errors():
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


def read_text(path: Path, kind: str = "") -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
        OSError: it cannot be read.
        InputError: a byte is not UTF-8; the message names the file, what `kind` of file was expected, and the line.
    """
    try:
        return files.utf8_text(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: {f'is not {kind}: ' if kind else ''}{error}") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, split only at newlines; a carriage return before a newline is dropped.

    `str.splitlines` also splits at U+2028, U+0085 and form feeds, which occur in captions.

    Raises:
        InputError: the file cannot be read, or a line of it is not UTF-8.
    """
    try:
        lines = read_text(path).split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if lines[-1] == "":
        del lines[-1]
    return [line.removesuffix("\r") for line in lines]


def hashes_of(paths: Iterable[Path]) -> dict[str, str]:
    """File name -> sha256: how a stage records the metrics and plots that it writes outside its own folder."""
    return {path.name: files.sha256_of(path) for path in paths}


def check_results(record: Path, paths: Iterable[Path]) -> None:
    """Compare files with the hashes in `results` of the JSON file `record` of the same stage; older ones have none.

    Raises:
        InputError: a file is not the one that was written, or `record` cannot be read.
    """
    results = read_object(record, "what a stage writes of its results").get("results", {}) if record.is_file() else {}
    for path in paths:
        if path.is_file() and results.get(path.name) not in (None, files.sha256_of(path)):
            raise InputError(f"{path}: is damaged or of another run than {record}, which holds another sha256 of it")


def read_fingerprint(checkpoint: Path) -> dict[str, Any]:
    """The origin of a checkpoint: detector, dataset, hashes of results; empty if it has no fingerprint.json."""
    path = checkpoint / "fingerprint.json"
    return read_object(path, "what the stage train writes beside its weights") if path.is_file() else {}


def check_trained_on(checkpoint: Path, config: "CampConfig", store: "RegionStore") -> None:
    """Raise an InputError if a model reads features of another width than a store's, or was trained on another
    detector's. A model that does not name its detector is accepted, with a note on stderr."""
    if config.region_dim != store.region_dim:
        raise InputError(
            f"{checkpoint / 'config.json'}: region_dim: {config.region_dim}, but the features of {store.path} have "
            f"{store.region_dim}"
        )
    detector = read_fingerprint(checkpoint).get("detector")
    if detector is None:
        print(f"{checkpoint}: does not name the detector of its training; assumed: {store.detector}", file=sys.stderr)
    elif detector != store.detector:
        raise InputError(
            f"{checkpoint / 'fingerprint.json'}: detector: {shown(detector)}, but the regions of {store.path} come "
            f"from {shown(store.detector)}; expected a checkpoint trained on the regions of that detector"
        )
