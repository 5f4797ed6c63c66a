"""The error that a user can fix, and how messages show a value or an address."""

import re
import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = _REPR.maxset = 4
_REPR.maxlevel = 3
LONGEST = 120
"""Characters of a shown value."""


class InputError(Exception):
    """An error in a user's input. The message names the file, the key and what was expected."""


def printable(name: str) -> str:
    """A name on one line that a terminal shows as it is: what it would not print, such as a newline, is replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def shown(value: object) -> str:
    """`repr(value)`, shortened if it is long, so that a message stays readable."""
    text = _REPR.repr(value[: 2 * LONGEST] if isinstance(value, bytes | str) else value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def without_password(address: str) -> str:
    """An address without user name, password and tokens, to be shown and recorded; or a text with addresses.

    A password may hold an @ itself; that of a database, which SQLAlchemy reads,
    may hold slashes and question marks too.
    """
    bare = re.sub(r"(?i)(https?://)[^/\s]*@", r"\1", address)
    bare = re.sub(r"(?i)(?<!http)(?<!https)://(?!/)\S*@", "://", bare)
    secret = r"(?<=[?&])[\w-]*(?:user|pass|pwd|token|secret|key|sig|cred|odbc_connect)[\w-]*="
    return re.sub(rf"(?i)({secret})[^&\s]*", r"\1...", bare)
