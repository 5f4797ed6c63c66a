"""Large libraries, loaded without looking for garbage among what they define."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_garbage() -> Iterator[None]:
    """Leave alone what is made meanwhile: libraries, which stay, and looking for garbage in them takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
