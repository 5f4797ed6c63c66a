"""The garbage collector and large libraries: it finds nothing in them, and looks again and again."""

import contextlib
import gc
from collections.abc import Iterator


def exempt_loaded() -> None:
    """Have the collector never look again at what is there now. Once in a process: garbage of then would stay."""
    if not gc.get_freeze_count():
        gc.freeze()


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Collect no garbage in the body, which loads libraries; they are exempted at its end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        exempt_loaded()
        if enabled:
            gc.enable()
