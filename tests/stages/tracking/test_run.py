"""Runs reach MLflow whatever the server does. Stores, servers and killed processes are real ones on loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from camp_model.files import sha256_of
from stages import tracking
from stages.errors import InputError
from stages.tracking import flatten, track, training_run_of
from stages.tracking import machine as tracking_machine
from stages.tracking.__main__ import main as commands
from stages.tracking.restore import find_run
from stages.tracking.spool import Spool, pending
from stages.workspace import main_root


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """A repository of one commit to run in, and no setting of the machine's own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "CAMP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking_machine, "SAMPLE_EVERY", 0.2)
    monkeypatch.setattr(tracking, "WAIT", 90.0)  # a busy machine is no server's fault
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text("model: {gate: scalar}\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "params.yaml").write_text("model: {gate: none}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def client(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder):
    """The runs in the store of `folder`, by their key."""
    store = client(folder)
    experiment = store.get_experiment_by_name("camp")
    found = store.search_runs([experiment.experiment_id]) if experiment else []
    return {run.data.tags["camp.run"]: run for run in found}


def test_what_looked_at_something_else_leaves_the_numbers_of_the_training_alone(workspace):
    (workspace / "page.html").write_text("of other gates")
    with track("train", {"model": {"gate": "none"}}) as run:
        run.log_metrics({"val/rsum": 300.0}, step=18)
    with track("evaluate", {}, parent=run.run_id) as child:
        child.log_metrics({"val/rsum": 290.0, "test/rsum": 450.5})  # of the val split, which it was asked for
        child.log_artifact("page.html", "report", shared=False)
    with track("evaluate", {"gates": "open"}, parent=run.run_id, shared=False) as other:
        other.log_metrics({"test/rsum": 17.0})
        other.log_artifact("page.html", "gates")
    found, store = runs(workspace), client(workspace)
    train, evaluation, wrecked = (found[each.run_id] for each in (run, child, other))
    assert (train.data.metrics["test/rsum"], train.data.metrics["val/rsum"]) == (450.5, 300.0)
    assert [point.step for point in store.get_metric_history(train.info.run_id, "val/rsum")] == [18]
    assert evaluation.data.metrics == {"val/rsum": 290.0, "test/rsum": 450.5}
    assert wrecked.data.metrics["test/rsum"] == 17.0
    assert wrecked.data.tags["mlflow.parentRunId"] == train.info.run_id
    assert {file.path for file in store.list_artifacts(train.info.run_id)} == {"code"}


def test_a_train_run_and_its_evaluation(workspace, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-name")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "flow-1")
    (workspace / "curve.csv").write_text("step,loss\n")
    with track("train", {"model": {"gate": "none", "dim": 8}, "train": {"freeze": ()}}, tags={"dataset": "d1"}) as run:
        for step in range(2500):
            run.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
        run.log_metrics({"val/rsum": 300.0}, step=1)
        run.log_dataset("regions", Path("data/regions"), "ab" * 32)
        run.log_artifact("curve.csv", "plots")
        time.sleep(1.5)
    with track("evaluate", {"evaluate": {"splits": ("test",)}}, parent=run.run_id) as child:
        child.log_metrics({"test/rsum": 450.5})
        child.log_artifact("curve.csv", "report")

    found = runs(workspace)
    train, evaluation = found[run.run_id], found[child.run_id]
    assert train.data.params == {"model.gate": "none", "model.dim": "8", "train.freeze": "[]"}
    assert train.info.status == evaluation.info.status == "FINISHED"
    assert train.info.run_name == "brave-name"
    assert evaluation.data.tags["mlflow.parentRunId"] == train.info.run_id
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    tags = train.data.tags
    assert (tags["git.commit"], tags["git.changed"], tags["dvc.experiment"]) == (head, "True", "brave-name")
    assert (tags["prefect.flow_run"], tags["dataset"], tags["data.regions"]) == ("flow-1", "d1", "ab" * 32)
    assert len(tags["dvc.lock"]) == 64
    # One row holds everything: the child's numbers and files are the train run's too.
    assert train.data.metrics["test/rsum"] == evaluation.data.metrics["test/rsum"] == 450.5
    assert "system/cpu_utilization_percentage" in train.data.metrics
    assert "train/loss" not in evaluation.data.metrics
    store = client(workspace)
    assert len(store.get_metric_history(train.info.run_id, "train/loss")) == 2500
    assert train.inputs.dataset_inputs[0].dataset.name == "regions"
    folders = ("code", "plots", "report")
    files = {item.path for folder in folders for item in store.list_artifacts(train.info.run_id, folder)}
    assert files == {"code/params.yaml", "code/dvc.lock", "code/changes.patch", "plots/curve.csv", "report/curve.csv"}
    assert pending(workspace) == []


TRAINING = """
import sys, time
from stages import tracking
from stages.tracking import track
tracking.WAIT = 90.0
with track("train", {"a": 1}, run_id=sys.argv[1] if len(sys.argv) > 1 else None) as run:
    run.log_metrics({"train/loss": 2.0}, step=0 if len(sys.argv) == 1 else 1)
    print(run.run_id, flush=True)
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 60)
"""


def test_a_killed_run_is_closed_as_killed_and_a_resumed_one_goes_on(workspace):
    with subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        key = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not pending(workspace), 40)
    assert runs(workspace)[key].info.status == "KILLED"
    done = subprocess.run([sys.executable, "-c", TRAINING, key, "0"], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    run = runs(workspace)[key]
    assert len(runs(workspace)) == 1
    assert run.info.status == "FINISHED"
    assert [point.step for point in client(workspace).get_metric_history(run.info.run_id, "train/loss")] == [0, 1]


def test_a_model_leads_to_its_run_where_only_the_server_knows_it(workspace):
    (workspace / "camp").mkdir()
    (workspace / "camp" / "model.safetensors").write_bytes(b"weights")
    with track("train", {}, tags={"camp.model": sha256_of(workspace / "camp" / "model.safetensors")}) as run:
        pass
    parent = training_run_of(workspace / "camp")
    assert parent is not None and parent.startswith("model-")
    with track("evaluate", {}, parent=parent) as child:
        child.log_metrics({"test/rsum": 450.5})
    found = runs(workspace)
    assert found[child.run_id].data.tags["mlflow.parentRunId"] == found[run.run_id].info.run_id
    assert found[run.run_id].data.metrics["test/rsum"] == 450.5
    assert find_run(client(workspace), parent[:20]).info.run_id == found[run.run_id].info.run_id


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.5)


@contextlib.contextmanager
def silent_server():
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []
        threading.Thread(target=lambda: [kept.append(listener.accept()) for _ in range(50)], daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for connection, _ in kept:
            connection.close()


@contextlib.contextmanager
def refusing_server():
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("server", [refusing_server, silent_server])
def test_an_unusable_server_costs_seconds_and_loses_nothing(workspace, monkeypatch, capsys, server):
    monkeypatch.setattr(tracking, "WAIT", 18.0)
    with server() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        begun = time.monotonic()
        with pytest.raises(ArithmeticError), track("train", {"a": 1}) as run:
            run.log_metrics({"train/loss": 1.0}, step=3)
            run.log_artifact("params.yaml", "plots")
            raise ArithmeticError
        first = time.monotonic() - begun
        assert capsys.readouterr().err.count("warning:") == 1
        if server is refusing_server:
            with pytest.raises(InputError, match="did not take it"):
                commands(["sync"])
        begun = time.monotonic()
        for kind in ("evaluate", "report"):
            with track(kind, {}, parent=run.run_id):
                pass
        assert first + time.monotonic() - begun < 30  # in all, a pipeline's three runs
    assert pending(workspace)[0].name == run.run_id
    assert len(pending(workspace)) == 3
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    wait_for(delivered, 60)  # the first delivery may be in its last call
    assert pending(workspace) == []
    late = runs(workspace)[run.run_id]
    assert late.info.status == "FAILED"
    assert late.data.metrics["train/loss"] == 1.0
    assert late.info.end_time - late.info.start_time < 28_000


def delivered():
    try:
        commands(["sync"])
    except InputError:
        return False
    return True


def test_a_cancelled_run_waits_for_no_server(workspace, monkeypatch):
    with silent_server() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(KeyboardInterrupt), track("train", {"a": 1}) as run:
            run.log_metrics({"train/loss": 1.0}, step=3)
            begun = time.monotonic()
            raise KeyboardInterrupt
        assert time.monotonic() - begun < 5
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    wait_for(delivered, 60)
    late = runs(workspace)[run.run_id]
    assert late.info.status == "KILLED" and late.data.metrics["train/loss"] == 1.0


def test_a_run_whose_reader_is_gone_was_killed(workspace):
    with pytest.raises(BrokenPipeError), track("train", {}) as run:
        raise BrokenPipeError
    wait_for(delivered, 60)
    assert runs(workspace)[run.run_id].info.status == "KILLED"


def test_the_next_run_delivers_what_an_earlier_one_left(workspace):
    left = Spool(workspace, "a" * 32)
    left.write("start", kind="train", name="left", parent=None, uri="", experiment="camp", resumed=False)
    left.write("metrics", values={"train/loss": 4.0}, step=0, also=None)
    left.write("end", status="FINISHED")
    left.close()
    with track("train", {}):
        wait_for(lambda: len(pending(workspace)) == 1, 30)
    assert runs(workspace)["a" * 32].data.metrics["train/loss"] == 4.0
    assert len(runs(workspace)) == 2


def test_many_begin_a_new_store_at_once_and_one_was_killed_over_it(workspace):
    (workspace / "mlflow.db.new").write_bytes(b"half a file")
    begin = "import sys; from pathlib import Path; from stages.tracking.store import connect, store_uri\n"
    begin += "root = Path(sys.argv[1]); print(connect(root, store_uri(root)).create_experiment(sys.argv[2]))"
    commands = [[sys.executable, "-c", begin, str(workspace), str(number)] for number in range(3)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    made = [process.communicate(timeout=120)[0] for process in processes]
    assert len(set(made)) == 3 and b"" not in made
    assert not (workspace / "mlflow.db.new").exists()


def test_experiment_workspaces_use_the_main_store(tmp_path, monkeypatch):
    inside = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    (inside / ".dvc").mkdir(parents=True)
    (inside / "deep").mkdir()
    assert main_root(inside / "deep") == tmp_path
    assert main_root(tmp_path) == tmp_path
    monkeypatch.setenv("DVC_ROOT", str(inside / "deep"))
    assert main_root(tmp_path) == inside / "deep"


@pytest.mark.parametrize("setting", [("RANK", "1"), ("CAMP_TRACKING", "off")])
def test_nothing_is_recorded_where_it_is_not_wanted(workspace, monkeypatch, setting):
    monkeypatch.setenv(*setting)
    with track("train", {}) as run:
        run.log_metrics({"train/loss": 1.0})
        run.log_artifact("nowhere.csv")
    assert run.run_id is None
    assert not Path(".tracking").exists()


def test_logging_a_step_is_cheap(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "WAIT", 0.0)
    with track("train", {}) as run:
        begun = time.perf_counter()
        for step in range(1000):
            run.log_metrics({"train/loss": 1.0, "train/learning_rate": 0.1}, step=step)
        assert (time.perf_counter() - begun) / 1000 < 1e-3


def test_flatten():
    assert flatten({"a": {"b": None, "c": (1, 2)}, "d": "x"}) == {"a.b": "None", "a.c": "[1, 2]", "d": "x"}
    assert os.environ.get("RANK") is None
