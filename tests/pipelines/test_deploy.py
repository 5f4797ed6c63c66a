"""Deployed flows on a real server with a real process worker; workers that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.events.schemas.automations import AutomationCore

import pipelines
from pipelines.deploy import deploy_automations

ROOT = Path(pipelines.__file__).parents[1]
SLOW = 'import time\nwhile Path("slow").exists() and sys.argv[1] == "train": time.sleep(0.5)\n'


@pytest.fixture
def deployed(prefect_server, repository, server_environment):
    """The repository with the flows deployed from it, silent runs ended after 40 s."""
    shutil.copytree(ROOT / "pipelines", "pipelines")
    shutil.copytree(ROOT / "deploy", "deploy")
    shutil.copy(ROOT / "prefect.yaml", ".")
    script = Path("stage.py").read_text()
    Path("stage.py").write_text(script.replace("name, *sources", SLOW + "name, *sources"))
    automations = Path("deploy/automations.yaml")
    automations.write_text(automations.read_text().replace("within: 90", "within: 40"))
    environment = server_environment | {"PYTHONPATH": f"{repository}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-m", "pipelines.deploy"], env=environment, check=True, capture_output=True)
    with get_client(sync_client=True) as client:
        assert deploy_automations(client) == ["camp-silent-runs"]  # doing it again changes nothing
    return environment


def worker(environment):
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "camp", "--type", "process"]
    with Path("worker.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def request(method, path, **arguments):
    with get_client(sync_client=True) as client:
        return client.request(method, path, **arguments).json()


def children(pid):
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for thread in threads for word in thread.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the processes to kill")
@pytest.mark.timeout(400)
def test_a_killed_run_crashes_and_its_retry_completes(deployed, wait_for):
    deployments = {f"{item['name']}": item for item in request("POST", "/deployments/filter", json={})}
    assert deployments.keys() == {"camp"}
    automations = [item["name"] for item in request("POST", "/automations/filter", json={})]
    assert sorted(automations) == ["camp-silent-runs", "camp-source-changed"]
    flow = next(item for item in request("POST", "/deployments/filter", json={}) if "reproduce" in item["entrypoint"])
    schema = json.dumps(flow["parameter_openapi_schema"])
    assert "Optimizer steps between two checkpoints for resuming." in schema

    Path("slow").touch()
    begun = worker(deployed)
    try:
        parameters = {"parameters": {"params": {"train": {"epochs": 5}}}}
        run = request("POST", f"/deployments/{flow['id']}/create_flow_run", json=parameters)

        def state():
            return request("GET", f"/flow_runs/{run['id']}")["state"]["type"]

        wait_for(lambda: Path("tokenize.txt").exists() and children(begun.pid), 90)
        engine = children(begun.pid)
        wait_for(lambda: [grand for pid in engine for grand in children(pid)], 30)
        assert state() == "RUNNING"
    finally:
        begun.send_signal(signal.SIGKILL)
        begun.wait()
    for pid in engine:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state() == "CRASHED", 150)
    assert not Path("train.txt").exists()

    Path("slow").unlink()
    again = worker(deployed)
    try:
        command = [sys.executable, "-m", "prefect", "flow-run", "retry", run["id"]]
        subprocess.run(command, env=deployed, check=True, capture_output=True)
        wait_for(lambda: state() == "COMPLETED", 90)
    finally:
        again.terminate()
        again.wait(timeout=30)
    assert Path("train.txt").exists()
    assert Path("worker.log").read_text().count("prepare writes") == 1  # recovery goes on, it does not start over


def test_the_shipped_files_are_valid():
    for entry in yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())["automations"]:
        AutomationCore.model_validate(entry)
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        assert f"def {name}(" in (ROOT / path).read_text()
