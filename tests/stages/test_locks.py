"""Two processes never write one stage's outputs; a stage ends with its dvc."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.locks import Held, hold_outputs

HOLD = """
import sys, time
from pathlib import Path
from stages.locks import hold_outputs
with hold_outputs("train", Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_second_says_who_holds_the_outputs(tmp_path):
    with (
        holder(tmp_path, 60) as other,
        pytest.raises(Held, match=rf'"pid": {other.pid}'),
    ):
        try:
            with hold_outputs("train", tmp_path, patience=0.5):
                pass
        finally:
            other.kill()
    with hold_outputs("train", tmp_path, patience=5):  # a killed holder lets go
        pass


def test_the_second_waits(tmp_path, capsys):
    with holder(tmp_path, 1):
        begun = time.monotonic()
        with hold_outputs("train", tmp_path):
            waited = time.monotonic() - begun
    assert waited > 0.3
    assert "waiting for it" in capsys.readouterr().err
    with hold_outputs("evaluate", tmp_path), hold_outputs("train", tmp_path):
        pass


STAGE = """
import time
from stages.params import stage_main
def main():
    print("running", flush=True)
    time.sleep(30)
stage_main(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system sends the signal on Linux only")
def test_a_stage_ends_when_its_dvc_is_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen([sys.executable, "-c", start, STAGE], stdout=subprocess.PIPE) as dvc:
        assert dvc.stdout is not None
        assert dvc.stdout.readline() == b"running\n"
        dvc.kill()
        begun = time.monotonic()
        assert dvc.stdout.read() == b""  # until the stage's end of the pipe is closed
    assert time.monotonic() - begun < 10
    with hold_outputs("train", Path(".work/locks"), patience=5):
        pass
