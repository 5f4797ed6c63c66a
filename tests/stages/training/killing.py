"""A training that dies at a step."""

from collections.abc import Callable


class Killed(Exception):
    """The process dies here; nothing after it happens."""


def kill_after(steps: int) -> Callable[[], bool]:
    """What a training asks after each step whether to stop: it dies there after `steps` more."""
    calls = []

    def stop() -> bool:
        calls.append(1)
        if len(calls) > steps:
            raise Killed
        return False

    return stop
