"""DVC for flows: `python -m pipelines.run_dvc ARGUMENTS` is `dvc ARGUMENTS`, but SIGTERM interrupts it as Ctrl-C does.

To begin an experiment, DVC stashes the changes of this workspace, detaches HEAD and writes the experiment's params into
params.yaml; then it makes a workspace for it. Interrupted, it restores and removes all of this. SIGTERM, with which a
flow ends its commands, would leave it so.

A module `dvc` here would take the place of the package: Prefect puts this folder before all others.
"""

import contextlib
import signal
import sys
from types import FrameType

import psutil
from dvc.cli import main

GRACE = 30
"""Seconds that DVC and its stage may take to end; then it is killed."""


def run(arguments: list[str]) -> int:
    """Run DVC; return its exit code, or 128 + the number of the signal that interrupted it."""
    heard: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if heard:  # another signal must not end what the first has begun
            return
        heard.append(number)
        signal.alarm(GRACE)
        stages = psutil.Process().children()
        for stage in stages:
            with contextlib.suppress(psutil.NoSuchProcess):
                stage.terminate()
        psutil.wait_procs(stages)  # a training saves its state, for which it needs its workspace
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored on purpose
            signal.signal(number, interrupt)
    code = int(main(arguments))
    return 128 + heard[0] if heard else code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
