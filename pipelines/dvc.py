"""DVC for flows: `python -m pipelines.dvc ARGUMENTS` is `dvc ARGUMENTS`, but SIGTERM interrupts it as Ctrl-C does.

To begin an experiment, DVC stashes the changes of this workspace, detaches HEAD and writes the experiment's params into
params.yaml. Interrupted, it restores all of it; SIGTERM, with which a flow ends its commands, would leave it so.
"""

import os
import signal
import sys
from types import FrameType

from dvc.cli import main

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(arguments: list[str]) -> int:
    """Run DVC; return its exit code, or 128 + the number of the signal that interrupted it."""
    heard: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # DVC waits for a stage, which ends with this process
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in SIGNALS:  # another signal must not end what the first has begun
            signal.signal(each, signal.SIG_IGN)
        heard.append(number)
        raise KeyboardInterrupt

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored on purpose
            signal.signal(number, interrupt)
    code = int(main(arguments))
    return 128 + heard[0] if heard else code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
