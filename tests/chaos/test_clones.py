"""Fresh clones on one machine make the same files: with one thread, and with two threads among themselves."""

import subprocess
from collections.abc import Callable

import pytest

from tests.chaos.workspace import Workspace

SUMS = {"data/detector", "metrics/detector.json", "data/regions", "models/camp", "metrics/train.json",
        "plots/train_loss.csv", "plots/val_recall.csv", "plots/val_gates.csv", "data/index", "data/evaluation",
        "metrics/retrieval.json", "metrics/gates.json", "metrics/foils.json", "report"}  # fmt: skip
"""Outputs that hold sums of floats, or what follows from some: with another number of threads they may differ."""


@pytest.fixture(scope="module")
def clone(whole: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Workspace]:
    """A function (name, threads) that clones the repository and reproduces everything in the clone."""

    def make(name: str, threads: int) -> Workspace:
        folder = tmp_path_factory.mktemp(name) / "clone"
        subprocess.run(["git", "clone", "-q", str(whole.folder), str(folder)], check=True)
        assert not (folder / "dvc.lock").exists() and not (folder / ".dvc/cache").exists()
        workspace = Workspace(folder)
        workspace.repro(OMP_NUM_THREADS=str(threads))
        return workspace

    return make


def files(workspace: Workspace) -> dict[str, bytes]:
    """Path -> bytes of every file of every output, and of dvc.lock."""
    outputs = [workspace.folder / path for path in workspace.hashes()]
    every = [path for out in outputs for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]
    every.append(workspace.folder / "dvc.lock")
    return {str(path.relative_to(workspace.folder)): path.read_bytes() for path in every}


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_two_clones_with_one_thread_are_equal_byte_for_byte(clone: Callable, whole: Workspace) -> None:
    first, second = files(whole), files(clone("one-thread", 1))
    assert first.keys() == second.keys() and len(first) > 30
    assert [path for path, content in first.items() if second[path] != content] == []


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_two_threads_change_sums_and_nothing_else(clone: Callable, whole: Workspace) -> None:
    first, second = clone("two-threads", 2), clone("two-threads-again", 2)
    assert files(first) == files(second)
    one, two = whole.hashes(), first.hashes()
    others = sorted(path for path in one if one[path] != two[path])
    print("differ from one thread:", ", ".join(others) or "none")
    assert set(others) <= SUMS and one.keys() >= SUMS
