"""Python runs this at the start of every process that finds this folder on its path; it ends them at a certain write.

CAMP_KILL_AT: part of the path of the file; CAMP_KILL_CALL: the call that it is in (fsync: its content is written, and
it has not taken its place; replace, rename, link: it is about to). The whole process group is killed, once:
CAMP_KILL_DONE is the file that says so.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _kill(path: str) -> None:
    done = Path(os.environ["CAMP_KILL_DONE"])
    if os.environ["CAMP_KILL_AT"] in path and not done.exists():
        done.write_text(path)
        os.killpg(0, signal.SIGKILL)


def _fsync(call: Callable[..., Any]) -> Callable[..., Any]:
    def fsync(file: Any) -> Any:
        number = file if isinstance(file, int) else file.fileno()
        _kill(str(Path(f"/proc/self/fd/{number}").readlink()))
        return call(file)

    return fsync


def _moving(call: Callable[..., Any]) -> Callable[..., Any]:
    def move(source: Any, target: Any, *arguments: Any, **named: Any) -> Any:
        _kill(os.fsdecode(target))
        return call(source, target, *arguments, **named)

    return move


if "CAMP_KILL_AT" in os.environ:
    name = os.environ["CAMP_KILL_CALL"]
    setattr(os, name, (_fsync if name == "fsync" else _moving)(getattr(os, name)))
