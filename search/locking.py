"""Locks on a file, which go with the process that holds them."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL = 0.2
"""Seconds between two tries."""


class GivenUp(Exception):
    """There is nothing to wait for any more."""


@contextmanager
def held(path: Path, waiting: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing; waits for another holder.

    Args:
        waiting: called while another process holds it; whether to go on waiting.

    Raises:
        GivenUp: `waiting` said no.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting():
                    raise GivenUp from None
                time.sleep(POLL)
        yield
