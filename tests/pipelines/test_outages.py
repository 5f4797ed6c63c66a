"""Prefect's server or DVC's remote goes away in the middle of a flow: it ends well, or says how to go on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import yaml
from prefect import flow as prefect_flow
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Crashed, Pending, Running, Scheduled

from pipelines import reproduce as module
from pipelines.commands import GRACE, REPORT_SECONDS, CommandFailed
from pipelines.deploy import AUTOMATIONS, deploy_automations
from pipelines.reproduce import reproduce
from tests.pipelines.conftest import free_port

ROOT = Path(__file__).parents[2]
SLOW = """
import time
while Path("slow").exists() and sys.argv[1] == "extract":
    time.sleep(0.2)
"""


@pytest.fixture
def slow(repository):
    """The repository; its second stage lasts while the file `slow` is there."""
    script = repository / "stage.py"
    script.write_text(script.read_text().replace("name, *sources", SLOW + "name, *sources", 1))
    (repository / "slow").touch()
    return repository


@pytest.fixture
def flow(prefect_server, slow, server_environment, wait_for, end):
    """`python -m pipelines.reproduce`, in its second stage."""
    environment = server_environment | {"PYTHONPATH": f"{slow}{os.pathsep}{ROOT}"}
    with Path("flow.log").open("wb") as log:
        command = [sys.executable, "-m", "pipelines.reproduce"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    wait_for(lambda: "prepare writes" in Path("flow.log").read_text(), 120)
    time.sleep(2)
    yield process
    Path("slow").unlink(missing_ok=True)
    end(process)


def tasks():
    """The last states of the newest run's tasks, with that of the run."""
    with get_client(sync_client=True) as client:
        run = client.request("POST", "/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()[0]
        mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        names = {
            task["name"]: task["state_type"] for task in client.request("POST", "/task_runs/filter", json=mine).json()
        }
    return run["state_type"], names


WHOLE = "COMPLETED", dict.fromkeys(("prepare", "extract", "tokenize", "train"), "COMPLETED")


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [3, 45])
def test_a_frozen_server_costs_a_flow_nothing_but_time(flow, server, wait_for, seconds):
    server[2](signal.SIGSTOP)
    time.sleep(min(seconds, 3))
    Path("slow").unlink()
    time.sleep(max(0, seconds - 3))
    server[2](signal.SIGCONT)
    assert flow.wait(240) == 0, Path("flow.log").read_text()[-3000:]
    wait_for(lambda: tasks() == WHOLE, 60)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_server_that_is_killed_and_started_again_knows_the_whole_flow(flow, restart_server, wait_for):
    restart_server()
    Path("slow").unlink()
    assert flow.wait(240) == 0, Path("flow.log").read_text()[-3000:]
    wait_for(lambda: tasks() == WHOLE, 60)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_flow_whose_server_stays_away_says_how_to_go_on(flow, server, server_environment):
    start, stop, _ = server
    stop(seconds=0)
    Path("slow").unlink()
    begun = time.monotonic()
    code = flow.wait(400)
    said = Path("flow.log").read_text()
    print(code, time.monotonic() - begun, said[-3000:])
    start()
    if code:
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "does not answer" in line and "`python -m pipelines.reproduce` continues" in line
        command = [sys.executable, "-m", "pipelines.reproduce"]
        subprocess.run(command, env=server_environment, check=True, capture_output=True)
    assert not subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], check=False).returncode


@pytest.mark.timeout(200)
def test_only_a_run_that_is_silent_while_it_runs_is_crashed_for_it(prefect_server, tmp_path, wait_for):
    """A retried run that its worker takes minutes to start has no heartbeat, and is not gone."""
    content = yaml.safe_load((ROOT / AUTOMATIONS).read_text())
    content["automations"][0]["trigger"]["within"] = 30
    content["automations"][0]["name"] = f"quick-{uuid.uuid4()}"
    (tmp_path / "automations.yaml").write_text(yaml.safe_dump(content))

    @prefect_flow
    def nothing():
        pass

    with get_client(sync_client=True) as client:
        names = deploy_automations(client, tmp_path / "automations.yaml")
        try:
            deployment = client.create_deployment(client.create_flow(nothing), f"silent-{uuid.uuid4()}")
            runs = [client.create_flow_run_from_deployment(deployment).id for _ in range(2)]

            # Prefect 3.8 can hold back for 15 minutes an event that comes while the one before it is being taken in
            # (PrefectHQ/prefect, issue 21932): each is heard here before the next is sent.
            def heard(run, event):
                wanted = {"event": {"name": [event]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
                ask = partial(client.request, "POST", "/events/filter", json={"filter": wanted})
                wait_for(lambda: ask().json()["total"] > 0, 60)

            def enter(run, state):
                client.set_flow_run_state(run, state, force=True)
                heard(run, f"prefect.flow-run.{state.name}")

            for run in runs:
                heard(run, "prefect.flow-run.Scheduled")
                enter(run, Running())
            for run in runs:
                emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run}"})
            retried, silent = runs  # the silent one is heard last, so the other would be ended before it
            heard(silent, "prefect.flow-run.heartbeat")
            enter(retried, Crashed())
            client.set_flow_run_state(retried, Scheduled(), force=True)
            time.sleep(2)
            client.set_flow_run_state(retried, Pending(), force=True)
            wait_for(lambda: client.read_flow_run(silent).state.type == "CRASHED", 120)
            assert client.read_flow_run(retried).state.is_pending()
        finally:
            body = {"automations": {"name": {"any_": names}}}
            for automation in client.request("POST", "/automations/filter", json=body).json():
                client.request("DELETE", "/automations/{id}", path_params={"id": automation["id"]})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_all_ends_a_flow_and_its_own_server(slow, server_environment, prefect_home, wait_for, number):
    """As Ctrl-C and Slurm send it. The server goes at once, and takes in nothing of what is left to say."""
    environment = {name: value for name, value in server_environment.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(prefect_home(slow.parent / "own")), "PYTHONPATH": f"{slow}{os.pathsep}{ROOT}"}
    with Path("flow.log").open("wb") as log:
        command = [sys.executable, "-m", "pipelines.reproduce"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "prepare writes" in Path("flow.log").read_text(), 120)
        time.sleep(2)
        os.killpg(process.pid, number)
        assert process.wait(GRACE + REPORT_SECONDS + 10) == 128 + number
        assert "`python -m pipelines.reproduce` continues" in Path("flow.log").read_text().splitlines()[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(300)
def test_a_flow_whose_stage_fails_ends_with_the_command_that_goes_on(prefect_server, repository, server_environment):
    Path("trap-prepare").write_text("error: params.yaml: wrong, code 2")
    command = [sys.executable, "-m", "pipelines.reproduce"]
    done = subprocess.run(command, env=server_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stderr[done.stderr.rindex("\nerror: dvc repro") :]
    assert "params.yaml: wrong" in said
    assert "Finished work is kept: `python -m pipelines.reproduce` continues." in said and "Traceback" not in said


@contextlib.contextmanager
def remote(folder, port, seconds=0.0):
    folder.mkdir(exist_ok=True)
    script = ROOT / "tests" / "chaos" / "http_remote.py"
    with (folder.parent / "remote.log").open("ab") as log:
        command = [sys.executable, str(script), str(folder), str(port), str(seconds)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def files_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".part"}


@pytest.fixture
def pushing(prefect_server, repository, monkeypatch):
    """(folder, port) of an HTTP remote that is the repository's default; tries follow each other after 5 s."""
    port = free_port()
    add = [sys.executable, "-m", "dvc", "remote", "add", "-q", "--default", "web", f"http://127.0.0.1:{port}/dvc"]
    subprocess.run(add, check=True)
    monkeypatch.setattr(module, "transfer", module.transfer.with_options(retry_delay_seconds=5))
    return repository.parent / "remote", port


@pytest.mark.timeout(300)
def test_a_remote_that_goes_away_during_a_push_has_all_of_it_at_the_end(pushing, wait_for):
    folder, port = pushing
    with remote(folder, port, 1.0) as first:
        watcher = subprocess.Popen(  # kills it once a part has arrived
            [sys.executable, "-c", f"""
import os, pathlib, time
while len([path for path in pathlib.Path({str(folder)!r}).rglob("*") if path.is_file()]) < 2:
    time.sleep(0.02)
os.kill({first.pid}, 9)
"""],
        )  # fmt: skip
        with ThreadPoolExecutor() as threads:
            again = threads.submit(_serve_again, first, folder, port)
            state = reproduce(return_state=True)
            second = again.result()
        watcher.wait(20)
        second.kill()
    assert state.is_completed(), state.message
    assert files_below(Path(".dvc/cache/files/md5")) <= files_below(folder / "dvc" / "files" / "md5")


def _serve_again(first, folder, port):
    first.wait(200)
    time.sleep(3)
    script = ROOT / "tests" / "chaos" / "http_remote.py"
    return subprocess.Popen([sys.executable, str(script), str(folder), str(port), "0"], stderr=subprocess.DEVNULL)


@pytest.mark.timeout(300)
def test_a_remote_that_stays_away_is_said_with_the_command_that_goes_on(pushing):
    folder, port = pushing
    state = reproduce(return_state=True)
    assert state.is_failed()
    with pytest.raises(CommandFailed, match="all stages are done") as error:
        state.result()
    command = "dvc push --run-cache --remote web"
    assert f"`{command}`" in str(error.value)
    assert Path("train.txt").exists()
    with remote(folder, port):
        subprocess.run([sys.executable, "-m", *command.split()], check=True, capture_output=True)
    assert files_below(Path(".dvc/cache/files/md5")) == files_below(folder / "dvc" / "files" / "md5")
