"""What a stage that fails says of the outputs that DVC has removed."""

import os
import subprocess
import sys

import pytest

DVC = [sys.executable, "-m", "dvc"]
PIPELINE = """
stages:
  train:
    cmd: {python} stage.py
    deps: [input]
    outs: [models/camp]
"""
STAGE = """
import os, sys
from pathlib import Path
from stages.entry import stage_main
from stages.errors import InputError
def run():
    if Path("input").read_text() == "wrong":
        raise InputError("input: is wrong")
    Path("models").mkdir(exist_ok=True)
    Path("models/camp").write_text("trained")
stage_main(run)
"""


@pytest.fixture
def dvc(tmp_path, repository):
    environment = os.environ | {"PYTHONPATH": str(repository), "DVC_NO_ANALYTICS": "true"}
    (tmp_path / "dvc.yaml").write_text(PIPELINE.format(python=sys.executable))
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text("{}\n")

    def run(*arguments):
        return subprocess.run(
            [*DVC, *arguments], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )

    assert run("init", "--no-scm").returncode == 0
    return run


def test_a_failed_stage_says_how_its_last_outputs_come_back(dvc, tmp_path):
    (tmp_path / "input").write_text("wrong")
    assert "dvc checkout" not in dvc("repro").stderr, "there are none yet"
    (tmp_path / "input").write_text("right")
    assert dvc("repro").returncode == 0
    (tmp_path / "input").write_text("wrong")
    printed = dvc("repro").stderr
    hint = "models/camp: DVC removed the last before it ran train; `dvc checkout models/camp` restores it"
    assert f"error: input: is wrong\n{hint}" in printed
    assert not (tmp_path / "models" / "camp").exists()
    assert dvc("checkout", "models/camp").returncode == 0
    assert (tmp_path / "models" / "camp").read_text() == "trained"
