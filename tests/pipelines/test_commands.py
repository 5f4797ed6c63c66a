"""Commands that flows run: streamed, explained when they fail, and ended with their flow."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines import commands
from pipelines.commands import CommandFailed, allow_commands, failure_reason, run_command, stop_commands


def test_a_command_is_streamed_and_its_failure_explained():
    said = []
    script = "import sys; [print(i, end='\\r') for i in range(50)]; print('done'); sys.exit(3)"
    with pytest.raises(CommandFailed, match="code 3") as caught:
        run_command([sys.executable, "-c", script], said.append)
    assert caught.value.reason == "error"
    assert said == ["0", "done"]


def test_a_process_that_a_command_leaves_behind_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(commands, "GRACE", 2.0)
    script = """
import subprocess, sys
code = "import time; time.sleep(1); print('saved', flush=True); time.sleep(120)"
child = subprocess.Popen([sys.executable, "-c", code])
print(child.pid, flush=True)
print("x" * 200_000)
"""
    begun, said = time.monotonic(), []
    try:
        run_command([sys.executable, "-c", script], said.append)
        assert time.monotonic() - begun < 60
        assert (len(said[1]), said[2]) == (200_000, "saved")
    finally:
        os.kill(int(said[0]), signal.SIGKILL)


def test_ending_a_flow_ends_its_command():
    allow_commands()
    with ThreadPoolExecutor() as threads:
        command = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
        said = []
        future = threads.submit(run_command, command, said.append)
        while not said:
            time.sleep(0.05)
        stop_commands()
        with pytest.raises(CommandFailed) as caught:
            future.result(timeout=20)
    assert caught.value.reason == "error"  # not worth another try
    with pytest.raises(CommandFailed, match="being ended"):
        run_command(command, said.append)
    allow_commands()


@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        (255, "failed to run: python -m stages.train, exited with 2", "error"),
        (255, "failed to run: python -m stages.train, exited with -9", "killed"),
        (255, "failed to run: x, exited with 75", "busy"),
        (-9, "", "killed"),
        (255, "torch.OutOfMemoryError: CUDA out of memory\nexited with 1", "memory"),
        (255, "urllib3: Connection refused", "network"),
        (1, "ZeroDivisionError", "error"),
        (255, "failed to run: x, exited with 20\nConnection refused", "network"),  # 20 is not 2
        (255, "failed to run: x, exited with 255\nNCCL", "worker"),
        (255, "RuntimeError: [pair.cc:553] Connection closed by peer [10.0.0.2]:53\nexited with 1", "worker"),
        (255, "failed to run: x, exited with 1370", "error"),
        (255, "the child exited with 2, which is fine\nfailed to run: x, exited with 137", "killed"),
        (255, "failed to run: x, exited with 750", "error"),
        (255, "failed to run: x, exited with 2\n", "error"),
        (2, "error: regions.batch_size: 0; MemoryError is what you would get", "error"),
        (75, "error: stage train: its outputs are being written by another process", "busy"),
    ],
)
def test_why(code, output, reason):
    assert failure_reason(code, output) == reason
