"""The repository in small, run once without interruption: what every interrupted run is compared with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.workspace import SMALL, Workspace
from tests.e2e.conftest import copy_repository

__all__ = ["copy_repository"]


@pytest.fixture(scope="session")
def make_workspace(copy_repository: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """A function (name, tracking="off") that makes a copy in which nothing has run."""

    def make(name: str, tracking: str = "off") -> Workspace:
        return Workspace(copy_repository(tmp_path_factory.mktemp(name), SMALL), tracking)

    return make


@pytest.fixture(scope="session")
def whole(make_workspace: Callable[..., Workspace]) -> Workspace:
    """A workspace after one `dvc repro` that nothing interrupted; `begun` tells when its stages began."""
    workspace = make_workspace("whole")
    workspace.seconds = workspace.repro()
    return workspace


@pytest.fixture(scope="session")
def copy_of_whole(whole: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """A function (name) that copies the workspace in which everything has run, DVC's cache included."""

    def copy(name: str) -> Workspace:
        folder = tmp_path_factory.mktemp(name) / "copy"
        shutil.copytree(whole.folder, folder, symlinks=True)
        return Workspace(folder)

    return copy
