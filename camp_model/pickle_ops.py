"""Checks the operations of a pickle before anything of it is loaded."""

import pickle
import pickletools
import re
from typing import Any, BinaryIO

OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}
DEEPEST = 8
"""Largest depth of nested tuples; a pickled array has about three."""


def refused_name(error: Exception) -> str | None:
    """What the file calls that PyTorch's weights-only reader refused, if its error names it. The error itself is not to
    be shown: it recommends to execute the file."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else None


def check_ops(file: BinaryIO) -> None:
    """Reject a small pickle whose loading would take all memory or time; the file is read from its start, and rewound.

    A memo index far beyond the file's size would allocate all indices below it. A tuple of twice the same tuple, which
    in turn holds twice the same one, and so on, takes twice as long to hash for each level.

    Raises:
        pickle.UnpicklingError: the pickle would take too much.
        ValueError: the file is no pickle.
    """
    size = file.seek(0, 2)
    file.seek(0)
    depths: dict[int, int] = {}  # of the tuples in the memo
    index, within, top = -1, 0, 0  # `top`: the depth of the top of the stack, 0 if it is no tuple
    name = ""
    while name != "STOP":
        before, (name, argument) = name, _next(file)
        if name == "DUP":
            raise pickle.UnpicklingError("it doubles what it holds")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if before in ("POP", "POP_MARK"):  # what is on top now was looked at before
                raise pickle.UnpicklingError("it remembers what it has uncovered, as no pickler does")
            index = index + 1 if name == "MEMOIZE" else int(argument)
            if index > size:
                raise pickle.UnpicklingError(f"it asks for index {index:,} of a memo, in a file of {size:,} bytes")
            if top:
                depths[index] = top
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            top = depths.get(int(argument), 0)
            within = max(within, top)
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            top, within = within + 1, 0
            if top > DEEPEST:
                raise pickle.UnpicklingError(f"it holds tuples within each other, more than {DEEPEST} deep")
        elif name not in ("FRAME", "PROTO"):
            top = 0
    file.seek(0)


def _next(file: BinaryIO) -> tuple[str, Any]:
    """The name of the next operation and its argument; None for a text of Python 2, which may hold any bytes."""
    operation = OPERATIONS.get(file.read(1).decode("latin1"))
    if operation is None:
        raise pickle.UnpicklingError("it is none, or torn")
    if operation.name == "STRING":
        file.readline()
        return operation.name, None
    return operation.name, None if operation.arg is None else operation.arg.reader(file)
