"""Fixtures that every test may use."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from stages.garbage import exempt_from_collection

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST = ("e2e/test_pipeline.py", "pipelines/test_deploy.py", "stages/training/test_processes.py",
           "e2e/test_real_photographs.py", "search/test_folder.py", "stages/training/test_resume.py")  # fmt: skip
"""Files of minutes: begun first, so that none of them is waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))


def pytest_configure() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    exempt_from_collection()  # tests and libraries
    gc.enable()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """A folder of real COCO photographs with caption and instance annotations (CAMP_COCO_MINI names another)."""
    folder = Path(os.environ.get("CAMP_COCO_MINI", REPOSITORY.parent / "shared" / "data" / "coco-mini"))
    if not (folder / "annotations").is_dir():
        pytest.skip(f"no COCO photographs at {folder}: set CAMP_COCO_MINI to a folder in COCO's layout")
    return folder


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that makes a folder, for PREFECT_HOME, with an empty database, which costs a server 4 s of CPU."""
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect-home"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            unfinished = tmp_path_factory.mktemp("prefect-database")
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
            environment |= {"PREFECT_HOME": str(unfinished)}
            subprocess.run(command, env=environment, check=True, capture_output=True)
            unfinished.rename(made)
    return lambda folder: shutil.copytree(made, folder, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a headless-capable Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium on PATH: install Debian's package `chromium` to test pages in a real browser")


@pytest.fixture(scope="session")
def listening() -> Callable[[int], set[str]]:
    """The addresses that a process and all that it has started listen on."""

    def addresses(pid: int) -> set[str]:
        process = psutil.Process(pid)
        return {
            connection.laddr.ip.removeprefix("::ffff:")  # gRPC's way to write an address of IPv4
            for member in (process, *process.children(recursive=True))
            for connection in member.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }

    return addresses
