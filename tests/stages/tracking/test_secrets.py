"""A password in the address of the server stays in the environment."""

import base64
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from stages import tracking
from stages.errors import InputError, without_password
from stages.params.pipeline import Params
from stages.tracking import track
from stages.tracking.__main__ import become_server
from stages.tracking.delivery import in_one_line, sync
from stages.tracking.machine import uncommitted_changes

PASSWORD = "pa55-w0rd"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "CAMP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://person:{PASSWORD}@127.0.0.1:9")
    monkeypatch.setenv("SOME_TOKEN", PASSWORD)
    monkeypatch.setattr(tracking, "WAIT", 12.0)
    return tmp_path


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_of_before_is_delivered_with_the_password_of_now(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """The spool has the address without it: by the next run (not moved) as by `sync`."""
    asked: list[str | None] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_error(400)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://person:{PASSWORD}@127.0.0.1:{server.server_port}")
        monkeypatch.setattr(tracking, "_deliver", lambda *_: None)
        with track("train", {"model": {"gate": "none"}}):
            pass
        _, (problem,) = sync(workspace, moved=moved)
        server.shutdown()
    assert set(asked) == {f"Basic {base64.b64encode(f'person:{PASSWORD}'.encode()).decode()}"}
    assert PASSWORD not in problem and f"127.0.0.1:{server.server_port}" in problem


def test_a_password_in_the_address_is_neither_shown_nor_written(workspace: Path, capfd: pytest.CaptureFixture) -> None:
    with track("train", {"model": {"gate": "none"}}) as run:
        run.log_metrics({"train/loss": 1.0})
    _, problems = sync(workspace)
    shown = capfd.readouterr()
    assert "127.0.0.1:9" in shown.err and len(problems) == 1 and "127.0.0.1:9" in problems[0]
    assert PASSWORD not in shown.err + shown.out + problems[0]
    files = [path for path in workspace.rglob("*") if path.is_file()]
    assert {"events.jsonl", "delivery.log"} <= {path.name for path in files}
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    assert PASSWORD in os.environ["MLFLOW_TRACKING_URI"]


def test_what_dvc_is_told_of_its_remotes_stays_out_of_the_patch(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=workspace, check=True)

    (workspace / "code.py").write_text("before\n")
    (workspace / ".dvc" / "config").write_text("[core]\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    (workspace / "code.py").write_text("after\n")
    (workspace / ".dvc" / "config").write_text(f"['remote \"mine\"']\n    secret_access_key = {PASSWORD}\n")
    patch = uncommitted_changes()
    assert patch is not None and b"+after" in patch and PASSWORD.encode() not in patch
    (workspace / "sub" / ".dvc").mkdir(parents=True)  # a workspace in a folder of a larger repository
    (workspace / "sub" / ".dvc" / "config").write_text("[core]\n")
    git("add", "sub")
    (workspace / "sub" / ".dvc" / "config").write_text(f"[core]\n    password = {PASSWORD}\n")
    monkeypatch.chdir(workspace / "sub")
    patch = uncommitted_changes()
    assert patch is not None and b"+after" in patch and PASSWORD.encode() not in patch


def test_the_page_of_mlflow_is_started_without_a_password_in_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://person:{PASSWORD}@127.0.0.1:9/mlflow")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    become_server(Path.cwd(), "/", "127.0.0.1", 0)
    assert started and PASSWORD not in " ".join(started[0])
    assert PASSWORD in os.environ["MLFLOW_BACKEND_STORE_URI"]


def test_what_is_shown_of_an_address() -> None:
    assert without_password("https://a:b@host:1/x@y") == "https://host:1/x@y"
    assert without_password("http://user:ge@he:im@127.0.0.1:9/api") == "http://127.0.0.1:9/api"
    store = without_password("postgresql+pg8000://host/mlflow?user=me&password=im78&sslmode=require&sslkey=a.pem")
    assert store == "postgresql+pg8000://host/mlflow?user=...&password=...&sslmode=require&sslkey=..."
    assert without_password("postgresql://person:pa55/w0?r@d@127.0.0.1:9/db") == "postgresql://127.0.0.1:9/db"
    assert (
        without_password("https://host/x.pth?X-Amz-Signature=im78&a=1") == "https://host/x.pth?X-Amz-Signature=...&a=1"
    )
    assert without_password("sqlite:////tmp/a@b/mlflow.db") == "sqlite:////tmp/a@b/mlflow.db"
    assert in_one_line(OSError("Max retries: http://a:b@host/api")) == "OSError: Max retries: http://host/api"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("index", "engine", "http://root:im78@127.0.0.1:19530"),
        ("detector", "weights", "https://user:im78@host/x.pth"),
        ("detector", "weights", "https://host/x.pth?token=im78"),
        ("train", "freeze", ["a", "postgresql://user:im/78@host/db"]),
    ],
)
def test_a_password_in_an_address_of_the_params_is_refused_and_not_shown(section: str, key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^{section}\.{key}: holds a user name, password or token") as caught:
        Params.from_dict({section: {key: value}})
    assert "78" not in str(caught.value)
