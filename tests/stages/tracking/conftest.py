"""A workspace whose runs are delivered in this process, or beside it as outside of tests."""

import shutil

import pytest

from stages import tracking
from stages.tracking.store import connect, local_uri, search_runs

DELIVER = tracking._deliver


@pytest.fixture
def root(tmp_path, monkeypatch, request):
    """A main workspace without git; nothing is delivered beside a run, but by `sync` in this process."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "CAMP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking, "_deliver", lambda *_: None)
    monkeypatch.setattr(tracking, "WAIT", 120.0)  # a busy machine is no server's fault
    folder = tmp_path / getattr(request, "param", "main")
    (folder / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def store_without_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    connect(folder, local_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def created(root, store_without_runs):
    """The workspace's store exists, without runs: MLflow takes a second of CPU to create one."""
    shutil.copy(store_without_runs, root)


@pytest.fixture
def beside(root, monkeypatch):
    """A process beside each run delivers it, as it does outside of these tests."""
    monkeypatch.setattr(tracking, "_deliver", DELIVER)


def run_of(root, key):
    (run,) = search_runs(connect(root, local_uri(root)), f"tags.`camp.run` = '{key}'")
    return run
