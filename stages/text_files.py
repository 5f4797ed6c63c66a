"""Text files that people bring: UTF-8, and a line ends at a newline alone."""

from pathlib import Path

from camp_model.files import utf8_text
from stages.errors import InputError


def read_text(path: Path, kind: str = "") -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
        OSError: it cannot be read.
        InputError: a byte is not UTF-8; the message names the file, what `kind` of file was expected, and the line.
    """
    try:
        return utf8_text(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: {f'is not {kind}: ' if kind else ''}{error}") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, cut at newlines alone, with a carriage return before one going with it.

    Not at U+2028, U+0085 or a form feed, at which `str.splitlines` cuts too: those stand in captions.

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
