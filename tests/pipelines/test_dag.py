"""The DAG of dvc.yaml, as DVC reads it."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines import commands
from pipelines.dag import check_experiments, read_dag, shared_stages
from stages.errors import InputError


def test_the_dag_is_dvcs(repository):
    dag = read_dag()
    assert dag.stages[0].name == "prepare"
    assert {stage.name: stage.upstream for stage in dag.stages} == {
        "prepare": (), "extract": ("prepare",), "tokenize": ("prepare",), "train": ("extract", "tokenize")
    }  # fmt: skip
    assert all(stage.stale for stage in dag.stages)
    assert [stage.name for stage in read_dag(targets=("tokenize",)).stages] == ["prepare", "tokenize"]
    with pytest.raises(InputError, match="nothing: is not a stage"):
        read_dag(targets=("nothing",))


def test_who_runs_a_stage_at_the_terminal_is_waited_for(repository, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.dag.POLL_SECONDS", 0.2)
    Path("held").touch()
    holding = (
        "import time; from pathlib import Path; from dvc.repo import Repo\n"
        "with Repo() as repo, repo.lock:\n    print('held', flush=True)\n"
        "    while Path('held').exists(): time.sleep(0.05)"
    )
    other = subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with ThreadPoolExecutor(1) as threads, contextlib.ExitStack() as ending:
        ending.callback(Path("held").unlink, missing_ok=True)
        reading = threads.submit(read_dag)
        while "waiting for another run in this workspace" not in capsys.readouterr().out:
            assert not reading.done()
            time.sleep(0.1)
        Path("held").unlink()
        assert [stage.name for stage in reading.result(60).stages]
    assert other.wait(30) == 0


@pytest.mark.parametrize("left", ["", '{"write": {"/a'])
def test_a_list_of_locks_that_a_killed_dvc_left_unfinished_is_removed(left, repository, capsys):
    """DVC opens the list, which empties it, and then writes it; killed in between, it refuses all that comes after."""
    listed = Path(".dvc/tmp/rwlock")
    listed.parent.mkdir(exist_ok=True)
    listed.write_text(left)
    repro = ["dvc", "repro"]
    assert "is corrupted" in subprocess.run(repro, capture_output=True, text=True, check=False).stderr
    assert read_dag().stages[0].stale
    assert capsys.readouterr().out == f"removed {listed.resolve()}, which a killed DVC has left unfinished\n"
    subprocess.run(repro, check=True)
    assert not any(json.loads(listed.read_text()).values())
    assert not read_dag().stages[0].stale
    assert listed.exists() and not capsys.readouterr().out


def test_a_list_of_locks_that_a_dvc_is_writing_is_waited_for(repository, capsys):
    listed = Path(".dvc/tmp/rwlock")
    listed.parent.mkdir(exist_ok=True)
    listed.write_text("")
    writing = (
        "import sys; from dvc.lock import make_lock\n"
        "with make_lock('.dvc/tmp/rwlock.lock', tmp_dir='.dvc/tmp'):\n    print('held', flush=True)\n"
        "    open('.dvc/tmp/rwlock', 'w').write(sys.stdin.readline())"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", writing], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "held\n"
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_dag)
        time.sleep(3)
        assert not reading.done()
        other.communicate('{"write": {}, "read": {}}\n', timeout=30)
        assert reading.result(60).stages
    assert listed.exists() and "removed" not in capsys.readouterr().out


def test_what_dvc_and_its_experiments_need_is_said(repository, tmp_path, monkeypatch):
    """A downloaded archive is no git repository; a new one has no commit; DVC's experiments fail in some paths."""
    shutil.rmtree(".git")
    with pytest.raises(InputError, match="is not a git repository; expected one; `git init` makes it"):
        read_dag()
    with pytest.raises(InputError, match="not a git repository.*; expected a git repository with a commit"):
        check_experiments(1)
    subprocess.run(["git", "init", "-q"], check=True)
    with pytest.raises(InputError, match="expected a git repository with a commit to start from"):
        check_experiments(1)
    with monkeypatch.context() as without, pytest.raises(InputError, match="git: is no program on PATH"):
        without.setenv("PATH", str(tmp_path / "empty"))
        check_experiments(1)
    commit = ("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "begin")
    for name, wrong in (("it's a %20", None), ("josé", "é"), ("a#b", "#")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run(["git", *commit], check=True)
        with pytest.raises(InputError, match=f"holds '{wrong}'; expected") if wrong else contextlib.nullcontext():
            check_experiments(1)


def test_experiments_of_a_shallow_clone_would_be_lost(tmp_path, monkeypatch):
    """DVC runs them, ends with 0 and keeps nothing."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "protocol.file.allow=always"]
    whole, shallow = tmp_path / "whole", tmp_path / "shallow"
    subprocess.run(["git", "init", "-q", str(whole)], check=True)
    for message in ("one", "two"):
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], cwd=whole, check=True)
    subprocess.run([*git, "clone", "-q", "--depth", "1", whole.as_uri(), str(shallow)], check=True)
    monkeypatch.chdir(shallow)
    with pytest.raises(InputError, match="is a shallow clone, of which DVC keeps no experiment; expected all commits"):
        check_experiments(1)
    subprocess.run([*git, "fetch", "-q", "--unshallow"], check=True)
    check_experiments(1)


def test_a_dvc_yaml_that_cannot_be_read_is_wrong_input(repository):
    Path("dvc.yaml").write_text("stages: [\n")
    for reading in (read_dag, lambda: shared_stages(["train.seed"])):
        with pytest.raises(InputError, match=r"unable to read: 'dvc\.yaml'"):
            reading()


def test_the_remote_beside_the_repository_is_nobodys_choice(repository, monkeypatch):
    """Its own .dvc/config names one for `dvc push` by hand: a flow pushes only to a remote that a person has set."""

    def dvc(*command):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True)

    assert read_dag().remote is None
    Path(".dvc/config").write_bytes((Path(commands.__file__).parents[1] / ".dvc/config").read_bytes())
    assert read_dag().remote is None
    dvc("remote", "add", "--local", "--default", "mine", str(repository.parent / "remote"))
    assert read_dag().remote == "mine"
    dvc("remote", "remove", "--local", "mine")
    dvc("remote", "add", "--force", "--default", "local", "s3://bucket/camp")
    assert read_dag().remote == "local"
