"""Ctrl-C ends a command quietly from its first moment on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stages

ROOT = Path(stages.__file__).parents[1]


@pytest.mark.parametrize("module", ["stages.train", "pipelines.deploy"])
def test_ctrl_c_while_a_command_is_imported_prints_no_traceback(tmp_path, module):
    with subprocess.Popen(
        [sys.executable, "-m", module], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # as from a terminal
    ) as command:  # fmt: skip
        maps = Path(f"/proc/{command.pid}/maps")
        until = time.monotonic() + 60
        while "pydantic_core" not in maps.read_text() and "libtorch" not in maps.read_text():  # which load for long
            assert time.monotonic() < until
            time.sleep(0.005)
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=60)[1] == ""
    assert command.returncode == -signal.SIGINT
