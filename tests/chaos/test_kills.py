"""The DAG is killed again and again, and ends with the files of a run that nothing interrupted."""

import itertools
import random
import signal
from collections.abc import Callable

import pytest

from tests.chaos.workspace import Workspace

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def moments(whole: Workspace, count: int, seed: int) -> list[tuple[signal.Signals, str | None, float]]:
    """Signal, stage and seconds from its beginning: `count` of them, spread over the stages in their order."""
    choice = random.Random(seed)
    stages = list(whole.begun)
    ends = [*(whole.begun[stage] for stage in stages[1:]), whole.seconds]
    lengths = {stage: end - whole.begun[stage] for stage, end in zip(stages, ends, strict=True)}
    places = sorted(i % (len(stages) + 1) for i in range(count))
    chosen = []
    for number, place in enumerate(places):
        stage = None if place == len(stages) else stages[place]
        length = whole.begun[stages[0]] if stage is None else lengths[stage]
        kind = SIGNALS[0] if number % 5 else SIGNALS[1 + number // 5 % 2]
        chosen.append((kind, stage, choice.uniform(0, length)))
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


@pytest.mark.chaos
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments_the_dag_ends_with_the_same_bytes(
    whole: Workspace, make_workspace: Callable, seed: int
) -> None:
    workspace = make_workspace("killed")
    hit = 0
    for number, stage, seconds in moments(whole, 25, seed):
        hit += workspace.interrupt(number, stage, seconds)
        print(f"{number.name} {seconds:.1f} s into {stage or 'the start'}: {'ended' if hit else 'was done'}")
    assert hit >= 20, "nearly all of them came while it ran"
    assert_same(workspace, whole)
