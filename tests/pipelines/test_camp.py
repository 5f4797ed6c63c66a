"""The console command, as it is installed, from another folder than the repository."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipelines
from pipelines.camp import COMMANDS

ROOT = Path(pipelines.__file__).parents[1]


def camp(folder, *arguments, code=0, **environment):
    variables = {name: value for name, value in os.environ.items() if name != "CAMP_REPOSITORY"} | environment
    command = [sys.executable, "-m", "pipelines.camp", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=variables | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def other(tmp_path):
    """A repository with nothing but params of its own."""
    (tmp_path / "other/deep").mkdir(parents=True)
    (tmp_path / "other/dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "other/params.yaml").write_text("train: {epochs: 0}\n")
    return tmp_path / "other"


def test_it_lists_the_commands_and_each_is_there(tmp_path):
    said = camp(tmp_path)
    assert all(f"  {name} " in said for name in COMMANDS)
    for module, _ in COMMANDS.values():
        path = ROOT.joinpath(*module.split("."))
        source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert "main" in ast.parse(source.read_text()).body[-1].test.comparators[0].value  # what `python -m` starts
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["camp"]
    assert entry == "pipelines.camp:main"


def test_a_command_works_in_the_repository_that_is_named(tmp_path, other):
    assert "params.yaml is valid" in camp(tmp_path, "--repository", str(ROOT), "params")
    assert "epochs" in camp(tmp_path, "params", code=2, CAMP_REPOSITORY=str(other))
    assert "epochs" in camp(other / "deep", "params", code=2)
    assert "is not a repository of the pipeline" in camp(tmp_path, "params", code=2)


def test_a_preset_where_it_is_called_goes_before_one_of_the_repository(tmp_path, other):
    for name in ("dvc.yaml", "params.yaml"):
        (other / name).write_bytes((ROOT / name).read_bytes())
    (other / "mine.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "mine.yaml").write_text("train: {epochs: 9}\n")
    for folder, epochs in ((other / "deep", 2), (tmp_path, 9)):
        camp(folder, "--repository", str(other), "params", "mine.yaml")
        assert f"\n  epochs: {epochs} " in (other / "params.yaml").read_text()


def test_checkpoints_are_imported_from_the_folder_that_it_is_called_in(tmp_path):
    (tmp_path / "words.json").write_text("{}")
    (tmp_path / "best.pth.tar").write_bytes(b"no checkpoint")
    arguments = ("import", "best.pth.tar", "--vocabulary", "words.json", "--out", "model")
    said = camp(tmp_path, "--repository", str(ROOT), *arguments, code=2)
    assert "No such file" not in said and "words.json" in said
