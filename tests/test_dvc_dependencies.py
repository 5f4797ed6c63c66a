"""dvc.yaml lists for a stage exactly the project files that can change its result."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from stages.params.section import StageSections
from tests.imports import PACKAGES, ROOT, closure, has_code, modules

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
NEVER = ("stages.entry", "stages.cost", "stages.tracking")
"""What decides when a stage runs and what is recorded of it, never what it makes."""
CODE = {".py", ".c", ".json", ".jinja", ".js", ".css"}


def imported_files(stage: str) -> set[Path]:
    """The files of the modules that a stage imports, and the data that lies beside them and is theirs."""
    files = {modules()[name] for name in closure(f"stages.{stage}", NEVER)}
    files = {path for path in files if path.name != "__init__.py" or has_code(path)}
    folders = {path.parent for path in files}
    # What is no module is read by a module of its folder that names it.
    for folder in folders:
        for path in folder.iterdir():
            if path.suffix in CODE - {".py"} and any(
                path.name in code.read_text(encoding="utf-8") for code in files if code.parent == folder
            ):
                files.add(path)
    return files


def code_dependencies(stage: str) -> list[str]:
    """The deps of a stage that are code of the project, as written."""
    return [
        dep for dep in STAGES[stage]["deps"] if dep.split("/")[0] in ("camp_model", "stages", "search", "pipelines")
    ]


def files_of(dependency: str) -> set[Path]:
    path = ROOT / dependency
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in CODE]
    return {file for file in files if file.name != "__init__.py" or has_code(file)}


def shortest(files: set[Path]) -> list[str]:
    """The files as dvc.yaml lists them: a folder where all of it is meant."""
    listed: set[Path] = set()
    for path in files:
        whole = path
        for folder in path.parents:
            if folder == ROOT or not files_of(str(folder.relative_to(ROOT))) <= files:
                break
            whole = folder
        listed.add(whole)
    return sorted(str(path.relative_to(ROOT)) for path in listed)


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_imports(stage: str) -> None:
    listed = {file for dependency in code_dependencies(stage) for file in files_of(dependency)}
    imported = imported_files(stage)
    wanted = "\n".join(f"      - {line}" for line in shortest(imported))
    assert sorted(map(str, imported - listed)) == [], f"missing; expected of {stage}:\n{wanted}"
    assert sorted(map(str, listed - imported)) == [], f"too much; expected of {stage}:\n{wanted}"


@pytest.mark.parametrize("stage", STAGES)
def test_python_imports_nothing_that_the_deps_do_not_know(stage: str) -> None:
    names = f"import sys, stages.{stage}; print(*(name for name in sys.modules if name.split('.')[0] in {PACKAGES}))"
    done = subprocess.run([sys.executable, "-c", names], cwd=ROOT, capture_output=True, text=True, check=True)
    ways = {name for start in NEVER for name in closure(start)}
    imported = {modules()[name] for name in done.stdout.split() if name not in ways}
    assert {path for path in imported if path.name != "__init__.py" or has_code(path)} <= imported_files(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_that_only_runs_or_records_a_stage_makes_it_stale(stage: str) -> None:
    never = tuple(name.replace(".", "/") for name in NEVER)
    assert not [dep for dep in code_dependencies(stage) if dep.startswith(never)]


@pytest.mark.parametrize("stage", STAGES)
def test_the_params_of_a_stage_are_the_sections_that_it_reads(stage: str) -> None:
    module = importlib.import_module(f"stages.{stage}")
    (sections,) = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, StageSections) and value is not StageSections
    }
    listed = {name.split(".")[0] for name in STAGES[stage]["params"] if isinstance(name, str)}
    assert listed == set(sections.model_fields)
    for name in filter(lambda name: isinstance(name, str), STAGES[stage]["params"]):
        value = sections()
        for key in name.split("."):
            value = getattr(value, key)


def test_what_macos_writes_into_a_folder_that_it_shows_is_no_change() -> None:
    with Repo(str(ROOT)) as repo:
        for folder in ("data/regions", "models/camp", "camp_model/encoders"):
            assert repo.dvcignore.is_ignored_file(str(ROOT / folder / ".DS_Store"))
            assert not repo.dvcignore.is_ignored_file(str(ROOT / folder / "a.arrow"))
    subprocess.run(["git", "check-ignore", "--quiet", "presets/.DS_Store"], cwd=ROOT, check=True)
