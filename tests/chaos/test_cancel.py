"""A stage that is cancelled ends within five seconds, whatever MLflow's server does."""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from tests.chaos.workspace import Workspace

STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ENDS = 5.0


@pytest.fixture
def cancelled(copy_of_whole: Callable[[str], Workspace]) -> Workspace:
    """A workspace for each: a stage that is cancelled leaves the next ones without its outputs."""
    return copy_of_whole("cancelled")


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("stage", STAGES)
def test_a_cancelled_stage_ends_within_five_seconds(
    stage: str, number: signal.Signals, cancelled: Workspace, whole: Workspace
) -> None:
    names = [*whole.begun, ""]
    ends = {**whole.begun, "": whole.seconds}
    length = ends[names[names.index(stage) + 1]] - whole.begun[stage]
    moment = random.Random(f"{stage} {number}").uniform(0, 0.8 * length)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        cancelled.tracking = "on"
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for attempt in range(6):  # this time it may be faster
            process = cancelled.start("--force", "--single-item", stage, MLFLOW_TRACKING_URI=address)
            while not cancelled.begun and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moment / 2**attempt)
            if process.poll() is None:
                break
            assert process.returncode == 0, cancelled.printed[-2000:]
        assert process.poll() is None, f"it has always ended before: {cancelled.printed[-2000:]}"
        os.killpg(process.pid, number)
        begun = time.monotonic()
        while process.poll() is None or _runs(cancelled, stage):
            assert time.monotonic() - begun < ENDS, cancelled.printed[-2000:]
            time.sleep(0.05)
        print(f"{number.name} {moment / 2**attempt:.1f} s in: ended after {time.monotonic() - begun:.1f} s")


def _runs(workspace: Workspace, stage: str) -> bool:
    for process in workspace.processes():
        with contextlib.suppress(psutil.Error):
            if f"stages.{stage}" in process.cmdline():
                return True
    return False
