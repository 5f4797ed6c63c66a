"""Locks on a file, which go with the process that holds them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL = 0.2
"""Seconds between two tries."""


class WaitAbandoned(Exception):
    """There is nothing to wait for any more."""


@contextmanager
def locked(path: Path, waiting: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing; waits for another holder.

    Args:
        waiting: called while another process holds it; whether to go on waiting.

    Raises:
        WaitAbandoned: `waiting` said no.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(poll_interval=POLL, cancel_check=lambda: not waiting())
    except Timeout:
        raise WaitAbandoned from None
    try:
        yield
    finally:
        lock.release()
