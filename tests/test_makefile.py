"""`make setup` where Python is too old, or where a first try has left half a .venv."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(repository / name, tmp_path)
    return tmp_path


def setup(clone: Path, python: str) -> str:
    """What `make setup` says, without a package index: it fails there at the latest."""
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    command = ["make", "setup", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    return done.stderr


def pretend(python: Path, version: str) -> None:
    """Make a command that says it is Python of a version."""
    python.parent.mkdir(parents=True, exist_ok=True)
    preset = f"import sys; sys.version_info = ({version})"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{preset}\n$2"\n')
    python.chmod(0o755)


@pytest.mark.parametrize(("version", "known"), [("3, 9", False), ("3, 10", False), ("3, 14", True), ("3, 15", False)])
def test_a_python_that_is_not_supported_is_named(clone: Path, version: str, known: bool) -> None:
    pretend(clone / "python", version)
    said = setup(clone, str(clone / "python"))
    expected = f"Python {version.replace(', ', '.')} is not supported; expected 3.11 to 3.14"
    assert (expected in said) != known and "Traceback" not in said
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("left", ["no pip", "old"])
def test_a_venv_that_cannot_be_used_is_made_anew(clone: Path, left: str) -> None:
    if left == "old":
        for name in ("python", "python3"):
            pretend(clone / ".venv/bin" / name, "3, 9")
    else:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    assert "No matching distribution found for uv" in setup(clone, "python3")
