"""`reproduce` against a real server, on a small real DAG."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines import commands
from pipelines import reproduce as module
from pipelines.commands import CommandFailed, allow_commands, run_command
from pipelines.forms import current_params
from pipelines.refresh import SOURCE_CHANGED, announce, refresh
from pipelines.reproduce import reproduce
from stages.errors import InputError
from tests.pipelines.conftest import free_port


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Retries without the wait."""
    monkeypatch.setattr(
        module, "run_stage", module.run_stage.with_options(retry_delay_seconds=0, retry_jitter_factor=0)
    )


def run_flow(**parameters):
    """The last state of a run, and its tasks by their names."""
    state = reproduce(**parameters, return_state=True)
    with get_client(sync_client=True) as client:
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        runs = client.read_task_runs(flow_run_filter=mine)
    return state, {run.name: run for run in runs}


@pytest.mark.timeout(240)
def test_stages_run_are_cached_and_run_again(prefect_server, repository, wait_for):
    state, tasks = run_flow()
    assert state.is_completed()
    assert state.result() == dict.fromkeys(("prepare", "extract", "tokenize", "train"), "ran")
    assert Path("train.txt").read_text() == "trainextractpreparetokenizeprepare"
    # The graph is the DAG: each task's inputs are the runs of the stages it depends on.
    parents = {item.id for item in tasks["train"].task_inputs["upstream"]}
    assert parents == {tasks["extract"].id, tasks["tokenize"].id}

    state, tasks = run_flow()
    assert {name: run.state.name for name, run in tasks.items()} == dict.fromkeys(state.result(), "Cached")

    state, _ = run_flow(params={"train": {"epochs": 3}})
    assert state.result() == {"prepare": "cached", "extract": "cached", "tokenize": "cached", "train": "ran"}


@pytest.mark.timeout(240)
def test_what_follows_a_result_that_dvc_has_from_before_is_not_left_as_it_was(prefect_server, repository):
    """As from one setting to another and back: the first stage has its result at once, and it is not the last one."""
    code = Path("stage.py").read_text()
    reads_params = 'if name == "prepare": sources = ["params.yaml"]\nprint(f'
    Path("stage.py").write_text(code.replace("print(f", reads_params, 1))
    for number, expected in ((1, "ran"), (2, "ran"), (1, "restored")):
        state, _ = run_flow(params={"dataset": {"scenes": {"seed": number}}})
        assert set(state.result().values()) == {expected}
        status = subprocess.run([sys.executable, "-m", "dvc", "status"], check=True, capture_output=True, text=True)
        assert "up to date" in status.stdout, status.stdout


@pytest.mark.timeout(240)
@pytest.mark.parametrize("changes", ["train", ""])
def test_who_changes_params_while_a_flow_runs_is_told_what_is_out_of_date_again(
    changes, prefect_server, repository, caplog
):
    """`train` changes what `prepare` has read, which ended long ago."""
    Path("stage.py").write_text(
        f"{Path('stage.py').read_text()}\nif name == {changes!r}:\n"
        "    import yaml; params = yaml.safe_load(Path('params.yaml').read_text())\n"
        "    params['dataset']['scenes']['seed'] = 7\n"
        "    Path('params.yaml').write_text(yaml.safe_dump(params))\n"
    )
    state, _ = run_flow()
    assert state.is_completed()
    said = [record.getMessage() for record in caplog.records if "out of date again" in record.getMessage()]
    assert [line.split(":")[1].split(";")[0] for line in said] == ([" prepare"] if changes else [])


@pytest.mark.timeout(240)
def test_results_of_a_flow_stay_done_if_dvc_yaml_cannot_be_read_at_its_end(prefect_server, repository):
    breaks = "\nif name == 'train': Path('dvc.yaml').write_text('stages: [')\n"
    Path("stage.py").write_text(Path("stage.py").read_text() + breaks)
    state, _ = run_flow()
    assert state.is_completed() and set(state.result().values()) == {"ran"}


@pytest.mark.timeout(240)
def test_a_wrong_stage_changes_no_params(prefect_server, repository):
    before = Path("params.yaml").read_text()
    state, _ = run_flow(params={"train": {"epochs": 3}}, stages=["nope"])
    assert state.is_failed() and Path("params.yaml").read_text() == before


@pytest.mark.timeout(240)
def test_what_can_pass_is_tried_again_and_what_cannot_is_not(prefect_server, repository, wait_for):
    Path("trap-prepare").write_text("requests: Connection reset by peer, code 1")
    Path("trap-train").write_text("torch.OutOfMemoryError: CUDA out of memory, code 1")
    batch = current_params().train.batch_size
    state, tasks = run_flow(stages=["train"])
    assert state.is_completed()
    assert tasks["prepare"].run_count == tasks["train"].run_count == 2
    assert tasks["tokenize"].run_count == 1
    assert current_params().train.micro_batch == batch // 2

    Path("trap-extract").write_text("error: params.yaml: wrong, code 2")
    Path("extract.txt").unlink()
    Path("prepare.txt").write_text("changed")
    Path(".dvc/cache").rename("gone")
    state, tasks = run_flow(stages=["extract"])
    assert state.is_failed()
    with pytest.raises(CommandFailed, match="params.yaml: wrong"):
        state.result()
    assert tasks["extract"].run_count == 1
    with get_client(sync_client=True) as client:  # the stages' own words are in Prefect's log
        found = wait_for(lambda: [log for log in client.read_logs() if "prepare writes; flow run" in log.message], 20)
    assert "None" not in found[0].message


@pytest.mark.timeout(240)
def test_a_stage_that_another_run_begins_first_is_waited_for(prefect_server, repository, wait_for):
    """As of two flows that have read the DAG at the same time."""
    allow_commands()
    held, script, locks = Path("held"), Path("stage.py"), Path(".dvc/tmp/rwlock")
    waiting = "import pathlib, time\nwhile pathlib.Path('held').exists(): time.sleep(0.1)\n"
    script.write_text(waiting + script.read_text())
    held.touch()
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "--single-item", "prepare"])
    wait_for(lambda: locks.is_file() and "prepare.txt" in locks.read_text(), 60)
    ending = threading.Timer(20, held.unlink)
    ending.start()
    assert flow(lambda: module.run_stage("prepare", True, []), name="one stage")().name == "Cached"
    ending.join()
    assert other.wait(30) == 0


@pytest.mark.timeout(240)
def test_another_clone_ends_with_the_same_result(prefect_server, repository, monkeypatch):
    """A machine with nothing but git and the remote gets the results, it does not compute them again."""

    def run(*command):
        subprocess.run(command, check=True, capture_output=True)

    run(sys.executable, "-m", "dvc", "remote", "add", "--default", "local", str(repository.parent / "remote"))
    state, _ = run_flow()
    assert set(state.result().values()) == {"ran"}
    run("git", "add", "-A")
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "result")
    clone = repository.parent / "clone"
    run("git", "clone", "-q", str(repository), str(clone))
    monkeypatch.chdir(clone)
    state, _ = run_flow()
    assert set(state.result().values()) <= {"cached", "restored"}
    assert (clone / "train.txt").read_text() == (repository / "train.txt").read_text()


def test_another_projects_modules_do_not_reach_a_stage(tmp_path, monkeypatch):
    (tmp_path / "own/stages").mkdir(parents=True)
    (tmp_path / "other/torch").mkdir(parents=True)
    (tmp_path / "other/torch/__init__.py").write_text("raise ImportError('another torch')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(tmp_path / name) for name in ("other", "own")))
    script = "import os, torch; print(os.environ['PYTHONPATH'])"
    assert run_command([sys.executable, "-c", script], print) == str(tmp_path / "own")


def test_make_passes_no_pythonpath_on(tmp_path):
    command = ["make", "-s", "--eval=shown: ; @env", "shown"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SHOWN": "yes"}
    root = Path(commands.__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert "SHOWN=yes" in done.stdout and "PYTHONPATH" not in done.stdout


NAMELESS = """
import pwd
pwd.getpwuid = {}.__getitem__  # as for a container's user without a name
import pipelines
from pathlib import Path
from prefect.settings import get_current_settings
print(Path.home(), get_current_settings().home)
"""


def test_a_flow_starts_where_there_is_no_home(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "PREFECT_HOME")}
    environment["PYTHONPATH"] = str(Path(commands.__file__).parents[1])
    command = [sys.executable, "-c", NAMELESS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / ".work/home"), str(tmp_path / ".work/home/.prefect")]


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--force", 2)])
def test_no_option_starts_the_flow_by_accident(option, code, repository):
    assert subprocess.run([sys.executable, "-m", "pipelines.reproduce", option], check=False).returncode == code
    assert not Path("prepare.txt").exists()


def test_a_wrong_param_fails_before_any_stage(prefect_server, repository):
    state, _ = run_flow(params={"model": {"gate": "open"}})
    assert state.is_failed()
    with pytest.raises(InputError, match="gate"):
        state.result()
    assert not Path("prepare.txt").exists()


@pytest.mark.timeout(240)
def test_a_server_is_told_of_a_change_or_it_is_an_error(prefect_server, wait_for):
    asked = {"filter": {"event": {"name": [SOURCE_CHANGED]}}}
    with get_client(sync_client=True) as client:
        before = client.request("POST", "/events/filter", json=asked).json()["total"]  # of other files' tests
        announce()
        wait_for(lambda: client.request("POST", "/events/filter", json=asked).json()["total"] == before + 1, 60)
    for server, said in (
        (None, "PREFECT_API_URL: is not set"),
        (f"http://127.0.0.1:{free_port()}/api", "did not accept the event .*refused"),
        (f"{prefect_server}/nothing", "did not accept the event .*404"),
    ):
        with temporary_settings({PREFECT_API_URL: server}), pytest.raises(InputError, match=said):
            announce()


def test_refresh_runs_only_what_is_stale(prefect_server, repository):
    assert set(refresh().values()) == {"ran"}
    state = refresh(return_state=True)
    assert state.name == "Nothing to do"
