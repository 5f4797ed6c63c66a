"""What the tests of search share: the small run of the stages' tests, opened as a workspace."""

from collections.abc import Callable
from pathlib import Path

import pytest

from search.collection import PictureCollection, open_workspace
from tests.stages.conftest import SmallRun, make_checkpoint, make_run

__all__ = ["make_checkpoint", "make_run"]


@pytest.fixture
def run(make_run: Callable[..., SmallRun], tmp_path: Path) -> SmallRun:
    """A small run, every switch of the model as in params.yaml."""
    return make_run(tmp_path)


@pytest.fixture
def workspace(run: SmallRun) -> PictureCollection:
    """The small run, opened."""
    return open_workspace(run.root)
