"""What MLflow refuses stays in the spool, the rest arrives, and the person at the terminal is told. Stores are real."""

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from stages import tracking
from stages.errors import InputError
from stages.tracking import track
from stages.tracking.__main__ import main as commands
from stages.tracking.delivery import Delivery, sync
from stages.tracking.spool import SPOOL, pending
from stages.tracking.store import connect, local_uri, open_experiment
from tests.stages.tracking.conftest import run_of

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("created")]


def delete_experiment(root):
    client = connect(root, local_uri(root))
    number = open_experiment(client, root, "camp").experiment_id
    client.delete_experiment(number)
    return client, number


@pytest.mark.timeout(300)
def test_a_deleted_experiment_is_told_of_once_and_costs_nothing(root, beside, capsys):
    client, number = delete_experiment(root)
    with track("train", {"a": 1}) as run:
        run.log_metrics({"train/loss": 2.0})
    said = capsys.readouterr().err
    assert said.count("warning:") == 1 and "Nothing is lost" in said
    assert f"mlflow experiments restore -x {number}" in said and local_uri(root) in said
    assert [folder.name for folder in pending(root)] == [run.run_id]
    with pytest.raises(InputError, match="'camp' is deleted"):
        commands(["sync"])
    client.restore_experiment(number)
    commands(["sync"])
    assert run_of(root, run.run_id).data.metrics["train/loss"] == 2.0
    assert pending(root) == []


def test_runs_of_a_deleted_experiment_may_go_to_another(root, monkeypatch):
    with track("train", {"a": 1}) as run:
        run.log_metrics({"train/loss": 2.0})
        sync(root)  # half of it is delivered before the experiment is deleted
        client, _ = delete_experiment(root)
        run.log_metrics({"train/loss": 1.0}, step=1)
    assert sync(root)[0] == 0
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert sync(root) == (1, [])
    late = run_of(root, run.run_id)
    assert client.get_experiment(late.info.experiment_id).name == "other"
    assert [point.value for point in client.get_metric_history(late.info.run_id, "train/loss")] == [2.0, 1.0]


def test_a_run_that_is_deleted_while_it_goes_on_is_begun_anew(root):
    with track("train", {"a": 1}) as run:
        run.log_metrics({"train/loss": 2.0})
        sync(root)
        client = connect(root, local_uri(root))
        client.delete_run(run_of(root, run.run_id).info.run_id)
        run.log_metrics({"train/loss": 1.0}, step=1)
    assert sync(root) == (1, [])
    late = run_of(root, run.run_id)
    assert late.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(late.info.run_id, "train/loss")] == [2.0, 1.0]


def test_a_run_that_another_process_has_just_delivered_is_delivered(root, monkeypatch):
    with track("train", {}) as run:
        pass
    delivery, folder = Delivery(root, local_uri(root)), root / ".tracking" / "spool" / run.run_id
    listed = pending(root)
    assert sync(root) == (1, [])
    assert delivery.deliver(folder) and not folder.exists()  # its lock makes the folder again
    monkeypatch.setattr("stages.tracking.delivery.pending", lambda _: listed)  # as it was a moment before
    assert sync(root) == (0, [])


@pytest.mark.parametrize("name", ["", " "])
def test_an_experiment_without_a_name_is_camp(root, monkeypatch, name):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    with track("train", {}) as run:
        pass
    assert sync(root) == (1, [])
    client = connect(root, local_uri(root))
    assert client.get_experiment(run_of(root, run.run_id).info.experiment_id).name == "camp"


def test_what_is_refused_of_a_run_is_kept_and_the_rest_arrives(root, capsys):
    Path("curve.csv").write_text("step\n")
    with track("train", {"short": 1, "bad\nname": 2}, tags={"good": "yes"}) as run:
        for step in range(700):
            run.log_metrics({"train/loss": 1.0, "no*name": step, "val/rsum": 2.0}, step=step)
        run.log_metrics({"not/a/number": float("nan"), "endless": float("inf")})
        run.set_tags({"k" * 300: "too long a name", "fine": "yes"})
        run.log_artifact("curve.csv", "plots")
        run._write("novelty", values={})
    assert sync(root)[0] == 0
    late = run_of(root, run.run_id)
    assert late.info.status == "FINISHED"
    assert late.data.params == {"short": "1"}
    assert (late.data.tags["good"], late.data.tags["fine"]) == ("yes", "yes")
    client = connect(root, local_uri(root))
    for name in ("train/loss", "val/rsum"):
        assert len(client.get_metric_history(late.info.run_id, name)) == 700
    assert {"not/a/number", "endless"} <= set(late.data.metrics)
    assert [item.path for item in client.list_artifacts(late.info.run_id, "plots")] == ["plots/curve.csv"]
    # What is refused waits, is tried again, and is told of each time that somebody asks.
    with pytest.raises(InputError, match=r"it refuses a part of the run, which stays in .*refused\.jsonl: params bad"):
        commands(["sync"])
    (refused,) = root.glob(".tracking/spool/*/refused.jsonl")
    events = [json.loads(line) for line in refused.read_text().splitlines()]
    assert sum(len(event["values"]["no*name"]) for event in events if event["event"] == "metrics") == 700
    assert "novelty" in {event["event"] for event in events}
    assert {name for event in events for name in event["values"]} == {"bad\nname", "no*name", "k" * 300}
    # A later run waits for the server as long as ever.
    events = root / SPOOL / "later" / "events.jsonl"
    events.parent.mkdir()
    events.touch()
    with subprocess.Popen(["sh", "-c", f'sleep {tracking.WAIT_AGAIN + 1}; rm "$0"', events]) as delivery:
        tracking._wait(delivery, root, "later")
    events.parent.rmdir()
    assert "warning:" not in capsys.readouterr().err
    # Whoever mends the names gets all of it.
    mended = refused.read_text().replace("no*name", "a name").replace("bad\\nname", "b")
    refused.write_text(mended.replace("k" * 300, "k").replace("novelty", "tags"))
    assert sync(root) == (1, [])
    assert len(client.get_metric_history(late.info.run_id, "a name")) == 700
    assert run_of(root, run.run_id).data.params == {"short": "1", "b": "2"}


def test_a_copy_that_is_gone_from_the_spool_is_told_of(root):
    Path("curve.csv").write_text("step\n")
    with track("train", {}) as run:
        run.log_artifact("curve.csv", "plots")
    (copy,) = root.glob(".tracking/spool/*/artifacts/*/curve.csv")
    copy.unlink()
    delivered, (problem,) = sync(root)
    assert delivered == 0 and "artifact" in problem and "curve.csv" in problem
    assert run_of(root, run.run_id).info.status == "FINISHED"


def test_values_that_mlflow_cuts_are_whole_in_a_file(root):
    with track("train", {"model": {"words": "w" * 7000}}, tags={"note": "n" * 9000}) as run:
        pass
    assert sync(root) == (1, [])
    late = run_of(root, run.run_id)
    assert set(late.data.params["model.words"]) == {"w"} and set(late.data.tags["note"]) == {"n"}
    files = {path.name: path.read_text() for path in (root / "mlartifacts").rglob("*.txt")}
    assert files == {"model.words.txt": "w" * 7000, "note.txt": "n" * 9000}


@pytest.mark.parametrize("table", ["runs", "metrics", "params", "tags"])
def test_a_database_that_takes_nothing_costs_nothing(root, table):
    open_experiment(connect(root, local_uri(root)), root, "camp")
    with sqlite3.connect(root / "mlflow.db") as store:
        store.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END")
    with track("train", {"a": 1}, tags={"b": 2}) as run:
        run.log_metrics({"train/loss": 2.0})
    delivered, problems = sync(root)
    assert delivered == 0 and len(problems) == 1
    with sqlite3.connect(root / "mlflow.db") as store:
        store.execute("DROP TRIGGER full")
    assert sync(root) == (1, [])
    late = run_of(root, run.run_id)
    assert (late.data.params["a"], late.data.tags["b"], late.data.metrics["train/loss"]) == ("1", "2", 2.0)
    assert late.info.status == "FINISHED"


def test_a_resumed_run_with_other_params_loses_nothing(root):
    with track("train", {"a": 1, "b": 1}) as run:
        pass
    assert sync(root) == (1, [])
    with track("train", {"a": 2, "b": 1, "c": 3}, run_id=run.run_id):
        run.log_metrics({})
    assert sync(root) == (1, [])
    assert run_of(root, run.run_id).data.params == {"a": "1", "b": "1", "c": "3"}


def test_a_child_waits_for_its_parent(root):
    with track("train", {}) as parent:
        pass
    with track("evaluate", {}, parent=parent.run_id) as child:
        child.log_metrics({"test/rsum": 5.0})
    with FileLock(root / ".tracking" / "spool" / parent.run_id / "deliverer.lock"):  # by a process that hangs
        delivered, problems = sync(root)
    assert delivered == 0 and len(problems) == 2 and f"its parent, run {parent.run_id}" in problems[1]
    assert sync(root) == (2, [])
    late = run_of(root, parent.run_id)
    assert late.data.metrics["test/rsum"] == 5.0
    assert run_of(root, child.run_id).data.tags["mlflow.parentRunId"] == late.info.run_id


def test_a_view_that_mlflow_refuses_stops_no_delivery(root, monkeypatch, capsys):
    monkeypatch.setattr("stages.tracking.store.view", lambda: "x" * 30_000)
    with track("train", {}) as run:
        pass
    assert sync(root) == (1, [])
    assert run_of(root, run.run_id).info.status == "FINISHED"
    assert "has no view" in capsys.readouterr().err
