"""Keeps memory management from work without use: the garbage collector from scanning large libraries again and again,
in which it finds nothing, and the allocator from returning memory to the system that the next operation asks for."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's `mallopt`."""
SET_BY_HAND = ("MALLOC_", "GLIBC_TUNABLES")
"""How the names of the environment variables begin that set them."""


def keep_freed_memory() -> None:
    """Let this process keep up to 2 GB of the memory that it frees, in blocks of up to 32 MiB, for its next tensors.

    By default glibc returns much of it to the system at once, so that every operation of a training step asks for its
    result's memory page by page, which training and extraction lose time with. Only with glibc, and not where the
    environment sets its options (`SET_BY_HAND`). Larger tensors ask for pages of 2 MiB instead of 4 KiB, where no
    tensor was made before (`python -m benchmarks.regions extraction small_pages`). Not for servers: each of many
    threads would keep such pages.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it when it makes the first tensor
    if sys.platform == "linux" and not any(name.startswith(SET_BY_HAND) for name in os.environ):
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that it accepts
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


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
