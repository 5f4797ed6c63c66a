"""File locks, which are released when the process that holds them ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL = 0.2
"""Seconds between two tries."""


class WaitAbandoned(Exception):
    """The caller no longer wants to wait for the lock."""


@contextmanager
def locked(path: Path, should_wait: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Hold the lock of a file, which is created if missing; wait if another process holds it.

    Args:
        should_wait: called while another process holds the lock; if it returns False, the wait ends.

    Raises:
        WaitAbandoned: `should_wait` returned False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(poll_interval=POLL, cancel_check=lambda: not should_wait())
    except Timeout:
        raise WaitAbandoned from None
    try:
        yield
    finally:
        lock.release()
