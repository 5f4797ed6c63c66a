"""The DAG is killed again and again, and ends with the files of a run that nothing interrupted."""

import itertools
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.workspace import HERE, Workspace

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def moments(whole: Workspace, count: int, seed: int) -> list[tuple[signal.Signals, list[str], float]]:
    """Signal, a stage and those after it, and seconds from the beginning of the first of them that has still to run:
    `count` of them, spread over the stages in their order, the first before any stage."""
    choice = random.Random(seed)
    stages = list(whole.begun)
    ends = [*(whole.begun[stage] for stage in stages[1:]), whole.seconds]
    lengths = {stage: end - whole.begun[stage] for stage, end in zip(stages, ends, strict=True)}
    chosen = []
    for number, place in enumerate(sorted(i % (len(stages) + 1) for i in range(count))):
        length = lengths[stages[place - 1]] if place else whole.begun[stages[0]]
        kind = SIGNALS[0] if number % 5 else SIGNALS[1 + number // 5 % 2]
        chosen.append((kind, stages[place - 1 :] if place else [], choice.uniform(0, length)))
    return chosen


def assert_same(workspace: Workspace, whole: Workspace) -> None:
    workspace.repro()
    assert "Running stage" not in (workspace.repro(), workspace.printed)[1], "it was done, and nothing is left to do"
    differing = {path for path, md5 in whole.hashes().items() if workspace.hashes().get(path) != md5}
    assert differing == set()
    for path in itertools.chain(whole.folder.glob("metrics/*.json"), whole.folder.glob("plots/*")):
        assert (workspace.folder / path.relative_to(whole.folder)).read_bytes() == path.read_bytes(), path
    workspace.assert_nothing_runs()
    assert workspace.orphans() == []


WRITES = {
    "a Parquet file": ("prepare_dataset", "images.parquet", "fsync"),
    "a file on its way into DVC's cache": ("prepare_dataset", ".dvc/cache/files", "rename"),
    "the detector's weights": ("train_detector", "weights.safetensors", "replace"),
    "a shard": ("extract_regions", ".arrow", "fsync"),
    "the link of a shard": ("extract_regions", ".arrow", "link"),
    "a training's state": ("train", "state.safetensors", "fsync"),
    "the best weights": ("train", "model.safetensors", "fsync"),
    "the published model": ("train", "models/camp", "rename"),
    "the index": ("index", "index.faiss", "fsync"),
    "the metrics": ("evaluate", "retrieval.json", "replace"),
    "the page": ("report", "index.html", "fsync"),
}
"""What is being written -> the stage, part of its path, and the call at which the process group is killed."""


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_killed_in_the_middle_of_its_writes_the_dag_ends_with_the_same_bytes(
    whole: Workspace, make_workspace: Callable, tmp_path: Path
) -> None:
    workspace = make_workspace("written")
    hit = []
    for name, (stage, path, call) in WRITES.items():
        done = tmp_path / name.replace(" ", "-")
        more = {"CAMP_KILL_AT": path, "CAMP_KILL_CALL": call, "CAMP_KILL_DONE": str(done)}
        process = workspace.start(stage, **more, PYTHONPATH=f"{HERE}:{workspace.folder}")
        code = process.wait(600)
        workspace.reader.join(20)
        workspace.assert_nothing_runs()
        print(f"{name}: {done.read_text() if done.exists() else 'not written so'}, {code}", flush=True)
        if done.exists():
            assert code != 0
            hit.append(name)
        else:
            assert code == 0, workspace.printed[-3000:]
    assert len(hit) >= 10, f"others are not written in this way any more: {set(WRITES) - set(hit)}"
    assert_same(workspace, whole)


@pytest.mark.chaos
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments_the_dag_ends_with_the_same_bytes(
    whole: Workspace, make_workspace: Callable, seed: int
) -> None:
    workspace = make_workspace("killed")
    ended = []
    for number, stages, seconds in moments(whole, 25, seed):
        ended.append(workspace.interrupt(number, stages, seconds))
        where = list(workspace.begun)[-1] if workspace.begun else "the start"
        print(f"{number.name} in {where}, {seconds:.1f} s in: {'ended' if ended[-1] else 'was done'}", flush=True)
    assert sum(ended) >= 20, "nearly all of them came while it ran"
    assert_same(workspace, whole)
