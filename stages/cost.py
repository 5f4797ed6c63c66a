"""What a stage took, its time and its memory: kept below `.work`, beside what DVC knows, as no result depends on it."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from camp_model.files import write_json
from stages.workspace import main_root

FOLDER = Path(".work") / "costs"
WORKSPACE = "workspace"
SAID_FROM = 0.5
"""Seconds; what a shorter stage took is recorded, and not worth a line."""
RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one of getrusage's units of memory."""


@dataclass(frozen=True)
class Cost:
    """What the run of a stage that finished it took; one that was killed before is not counted."""

    seconds: float
    peak_bytes: int
    """Resident memory of its process at most, or of the largest that it started."""

    @property
    def time(self) -> str:
        """Minutes and seconds, as 12:05."""
        return "{:d}:{:02d}".format(*divmod(round(self.seconds), 60))

    @property
    def memory(self) -> str:
        """Megabytes, as 1,204 MB."""
        return f"{self.peak_bytes / 1e6:,.0f} MB"


@contextmanager
def recording() -> Iterator[None]:
    """Record and say what the body took, where it ends well and DVC runs it as a stage."""
    stage, begun = os.environ.get("DVC_STAGE"), time.monotonic()
    yield
    if stage is None or os.environ.get("RANK", "0") != "0":  # of several processes of one training, the first speaks
        return
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RUSAGE_UNIT
    cost = Cost(time.monotonic() - begun, max(resident_bytes("VmHWM"), children))
    file = _file(os.environ.get("DVC_EXP_NAME") or WORKSPACE, stage)
    with suppress(OSError):  # a full disk, say, which the stage itself has come through
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(cost))
    if cost.seconds >= SAID_FROM:
        print(f"{stage}: {cost.time}, {cost.memory} of memory at most", flush=True)


def resident_bytes(name: str) -> int:
    """Resident memory of this process: VmRSS (now) or VmHWM (at most); where Linux does not say, at most for both.

    Linux's own number, for ru_maxrss begins at what the process that started this one has in memory.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_UNIT
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))


def file_name(stage: str) -> str:
    """A stage's name, as DVC gives it (`folder/dvc.yaml:stage`), for a file."""
    return stage.replace(os.sep, "_").replace(":", "_")


def cost_of(stage: str, experiment: str = WORKSPACE) -> Cost | None:
    """What a stage took when it last ran here, or in a DVC experiment; None: not known."""
    try:
        return Cost(**json.loads(_file(experiment, stage).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _file(experiment: str, stage: str) -> Path:
    return main_root() / FOLDER / experiment / f"{file_name(stage)}.json"
