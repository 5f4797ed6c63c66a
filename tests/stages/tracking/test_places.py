"""Runs from workspaces of any name, by users without a home, and of files of any bytes. Stores and git are real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stages import tracking
from stages.tracking import track
from stages.tracking.__main__ import main as commands
from stages.tracking.delivery import sync
from stages.tracking.spool import pending
from stages.tracking.store import connect, local_uri, open_experiment, search_runs
from tests.stages.tracking.conftest import run_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("root", ["what?", "50%25 off", "mit Leerzeichen é 图", """it's "a#b\\c":d"""], indirect=True)
def test_a_workspace_below_any_name(root, beside, capsys):
    Path("curve.csv").write_text("step\n")
    with track("train", {"a": 1}) as run:
        run.log_artifact("curve.csv", "plots")
    assert capsys.readouterr().err == ""
    assert pending(root) == []
    late = run_of(root, run.run_id)
    assert late.info.status == "FINISHED"
    assert [path.relative_to(root).parts[0] for path in root.rglob("curve.csv") if path.parent.name == "plots"] == [
        "mlartifacts"
    ]
    assert (root / "mlflow.db").is_file() and not list(root.glob("file:*"))
    assert MlflowClient(local_uri(root)).list_artifacts(late.info.run_id, "plots")[0].path == "plots/curve.csv"


@pytest.mark.parametrize("address", [" ", " {} "])
def test_blanks_around_an_address_are_none_of_it_when_the_run_is_delivered_later(root, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(local_uri(root)))
    with track("train", {"a": 1}) as run:
        pass
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(root) == (1, [])
    assert run_of(root, run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("root", ["above/main"], indirect=True)
@pytest.mark.parametrize("resumed", [False, True])
def test_runs_of_a_moved_workspace_wait_until_their_files_have_a_place(root, resumed, tmp_path, monkeypatch):
    """MLflow knows places from their roots: it would make the old folder anew, and put the files of runs there."""
    with track("train", {}) as run:
        pass
    assert sync(root) == (1, [])
    for now in ("it's moved", "once more"):  # then with a link to nowhere in the old place
        moved = next(tmp_path.glob("*/main/mlflow.db")).parents[1].rename(tmp_path / now) / "main"
        monkeypatch.chdir(moved)
        Path("curve.csv").write_text("step\n")
        with track("train", {}, run_id=run.run_id if resumed else None) as run:
            run.log_artifact("curve.csv", now)
        assert (
            open_experiment(connect(moved, local_uri(moved)), moved, "camp").experiment_id == "1"
        )  # the page can be opened
        delivered, (problem,) = sync(moved)
        assert delivered == 0 and not root.exists()
        assert f"mlflow.db: the files of its runs belong in {root}, " in problem
        link = problem[problem.index("`mkdir") + 1 : problem.index("` leads")]
        subprocess.run(link, shell=True, check=True)
        assert sync(moved) == (1, [])
        assert run_of(moved, run.run_id).info.status == "FINISHED"
        assert len(list((moved / "mlartifacts").rglob(f"{now}/curve.csv"))) == 1


def test_the_experiment_of_mlflow_itself_has_a_place(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Default")
    with track("train", {}):
        pass
    assert sync(root) == (1, [])


HOMELESS = """
import os, pwd
os.environ.pop("HOME", None)
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
"""


@pytest.mark.timeout(300)
def test_a_user_without_a_home_is_recorded(root, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOMELESS)
    script = "from stages import tracking; tracking.WAIT = 120.0\nwith tracking.track('train', {}): pass"
    places = [str(tmp_path), str(Path(tracking.__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = search_runs(connect(root, local_uri(root)), "tags.`camp.kind` = 'train'")
    assert run.info.status == "FINISHED"


def git(*arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True).stdout


@pytest.mark.parametrize("setting", [{}, {"core.autocrlf": "true"}, {"color.ui": "always", "diff.noprefix": "true"}])
def test_files_of_any_bytes_come_back(root, tmp_path, setting, capsys):
    before = {
        "crlf.txt": b"one\r\ntwo\r\n",
        "latin.txt": "gr\u00fcn\nblau\n".encode("latin-1"),
        "binary.bin": bytes(range(256)),
        "untouched-crlf.txt": b"x\r\ny\r\n",
        b"n\xffme.txt".decode("utf-8", "surrogateescape"): b"1\n",
    }
    after = {
        "crlf.txt": b"one\r\n2\r\nthree\r\n",
        "latin.txt": "gr\u00fcn\nrot \u00e4\n".encode("latin-1"),
        "binary.bin": bytes(reversed(range(256))),
        b"n\xffme.txt".decode("utf-8", "surrogateescape"): b"2\n",
    }
    git("init", "-q")
    for name, value in setting.items():
        git("config", name, value)
    for name, content in before.items():
        Path(name).write_bytes(content)
    git("add", ".")
    git("commit", "-q", "-m", "begin")
    for name, content in after.items():
        Path(name).write_bytes(content)
    with track("train", {}) as run:
        pass
    assert sync(root) == (1, [])
    into = tmp_path / "back"
    commands(["restore", run.run_id, "--into", str(into)])
    assert "its uncommitted changes" in capsys.readouterr().out
    back, expected = {name: (into / name).read_bytes() for name in before}, before | after
    if setting == {"core.autocrlf": "true"}:  # git gives what was written with LF its CRLF
        back, expected = ({name: each[name] for name in each if name.endswith("crlf.txt")} for each in (back, expected))
    assert back == expected


def test_the_experiment_is_asked_for_once(root, monkeypatch):
    asked = []
    for name in ("get_experiment", "get_experiment_by_name"):
        plain = getattr(MlflowClient, name)
        monkeypatch.setattr(MlflowClient, name, lambda *of, plain=plain: asked.append(of[1:]) or plain(*of))
    for expected in ([("camp",), ("1",)], [("camp",)]):  # the first run creates it
        with track("train", {}):
            pass
        assert sync(root) == (1, [])
        assert asked == expected
        asked.clear()
