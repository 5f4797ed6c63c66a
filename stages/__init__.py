"""The stages of dvc.yaml: each module is one stage, a function of (params, input paths, output paths)."""

import contextlib
import math
import os
import sys
from pathlib import Path


def usable_cores(group: Path = Path("/sys/fs/cgroup")) -> int:
    """The processor cores that this process may use: those of its affinity, or fewer if its container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no control groups of version 2, or no quota ("max")
        quota, period = map(int, (group / "cpu.max").read_text(encoding="ascii").split())
        cores = max(1, min(cores, math.ceil(quota / period)))
    return cores


# A container with a quota (of Docker or Kubernetes) sees all cores of its machine. With a thread for each of them, the
# quota is soon spent, and all of them stand still.
if (_cores := usable_cores()) < (os.cpu_count() or 1):
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores))
# OpenMP threads that spin while they wait stop each other from running as soon as another process wants a core too
# (a small matrix product then takes tens of times as long). Threads that never spin sleep between any two operations,
# and to wake them takes as long as a small operation: two threads were no faster than one. So they spin for some 20
# microseconds: `python -m benchmarks training`. Read once, when torch is imported.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Defaults of all progress bars, read once, when tqdm is imported: a log keeps every update as a line.
os.environ.setdefault("TQDM_MININTERVAL", "2")
os.environ.setdefault("TQDM_DYNAMIC_NCOLS", "True")

if sys.argv[:1] == ["-m"]:  # so while `python -m` looks for a command, which imports for seconds
    _print_traceback = sys.excepthook
    sys.excepthook = lambda kind, *rest: None if kind is KeyboardInterrupt else _print_traceback(kind, *rest)
