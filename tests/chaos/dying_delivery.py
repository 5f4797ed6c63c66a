"""Deliver a spool to MLflow and be killed over it, as a process of its own: ROOT KEY SEED CASES.

ROOT-0, ROOT-1, ... are copies of ROOT; the delivery of each is killed twice, ROOT's own is not. The moments are random
calls of Python functions, which are counted in ROOT's: so they are spread over all that a delivery does, MLflow's own
writes, the copies of files and our marks of what has arrived.
"""

import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from stages.tracking.delivery import Delivery
from stages.tracking.spool import SPOOL
from stages.tracking.store import connect, local_uri, open_experiment


def deliver(root: Path, key: str, last: float = float("inf")) -> list[str]:
    """Deliver in a process that is killed at its `last` call.

    What it says at its end, none where it was killed: the calls that it made (-1: not all is delivered), and the
    modules that it has imported.
    """
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"
        if calls >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader) as answer:
            said = answer.read().split()
        os.waitpid(child, 0)
        return said
    try:
        os.chdir(root)
        sys.setprofile(count)
        delivered = Delivery(root, local_uri(root)).deliver(root / SPOOL / key)
        sys.setprofile(None)
        with os.fdopen(writer, "w") as answer:
            print(calls if delivered else -1, *list(sys.modules), file=answer)
    finally:
        os._exit(0)


def main(root: Path, key: str, seed: int, cases: int) -> None:
    choice = random.Random(seed)
    if not os.fork():  # so that this process, which goes on forking, has no connection open
        open_experiment(connect(root, local_uri(root)), root, "camp")
        os._exit(0)
    os.wait()
    copies = [Path(shutil.copytree(root, root.with_name(f"{root.name}-{case}"))) for case in range(cases)]
    _, *modules = deliver(root.with_name(shutil.copytree(root, root.with_name(f"{root.name}-warm")).name), key)
    for name in modules:  # what is imported already is not among the calls
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(name)
    calls = int(deliver(root, key)[0])
    for copy in copies:
        for part in (1, 2):
            print(copy.name, deliver(copy, key, choice.uniform(1, calls / part))[:1] or "was killed", flush=True)
        while deliver(copy, key)[0] == "-1":
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
