"""MLflow's server or its database goes away in the middle of a run, or the delivery dies: nothing is missing, or twice.

What is counted are all rows and files of the store, against those of a run that nothing disturbed.
"""

import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from camp_model import CAMP, CampConfig
from camp_model.checkpoint import save_checkpoint
from camp_model.vocabulary import Vocabulary
from stages import tracking
from stages.errors import InputError
from stages.tracking import track
from stages.tracking.__main__ import main as commands
from stages.tracking.spool import pending
from stages.tracking.store import connect, local_uri
from tests.chaos.stores import content, differences
from tests.chaos.workspace import HERE, Workspace

DELIVER = tracking._deliver


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace without git; nothing is delivered beside a run."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "CAMP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking, "_deliver", lambda *_: None)
    folder = tmp_path / "main"
    (folder / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def record(root: Path, model: bool = False) -> str:
    """A run of all kinds of events; its key."""
    with track("train", {"a": 1, "b": {"c": 2}}, tags={"note": "n" * 6000}) as run:
        for step in range(40):
            run.log_metrics({"train/loss": 1 / (step + 1), "train/learning_rate": 0.1}, step=step)
        run.log_dataset("regions", root / "regions", "ab" * 32)
        (root / "curve.csv").write_text("x\n1\n")
        run.log_artifact(root / "curve.csv", "plots")
        if model:
            words = Vocabulary.build([["a", "red", "dog"]])
            small = CampConfig(vocab_size=len(words), region_dim=5, word_dim=4, dim=8)
            save_checkpoint(root / "camp", CAMP(small), words)
            run.log_model(root / "camp", 300.0)
        run.log_artifact(root / "curve.csv", "later")
    return str(run.run_id)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("model", "cases"), [(False, 2), pytest.param(True, 10, marks=pytest.mark.chaos)])
def test_a_delivery_that_is_killed_twice_leaves_nothing_out_and_nothing_twice(
    root: Path, model: bool, cases: int
) -> None:
    key = record(root, model)
    command = [sys.executable, "-W", "ignore", str(HERE / "dying_delivery.py"), str(root), key, "0", str(cases)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(HERE.parents[1])}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert done.stdout.count("was killed") >= cases, "half of the moments at least were in a delivery"
    for case in range(cases):
        assert differences(content(root), content(root.with_name(f"main-{case}"))) == ""
        assert pending(root.with_name(f"main-{case}")) == []


class MLflowServer:
    """A real server on a folder of its own, which is killed, frozen and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".dvc").mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        dropped = ("MLFLOW", "DVC", "CAMP")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stages.tracking", "ui", "--port", str(self.port)],
                cwd=self.folder, env=environment | {"PYTHONPATH": str(HERE.parents[1])}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 300
        while not self.answers():
            assert time.monotonic() < until, (self.folder / "server.log").read_text()
            time.sleep(0.3)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """The server and its workers, outright."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    server = MLflowServer(tmp_path_factory.mktemp("server") / "store")
    server.start()
    yield server
    server.kill()


def sync_until_done(root: Path, seconds: float = 120) -> None:
    """The one command that a warning names; the delivery beside the run may be at it still."""
    until = time.monotonic() + seconds
    while pending(root):
        assert time.monotonic() < until, [path.name for path in pending(root)]
        with contextlib.suppress(InputError):
            commands(["sync"])


@pytest.mark.timeout(300)
def test_a_server_that_is_killed_and_started_again_has_all_of_a_run(
    root: Path, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_deliver", DELIVER)
    monkeypatch.setattr(tracking, "WAIT", 60.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "killed")
    with track("train", {"a": 1}) as run:
        for step in range(600):
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
            if step == 200:
                time.sleep(3)  # the delivery is somewhere in it
                mlflow_server.kill()
            if step == 400:
                mlflow_server.start()
        run.log_artifact(__file__, "plots")
    sync_until_done(root)
    stored = content(mlflow_server.folder, "killed")
    assert stored["runs"] == [("train", "FINISHED")]
    losses = {point: count for point, count in stored["points"].items() if point[1] == "train/loss"}
    assert losses == {("train", "train/loss", step, 1.0 / (step + 1)): 1 for step in range(600)}
    assert [name for _, name, _ in stored["files"]] == [f"plots/{Path(__file__).name}"]


@pytest.mark.timeout(300)
def test_a_store_that_another_process_has_locked_gets_all_of_a_run_later(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect(root, local_uri(root))
    monkeypatch.setattr(tracking, "_deliver", DELIVER)
    monkeypatch.setattr(tracking, "WAIT", 8.0)
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as other:
        other.execute("begin exclusive")
        begun = time.monotonic()
        record(root)
        assert time.monotonic() - begun < 20
    said = capsys.readouterr().err
    assert said.count("warning:") == 1 and "`python -m stages.tracking sync`" in said
    sync_until_done(root)
    stored = content(root)
    assert stored["runs"] == [("train", "FINISHED")] and len(stored["points"]) == 81
    assert [name for _, name, _ in stored["files"]] == ["later/curve.csv", "plots/curve.csv", "tags/note.txt"]


TRACKED = ("train", "evaluate", "report")


def retrain(workspace: Workspace, server: MLflowServer, experiment: str) -> subprocess.Popen[str]:
    """Start the tracked stages of a workspace that has everything before them."""
    workspace.tracking = "on"
    more = {"MLFLOW_TRACKING_URI": server.address, "MLFLOW_EXPERIMENT_NAME": experiment}
    return workspace.start("--force", "--single-item", *TRACKED, **more)


def sync_by_command(workspace: Workspace, seconds: float = 600) -> None:
    """The one command that a warning names, until it ends well: the deliveries beside the runs may be at it still."""
    command = [sys.executable, "-m", "stages.tracking", "sync"]
    until = time.monotonic() + seconds
    while pending(workspace.folder):
        done = subprocess.run(
            command, cwd=workspace.folder, env=workspace.environment({}), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or time.monotonic() < until, done.stderr[-2000:]


@pytest.fixture(scope="module")
def undisturbed(copy_of_whole: Callable[[str], Workspace], mlflow_server: MLflowServer) -> Workspace:
    workspace = copy_of_whole("undisturbed")
    assert retrain(workspace, mlflow_server, "undisturbed").wait(600) == 0, workspace.printed[-3000:]
    sync_by_command(workspace)
    return workspace


def killed_at_random(server: MLflowServer, workspace: Workspace, seed: int) -> None:
    """Down for a few seconds, up for a few, until the run has ended."""
    choice = random.Random(seed)
    while workspace.process.poll() is None:
        time.sleep(choice.uniform(1, 6))
        server.kill()
        time.sleep(choice.uniform(0, 6))
        server.start()


def frozen_at_random(server: MLflowServer, workspace: Workspace, seed: int) -> None:
    choice = random.Random(seed)
    while workspace.process.poll() is None:
        time.sleep(choice.uniform(1, 6))
        server.send(signal.SIGSTOP)
        time.sleep(choice.uniform(1, 15))
        server.send(signal.SIGCONT)


def away_to_the_end(server: MLflowServer, workspace: Workspace, seed: int) -> None:
    time.sleep(random.Random(seed).uniform(0, 6))
    server.kill()
    workspace.process.wait(600)
    workspace.reader.join(20)
    assert "Nothing is lost" in workspace.printed and "stages.tracking sync" in workspace.printed
    server.start()


def locked_to_the_end(server: MLflowServer, workspace: Workspace, seed: int) -> None:
    time.sleep(random.Random(seed).uniform(0, 6))
    with contextlib.closing(sqlite3.connect(server.folder / "mlflow.db", timeout=60)) as other:
        other.execute("begin exclusive")
        workspace.process.wait(600)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("outage", [killed_at_random, frozen_at_random, away_to_the_end, locked_to_the_end])
def test_the_dag_ends_well_and_the_server_has_all_of_it(
    outage: Callable[[MLflowServer, Workspace, int], None], undisturbed: Workspace,
    copy_of_whole: Callable[[str], Workspace], mlflow_server: MLflowServer,
) -> None:  # fmt: skip
    name = outage.__name__
    workspace = copy_of_whole(name)
    process = retrain(workspace, mlflow_server, name)
    while not workspace.begun and process.poll() is None:
        time.sleep(0.05)
    outage(mlflow_server, workspace, 0)
    assert process.wait(600) == 0, workspace.printed[-3000:]
    sync_by_command(workspace)
    stored = content(mlflow_server.folder, name)
    expected = content(mlflow_server.folder, "undisturbed") | {"champion": []}  # one for all that a server holds
    assert differences(expected, stored) == ""
    assert len(stored["points"]) > 20 and len(stored["files"]) > 5
    assert workspace.hashes() == undisturbed.hashes()
