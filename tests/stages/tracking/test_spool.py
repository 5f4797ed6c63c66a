"""The spool of a run, whose last line may be torn."""

import time

import pytest

from stages.tracking import track
from stages.tracking.delivery import sync
from stages.tracking.spool import SPOOL, Spool, pending, read_events, undelivered, writer_alive


def test_the_spool_survives_a_torn_line(tmp_path):
    spool = Spool(tmp_path, "k")
    spool.write("start", kind="train")
    assert writer_alive(spool.folder)
    spool.close()
    with (spool.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "met')
    assert not writer_alive(spool.folder)
    assert [event["event"] for _, event in undelivered(spool.folder)] == ["start"]
    again = Spool(tmp_path, "k")
    again.write("end", status="FINISHED")
    again.close()
    assert [event and event["event"] for _, event in read_events(spool.folder, 0)] == ["start", None, "end"]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "start", "time": 1}',
        '{"event": "start", "time": 1, "kind": "train", "uri": 5}',
        pytest.param("[" * 100_000, id="deep"),
        '{"x": 1}',
        '{"event": "start", "time": "soon"}',
        '{"event": "metrics", "time": 1}',
        "[]",
    ],
)
def test_a_damaged_folder_of_before_costs_no_other_run_anything(tmp_path, monkeypatch, line):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "CAMP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / SPOOL / "before"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(f"{line}\n{line}\n")
    with track("train", {"train": {"epochs": 1}}) as run:
        run.log_metrics({"val/rsum": 1.0})
    until = time.monotonic() + 240
    while any(left.name != "before" for left in pending(tmp_path)) and time.monotonic() < until:
        sync(tmp_path)  # beside the delivery, which a loaded machine makes slow
        time.sleep(0.5)
    assert [left.name for left in pending(tmp_path)] in ([], ["before"])


def test_a_short_run_delivers_what_an_earlier_one_left(root, beside, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("stages.tracking._deliver", lambda *_: None)
        with track("train", {}):
            pass
    with track("report", {}):  # over before its delivery has begun
        pass
    until = time.monotonic() + 60
    while pending(root) and time.monotonic() < until:
        time.sleep(0.5)
    assert pending(root) == []


def test_the_folder_of_another_person_is_left_to_them(tmp_path, monkeypatch):
    """Permissions do not bind the superuser that tests may run as: opening is made to fail as it does for others."""
    spool = Spool(tmp_path, "theirs")
    spool.write("start", kind="train")
    spool.close()

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "writer.lock")

    monkeypatch.setattr("stages.tracking.spool.FileLock", refused)
    monkeypatch.setattr("stages.tracking.delivery.FileLock", refused)
    assert writer_alive(spool.folder)
    delivered, (problem,) = sync(tmp_path)
    assert delivered == 0 and problem.startswith("theirs: ") and "Permission denied" in problem


def test_a_clone_that_git_does_not_answer_for_is_said(tmp_path, monkeypatch):
    """As git does for one of another owner."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "CAMP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("stages.tracking._deliver", lambda *_: None)
    with pytest.warns(UserWarning, match="git does not answer here"), track("train", {}):
        pass
