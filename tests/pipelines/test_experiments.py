"""Experiments side by side: real DVC experiments in their own workspaces, one MLflow parent."""

import contextlib
import hashlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from prefect.logging import disable_run_logger

from pipelines.commands import Unfinished
from pipelines.dag import check_experiments
from pipelines.experiments import _promote, sweep
from pipelines.reproduce import DVC
from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params
from stages.tracking.delivery import sync
from stages.tracking.model import CHAMPION, NAME
from stages.tracking.spool import pending
from stages.tracking.store import connect, store_uri
from tests.pipelines.conftest import command_of

TRAIN = """
import json, os, time
from pathlib import Path
import yaml
from stages.tracking import track
params = yaml.safe_load(Path("params.yaml").read_text())
with track("train", params) as run:
    Path("metrics").mkdir(exist_ok=True)
    rsum = 300.0 + 10 * params["train"]["epochs"] - (5 if params["model"]["gate"] == "none" else 0)
    Path("metrics/train.json").write_text(json.dumps({"val_rsum": rsum}))
    Path("metrics/retrieval.json").write_text(json.dumps({"test": {"rsum": 600 - rsum}}))
    run.log_metrics({"val/rsum": rsum})
    with open(os.environ["DEVICES_SEEN"], "a") as file:
        file.write(os.environ["CUDA_VISIBLE_DEVICES"] + " ")
    time.sleep(5)  # beside the other
    Path("train.txt").write_text(Path("shared.txt").read_text() + os.getcwd())
"""
SLOW = """
import time, yaml
from stages.entry import lock_own_outputs
if yaml.safe_load(open("params.yaml"))["train"]["epochs"] == 3:
    time.sleep(5)  # still importing when its dvc is ended
with lock_own_outputs():  # as every stage does
    time.sleep(600)
"""
FAILING = """
stages:
  train:
    cmd:
      - "if grep -q 'epochs: 3' params.yaml; then echo no third epoch; exit 2; fi"
      - "echo 'val_rsum: 1.0' > metrics/train.yaml"
    params: [train]
    metrics: [{metrics/train.yaml: {cache: false}}]
"""
PIPELINE = """
stages:
  shared:
    cmd: python shared.py
    deps: [shared.py]
    outs: [shared.txt]
    metrics: [{metrics/shared.json: {cache: false}}]
  train:
    cmd: python train.py
    deps: [shared.txt, train.py]
    params: [model, train]
    outs: [train.txt]
    metrics: [{metrics/train.json: {cache: false}}, {metrics/retrieval.json: {cache: false}}]
"""


@pytest.fixture
def recorded(repository, monkeypatch):
    """The repository, whose runs are recorded in an MLflow store of its own."""
    for name in ("CAMP_TRACKING", "MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@localhost")
    return repository


def commit(*ignored):
    Path(".gitignore").write_text(
        "".join(f"{name}\n" for name in ("/mlflow.db*", "/mlartifacts/", "/.tracking/", *ignored))
    )
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-q", "-m", "ready"], check=True)


def recorded_runs(repository, wait_for):
    """All runs of its store, once it has them; a busy machine delivers later than a stage waits."""
    from mlflow import MlflowClient

    wait_for(lambda: not pending(repository) or not sync(repository), 120)
    store = MlflowClient(f"sqlite:///{repository / 'mlflow.db'}")
    return store.search_runs([store.get_experiment_by_name("camp").experiment_id])


@pytest.mark.timeout(300)
def test_code_that_is_changed_while_a_sweep_runs_is_not_run_under_its_name(prefect_server, recorded):
    """DVC copies the workspace when an experiment starts, which may be hours after the sweep has begun."""
    Path("dvc.yaml").write_text("stages: {train: {cmd: python train.py, deps: [train.py], params: [train], metrics: "
                                "[metrics/train.json: {cache: false}]}}\n")  # fmt: skip
    Path("train.py").write_text(
        "import pathlib, json, yaml; pathlib.Path('metrics').mkdir(exist_ok=True)\n"
        "json.dump({'val_rsum': yaml.safe_load(open('params.yaml'))['train']['epochs']}, "
        "open('metrics/train.json', 'w'))\n"
        f"open({str(recorded / 'train.py')!r}, 'a').write('# edited by a person meanwhile')\n"
    )
    commit()
    with pytest.raises(
        Unfinished, match=r"1 of 2 experiments failed: epochs-3\. The first: sweep-.*-epochs-3: code or params"
    ):
        sweep({"train.epochs": [1, 3]})
    listed = [sys.executable, "-m", "dvc", "exp", "list", "--name-only"]
    (only,) = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    assert "epochs-1" in only


@pytest.mark.timeout(300)
def test_an_experiment_that_fails_ends_a_sweep_with_its_reason(prefect_server, recorded, server_environment, wait_for):
    Path("dvc.yaml").write_text(FAILING)
    Path("metrics").mkdir()
    Path("metrics/.gitignore").touch()
    commit()
    command = [sys.executable, "-m", "pipelines.experiments", '{"train.epochs": [1, 3]}']
    environment = {name: value for name, value in server_environment.items() if name != "CAMP_TRACKING"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    said = done.stderr[done.stderr.rindex("\nerror: ") :]
    assert said.startswith("\nerror: 1 of 2 experiments failed: epochs-3. The first: dvc exp run")
    assert "no third epoch" in said
    assert said.endswith(
        "Finished work is kept: `python -m pipelines.experiments '{\"train.epochs\": [1, 3]}'` continues.\n"
    )
    (parent,) = recorded_runs(recorded, wait_for)
    assert parent.info.status == "FAILED" and parent.data.tags["best"] == "epochs-1"


def test_a_sweep_runs_in_own_workspaces_under_one_parent(prefect_server, recorded, monkeypatch, wait_for):
    repository = recorded
    Path("dvc.yaml").write_text(PIPELINE)
    Path("train.py").write_text(TRAIN)
    params = Params.load()  # of a model that can be without gates
    document.rewrite(Path("params.yaml"), params.replace(train=params.train.replace(gate_supervision=0)).to_dict())
    ran = repository.parent / "ran"
    Path("metrics").mkdir()
    Path("shared.py").write_text(
        f"open({str(ran)!r}, 'a').write('once '); open('shared.txt', 'w').write('s')\n"
        "open('metrics/shared.json', 'w').write('{}')"
    )
    commit("/shared.txt", "/train.txt")
    # As in a fresh clone: git knows neither dvc.lock nor the metric, and DVC caches no metrics.
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "shared"], check=True)
    before = Path("params.yaml").read_bytes()
    devices = repository.parent / "devices"
    monkeypatch.setenv("DEVICES_SEEN", str(devices))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")  # two GPUs, as far as anyone can tell

    rows = sweep({"train.epochs": [1, 3], "model.gate": ["none"]}, jobs=2)
    assert [(row["rank"], row["variant"], row["val_rsum"]) for row in rows] == [
        (1, "epochs-3-gate-none", 325.0),
        (2, "epochs-1-gate-none", 305.0),
    ]
    assert rows[0]["test_rsum"] == 275.0  # the worse on test: validation decides
    assert Path("params.yaml").read_bytes() == before
    assert not Path("train.txt").exists()
    assert sorted(devices.read_text().split()) == ["4", "7"]  # each has one of its own
    assert ran.read_text() == "once "  # the stage that no variant touches came from the cache

    runs = recorded_runs(repository, wait_for)
    (parent,) = [run for run in runs if run.data.tags["camp.kind"] == "sweep"]
    children = {run.data.params["train.epochs"]: run for run in runs if run.data.tags["camp.kind"] == "train"}
    assert children.keys() == {"1", "3"}
    for run in children.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.tags["dvc.experiment"].startswith("sweep-")
        assert run.data.tags["prefect.flow_run"]
    assert parent.data.tags["prefect.flow_run"]
    assert parent.data.tags["best"] == "epochs-3-gate-none"
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "list", "--name-only"], capture_output=True, text=True, check=True
    )
    assert sorted(listed.stdout.split()) == sorted(run.data.tags["dvc.experiment"] for run in children.values())


def test_the_champion_is_the_model_of_whoever_trained_it(recorded):
    """An experiment whose training DVC's run cache had has no run of its own."""
    Path("models/camp").mkdir(parents=True)
    Path("models/camp/model.safetensors").write_bytes(b"weights")
    commit()
    subprocess.run(["git", "update-ref", "refs/exps/00/00/best", "HEAD"], check=True)
    client = connect(recorded, store_uri(recorded))
    client.create_registered_model(NAME)
    place = client.create_experiment("camp")

    def train(weights, registered):
        tags = {"camp.kind": "train", "camp.model": hashlib.sha256(weights).hexdigest(), "dvc.experiment": "another"}
        run = client.create_run(place, tags=tags).info.run_id
        return client.create_model_version(NAME, str(recorded), run).version if registered else None

    with disable_run_logger():
        with pytest.raises(InputError, match="best: no run in MLflow has its model"):
            _promote("best")
        train(b"weights", registered=True)
        last = train(b"weights", registered=True)
        train(b"weights", registered=False)
        train(b"others", registered=True)
        _promote("best")
        assert client.get_model_version_by_alias(NAME, CHAMPION).version == last
        client.set_model_version_tag(NAME, last, "dataset", "of another val")
        train(b"weights", registered=True)
        _promote("best")
    assert client.get_model_version_by_alias(NAME, CHAMPION).version == last


def test_an_exact_commit_that_is_checked_out_is_no_killed_experiment(recorded):
    """As a cluster's clone does; with changes it could be one, so that a person is asked."""
    commit()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["git", "checkout", "-q", head], check=True)
    check_experiments(1)
    Path("params.yaml").write_bytes(Path("params.yaml").read_bytes() + b"# a change\n")
    with pytest.raises(InputError, match="If you have detached HEAD yourself, `git switch main` keeps all files"):
        check_experiments(1)
    subprocess.run(["git", "switch", "-q", "main"], check=True)
    check_experiments(1)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM], [signal.SIGKILL]])
def test_an_experiment_that_is_ended_as_it_begins_leaves_the_workspace_as_it_was(recorded, wait_for, signals):
    """DVC has then stashed what a person has changed, detached HEAD and written the experiment's params."""
    Path("dvc.yaml").write_text("stages: {train: {cmd: 'true', params: [train]}}\n")
    params, head = Path("params.yaml"), Path(".git/HEAD")
    with params.open("a") as file:  # seconds for DVC's reader of YAML
        file.write("more:\n" + "- {a: 1}\n" * 6000)
    commit()
    for path in (params, Path("dvc.yaml")):
        with path.open("a") as file:
            file.write("# edited by a person\n")
    before = [path.read_bytes() for path in (head, params, Path("dvc.yaml"))]
    command = [sys.executable, "-m", "stages.entry", *DVC, "exp", "run", "--temp", "-S", "++train.epochs=9"]
    process = subprocess.Popen(command)
    wait_for(lambda: head.read_bytes() != before[0], 60)
    for number in signals:
        process.send_signal(number)
    code = process.wait(60)
    if signals == [signal.SIGKILL]:  # the next experiments would take its params, or the person's old ones, for theirs
        with pytest.raises(InputError, match="DVC was killed while it began.*git checkout --force main") as caught:
            check_experiments(1)
        for command in re.findall(r"`(git checkout [^`]*|git stash pop)`", str(caught.value)):
            subprocess.run(command.split(), check=True)
    else:
        assert code in [128 + number for number in signals]  # several are heard in any order
    check_experiments(1)
    assert [path.read_bytes() for path in (head, params, Path("dvc.yaml"))] == before
    assert not subprocess.run(["git", "stash", "list"], capture_output=True, check=True).stdout


@pytest.mark.timeout(300)
def test_a_sweep_that_is_ended_leaves_nothing_running(repository, server_environment, prefect_home, wait_for, tmp_path):
    environment = server_environment | {"PREFECT_HOME": str(prefect_home(tmp_path / "prefect"))}
    del environment["PREFECT_API_URL"]  # it brings its own server along
    Path("dvc.yaml").write_text("stages:\n  train: {cmd: exec python train.py, deps: [train.py], params: [train]}\n")
    Path("train.py").write_text(SLOW)
    subprocess.run(["git", "add", "-A"], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *identity, "commit", "-q", "-m", "slow"], check=True)
    command = [sys.executable, "-m", "pipelines.experiments", '{"train.epochs": [1, 3]}', "--jobs", "2"]
    with Path("sweep.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    started = []
    try:

        def sleeping():
            running = psutil.Process(process.pid).children(recursive=True)
            return [child for child in running if "train.py" in command_of(child)]

        wait_for(lambda: len(sleeping()) == 2, 120)
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("uvicorn" in command_of(child) for child in started)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60)
        _, alive = psutil.wait_procs(started, 10)
        assert not alive
        assert not list(Path(".dvc/tmp/exps/standalone").glob("tmp*"))  # each with a copy of all data
    finally:
        process.kill()
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
