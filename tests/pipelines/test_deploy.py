"""Deployed flows on a real server with a real process worker; workers that are killed."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client

import pipelines
from pipelines.deploy import deploy, deploy_automations
from stages.errors import InputError
from tests.chaos.workspace import remove_damaged
from tests.pipelines.conftest import command_of

ROOT = Path(pipelines.__file__).parents[1]
SLOW = """
from stages.entry import lock_own_outputs
import time
with lock_own_outputs():
    while Path("slow").exists() and sys.argv[1] == "train":
        time.sleep(0.5)
    with Path("ran.log").open("a") as log:
        log.write(f"{sys.argv[1]}\\n")
"""

SLURM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", sys.argv[1]])
"""
"""What starts a batch script. Whoever runs the tests in the background has them, and all they start, ignore SIGINT."""
CHECK = "Check whether the flow run exceeded"


@pytest.fixture(scope="module")
def deployment(prefect_server, template, server_environment, tmp_path_factory):
    """A repository with the flows deployed from it, silent runs ended after 40 s; the environment of its workers."""
    folder = tmp_path_factory.mktemp("deployment") / "repository"
    shutil.copytree(template, folder)
    shutil.copytree(ROOT / "pipelines", folder / "pipelines")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    shutil.copy(ROOT / "prefect.yaml", folder)
    script = (folder / "stage.py").read_text()
    (folder / "stage.py").write_text(script.replace("name, *sources", SLOW + "name, *sources"))
    automations = folder / "deploy" / "automations.yaml"
    automations.write_text(automations.read_text().replace("within: 90", "within: 40"))
    environment = server_environment | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    deploy = [sys.executable, "-m", "pipelines.deploy"]
    subprocess.run(deploy, cwd=folder, env=environment, check=True, capture_output=True)
    with get_client(sync_client=True) as client:
        assert deploy_automations(client, automations) == ["camp-silent-runs"]  # doing it again changes nothing
    return folder, environment


@pytest.fixture
def deployed(deployment, enter):
    """The environment of a worker; the test works in the deployed repository, as the tests before it have left it."""
    folder, environment = deployment
    enter(folder)
    return environment


def logged(text, name="worker.log"):
    """How often the workers have said it, or it stands in another file."""
    log = Path(name)
    return log.read_text().count(text) if log.exists() else 0


def ran(stage):
    """How often a stage has come to its end; what it prints is lost if its flow is killed just then."""
    return logged(f"{stage}\n", "ran.log")


@contextlib.contextmanager
def worker(environment, end):
    """A process worker; nothing that it started outlives the block."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "camp", "--type", "process"]
    with Path("worker.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield psutil.Process(process.pid)
    finally:
        end(process)


def request(method, path, **arguments):
    with get_client(sync_client=True) as client:
        return client.request(method, path, **arguments).json()


def start(**params):
    """A run of the deployed `reproduce` with these params of training; a function that tells its state."""
    flow = next(item for item in request("POST", "/deployments/filter", json={}) if "reproduce" in item["entrypoint"])
    body = {"parameters": {"params": {"train": params}}}
    run = request("POST", f"/deployments/{flow['id']}/create_flow_run", json=body)["id"]
    return run, lambda: request("GET", f"/flow_runs/{run}")["state"]["type"]


def in_training(serving):
    """The processes of a worker's run, the engine first, once the stage `train` is among them."""
    engines = serving.children()
    family = list(engines)
    for engine in engines:
        with contextlib.suppress(psutil.NoSuchProcess):  # that of the run before, which has just ended
            family += engine.children(recursive=True)
    return family if any(command_of(process)[1:3] == ["stage.py", "train"] for process in family) else None


def retry(run, environment):
    command = [sys.executable, "-m", "prefect", "flow-run", "retry", run]
    subprocess.run(command, env=environment, check=True, capture_output=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stage whose dvc was killed")
@pytest.mark.timeout(600)
def test_a_killed_run_crashes_and_its_retry_completes(deployed, wait_for, end):
    deployments = {f"{item['name']}": item for item in request("POST", "/deployments/filter", json={})}
    assert deployments.keys() == {"camp"}
    automations = [item["name"] for item in request("POST", "/automations/filter", json={})]
    assert sorted(automations) == ["camp-silent-runs", "camp-source-changed"]
    flow = next(item for item in request("POST", "/deployments/filter", json={}) if "reproduce" in item["entrypoint"])
    with pytest.raises(InputError, match="--pool-type: camp is of type process already"):
        deploy("camp", "kubernetes", Path("prefect.yaml"))
    schema = json.dumps(flow["parameter_openapi_schema"])
    assert "Optimizer steps between two checkpoints for resuming." in schema

    Path("slow").touch()
    with worker(deployed, end) as begun:
        run, state = start(epochs=5)
        family = wait_for(lambda: in_training(begun), 180)
        assert state() == "RUNNING"
        begun.kill()
        family[0].kill()
    wait_for(lambda: not any(command_of(process) for process in family), 60)  # the stage went with its flow
    wait_for(lambda: state() == "CRASHED", 300)
    assert not Path("train.txt").exists()

    Path("slow").unlink()
    with worker(deployed, end):
        retry(run, deployed)
        wait_for(lambda: state() == "COMPLETED", 180)
    assert Path("train.txt").exists()
    assert ran("prepare") == 1  # recovery goes on, it does not start over


def ends_well(run, state, environment, wait_for):
    """The run is Completed, or it is Crashed and one command takes it there."""
    try:
        if wait_for(lambda: state() in ("COMPLETED", "CRASHED") and state(), 300) == "CRASHED":
            retry(run, environment)
            wait_for(lambda: state() == "COMPLETED", 180)
    except AssertionError as error:  # what happened is known to nobody later
        states = request("GET", f"/flow_run_states/?flow_run_id={run}")
        for entry in states:
            error.add_note(f"{entry['timestamp']} {entry['name']}: {entry['message']}")
        error.add_note(Path("worker.log").read_text()[-6000:])
        raise


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stage whose dvc was killed")
@pytest.mark.timeout(900)
def test_a_lost_child_server_or_worker_is_recovered_from(deployed, wait_for, end, restart_server):
    slow = Path("slow")
    trained, checked = ran("train"), logged(CHECK)
    with worker(deployed, end) as serving:
        slow.touch()
        run, state = start(epochs=6)
        wait_for(lambda: in_training(serving), 180)[0].kill()
        wait_for(lambda: state() == "CRASHED", 60)  # its worker says so at once, and once more ten seconds later
        wait_for(lambda: logged(CHECK) == checked + 2, 60)
        slow.unlink()
        ends_well(run, state, deployed, wait_for)

        slow.touch()
        run, state = start(epochs=7)
        wait_for(lambda: in_training(serving), 180)
        restart_server()
        assert state() == "RUNNING"
        slow.unlink()
        ends_well(run, state, deployed, wait_for)

        slow.touch()
        run, state = start(epochs=8)
        family = wait_for(lambda: in_training(serving), 180)
        serving.kill()
        slow.unlink()
        wait_for(lambda: not any(command_of(process) for process in family), 120)
    remove_damaged(Path())  # DVC was killed while it recorded the stage
    with worker(deployed, end):
        ends_well(run, state, deployed, wait_for)
        assert ran("prepare") == 1
        assert 3 <= ran("train") - trained <= 6
        assert "epochs: 8" in Path("params.yaml").read_text()
        assert not subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], env=deployed, check=False).returncode

        subprocess.run([sys.executable, "-m", "pipelines.refresh", "announce"], env=deployed, check=True)
        wanted = {
            "flows": {"name": {"any_": ["refresh"]}},
            "flow_runs": {"state": {"name": {"any_": ["Nothing to do"]}}},
        }
        wait_for(lambda: request("POST", "/flow_runs/filter", json=wanted), 180)


def test_the_nightly_look_is_scheduled_and_waits_for_other_runs_in_the_workspace(deployed):
    """By the server's own scheduler, which a library of another version than Prefect expects stops without a word."""
    (queue,) = (
        item for item in request("POST", "/work_pools/camp/queues/filter", json={}) if item["name"] != "default"
    )
    shared = [item["entrypoint"] for item in request("POST", "/deployments/filter", json={})
              if item["work_queue_name"] == queue["name"]]  # fmt: skip
    assert queue["concurrency_limit"] == 1
    assert sorted(name.partition(":")[2] for name in shared) == ["extract", "refresh", "reproduce"]
    (refresh,) = (item for item in request("POST", "/deployments/filter", json={}) if "refresh" in item["entrypoint"])
    with get_client(sync_client=True) as client:
        client.request("POST", f"/deployments/{refresh['id']}/schedule", json={"min_runs": 1}).raise_for_status()
    wanted = {
        "deployments": {"id": {"any_": [refresh["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    # Without those that other tests started, which may still wait for another try.
    planned = [run for run in request("POST", "/flow_runs/filter", json=wanted) if run["auto_scheduled"]]
    assert planned and all("T03:00" in run["expected_start_time"] for run in planned)
    with get_client(sync_client=True) as client:  # whenever this test runs, it is not three o'clock
        for run in planned:
            client.request("DELETE", f"/flow_runs/{run['id']}")


def test_a_worker_of_slurm_ends_with_its_allocation(deployed):
    worker = subprocess.Popen(
        [sys.executable, "-c", SLURM, str(ROOT / "deploy/slurm/worker.sbatch")],
        env=deployed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert worker.stdout is not None
    for line in worker.stdout:
        if "started!" in line:
            break
    worker.terminate()  # the shell, whose place the worker has taken
    try:
        worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == 0
