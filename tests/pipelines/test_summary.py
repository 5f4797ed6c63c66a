"""What a flow's page says of the MLflow run behind a model."""

import pytest

from camp_model.files import sha256_of
from pipelines.summary import mlflow_link
from stages.tracking.store import connect, store_uri


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    for name in ("DVC_ROOT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_the_run_of_a_model_is_linked_or_it_is_said_why_not(checkpoint, monkeypatch):
    sha256 = sha256_of(checkpoint / "model.safetensors")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert mlflow_link(checkpoint) == f"`model-{sha256}` (tag camp.run or camp.model; the server does not answer now)"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    client = connect(checkpoint, store_uri(checkpoint))
    assert mlflow_link(checkpoint) == f"`model-{sha256}` (tag camp.run or camp.model; MLflow has no such run yet)"
    run = client.create_run("0", tags={"camp.run": "0123", "camp.model": sha256}, run_name="train")
    assert mlflow_link(checkpoint) == f"[train](http://127.0.0.1:5000/#/experiments/0/runs/{run.info.run_id})"
    assert mlflow_link(checkpoint / "empty") is None
