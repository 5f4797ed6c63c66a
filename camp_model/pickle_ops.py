"""What a pickle would do, looked through before anything of it is loaded."""

import pickle
import pickletools
from typing import BinaryIO

DEEPEST = 8
"""Tuples within each other by reference; a pickled array has about three."""


def check_ops(file: BinaryIO) -> None:
    """Refuse a pickle that a few bytes make take all memory or time; the file is read from its start, and set back.

    A place of the memo far beyond the file's size would be room for all before it. A tuple of twice the same tuple, and
    so on, has a hash that takes twice as long with each.

    Raises:
        pickle.UnpicklingError: it does so.
        ValueError: it is no pickle.
    """
    size = file.seek(0, 2)
    file.seek(0)
    depths: dict[int, int] = {}  # of the tuples in the memo
    place, within, tuple_depth = -1, 0, 0
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name == "DUP":
            raise pickle.UnpicklingError("it doubles what it holds")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = place + 1 if name == "MEMOIZE" else int(argument or 0)
            if place > size:
                raise pickle.UnpicklingError(f"it asks for place {place:,} of a memo, in a file of {size:,} bytes")
            if tuple_depth:
                depths[place] = tuple_depth
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            within = max(within, depths.get(int(argument or 0), 0))
        tuple_depth = 0
        if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            tuple_depth, within = within + 1, 0
            if tuple_depth > DEEPEST:
                raise pickle.UnpicklingError(f"it holds tuples within each other, more than {DEEPEST} deep")
    file.seek(0)
