"""What a flow's page says of the MLflow run behind a model, and of the numbers of another revision."""

import subprocess
from pathlib import Path

import pytest

from camp_model.files import sha256_of
from pipelines.dag import metrics_diff
from pipelines.summary import diff_markdown, mlflow_link
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


def test_a_revision_that_does_not_exist_is_not_said_to_have_the_same_numbers(repository):
    """As `main` where the branch is `master`; a revision without the file is compared with nothing."""
    Path("metrics").mkdir()
    Path("metrics/retrieval.json").write_text('{"test": {"rsum": 3.0}}')
    Path("dvc.yaml").write_text("stages: {one: {cmd: x, metrics: [metrics/retrieval.json: {cache: false}]}}")
    assert metrics_diff("HEAD") == [{"metric": "retrieval: test.rsum", "HEAD": None, "now": 3.0, "change": None}]
    assert "| retrieval: test.rsum |  | 3.0 |  |" in diff_markdown(metrics_diff("HEAD"), "HEAD")
    subprocess.run(["git", "add", "--all"], check=True)
    subprocess.run(["git", "commit", "-qm", "numbers"], check=True)
    assert "No number differs from HEAD." in diff_markdown(metrics_diff("HEAD"), "HEAD")
    assert metrics_diff("nowhere") is None
    assert "Not compared" in diff_markdown(metrics_diff("nowhere"), "nowhere")
