"""Keeps the garbage collector from scanning large libraries again and again, in which it finds nothing."""

import contextlib
import gc
from collections.abc import Iterator


def exempt_from_collection() -> None:
    """Exempt all current objects from garbage collection. Only once per process: current garbage is never freed."""
    if not gc.get_freeze_count():
        gc.freeze()


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Collect no garbage in the body, which loads libraries; all objects are exempted at its end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        exempt_from_collection()
        if enabled:
            gc.enable()
