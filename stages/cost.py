"""Time and memory that a stage took, recorded in `.work` and not in DVC's outputs because no result depends on them."""

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
MIN_PRINTED_SECONDS = 0.5
"""Seconds; the cost of a shorter stage is recorded but not printed."""
RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of memory in getrusage."""


@dataclass(frozen=True)
class Cost:
    """Cost of the run that finished a stage; earlier runs that were killed are not counted."""

    seconds: float
    peak_bytes: int
    """Peak resident memory of its process, or of the largest child process."""

    @property
    def time(self) -> str:
        """Minutes and seconds, as 12:05."""
        return "{:d}:{:02d}".format(*divmod(round(self.seconds), 60))

    @property
    def memory(self) -> str:
        """Megabytes, as 1,204 MB."""
        return f"{self.peak_bytes / 1e6:,.0f} MB"


@contextmanager
def record_cost() -> Iterator[None]:
    """Record and print the cost of the body, if it succeeds and DVC runs it as a stage."""
    stage, begun = os.environ.get("DVC_STAGE"), time.monotonic()
    yield
    if stage is None or os.environ.get("RANK", "0") != "0":  # of a training's processes, only the first counts
        return
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RUSAGE_UNIT
    cost = Cost(time.monotonic() - begun, max(resident_bytes("VmHWM"), children))
    file = _file(os.environ.get("DVC_EXP_NAME") or WORKSPACE, stage)
    with suppress(OSError):  # for instance a full disk, although the stage itself succeeded
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(cost))
    if cost.seconds >= MIN_PRINTED_SECONDS:
        print(f"{stage}: {cost.time}, {cost.memory} of memory at most", flush=True)


def resident_bytes(name: str) -> int:
    """Resident memory of this process: VmRSS (now) or VmHWM (peak); where Linux does not tell, the peak for both.

    Linux's own number is used because ru_maxrss starts at the memory of the process that started this one.
    """
    with suppress(OSError, StopIteration):  # some sandboxes leave lines out
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_UNIT


def file_name(stage: str) -> str:
    """A file name for a stage, from its name in DVC (`folder/dvc.yaml:stage`)."""
    return stage.replace(os.sep, "_").replace(":", "_")


def cost_of(stage: str, experiment: str = WORKSPACE) -> Cost | None:
    """The cost of a stage's last run here, or in a DVC experiment; None if unknown."""
    try:
        return Cost(**json.loads(_file(experiment, stage).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _file(experiment: str, stage: str) -> Path:
    return main_root() / FOLDER / experiment / f"{file_name(stage)}.json"
