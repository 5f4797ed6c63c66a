"""From a run to its code, data and model, and from a commit to its run, in a real DVC repository."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stages
from camp_model.files import sha256_of
from stages.errors import InputError
from stages.tracking import machine, track
from stages.tracking.__main__ import main as commands
from stages.tracking.restore import find_run, model_hash
from stages.tracking.spool import pending
from stages.tracking.store import connect, local_uri

PIPELINE = """
stages:
  train:
    cmd: python train.py
    deps: [train.py, raw.txt]
    params: [train]
    outs: [models/camp]
  evaluate:
    cmd: python evaluate.py
    deps: [evaluate.py, models/camp]
    outs: [evaluation.txt]
"""
TRAIN = """
from pathlib import Path
from stages.tracking import machine, track
import hashlib, yaml
params = yaml.safe_load(Path("params.yaml").read_text())
with track("train", params) as run:
    Path("models/camp").mkdir(parents=True)
    weights = f"{params['train']['rate']} {Path('raw.txt').read_text()}"
    Path("models/camp/model.safetensors").write_text(weights)
    run.set_tags({"camp.model": hashlib.sha256(weights.encode()).hexdigest()})
    Path("models/camp/key.txt").write_text(run.run_id)
    run.log_metrics({"val/rsum": 1.0})
"""
EVALUATE = """
from pathlib import Path
from stages.tracking import machine, track
with track("evaluate", {}, parent=Path("models/camp/key.txt").read_text()) as run:
    Path("evaluation.txt").write_text("good")
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch, request):
    """A DVC repository, in a folder whose name a test may choose. Its pipeline has not run."""
    folder = tmp_path / getattr(request, "param", "main")
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "CAMP_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(stages.__file__).parents[1]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@localhost")
    files = {
        "dvc.yaml": PIPELINE,
        "train.py": TRAIN,
        "evaluate.py": EVALUATE,
        "raw.txt": "raw",
        "params.yaml": "train: {rate: 1}\n",
    }
    for name, text in files.items():
        Path(name).write_text(text)
    Path(".gitignore").write_text("/mlflow.db\n/mlartifacts/\n/.tracking/\n/models/\n/evaluation.txt\n")
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "begin")
    return folder


@pytest.fixture
def repository(workspace):
    """The workspace after its pipeline has run once, on uncommitted params."""
    Path("params.yaml").write_text("train: {rate: 2}\n")
    run(sys.executable, "-m", "dvc", "repro", "-q")
    delivered(workspace)
    return workspace


def delivered(folder):
    until = time.monotonic() + 300  # a busy machine delivers late
    while pending(folder) and time.monotonic() < until:
        time.sleep(0.5)


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_restored_and_found_from_its_commit(repository, capsys, tmp_path, monkeypatch):
    key = Path("models/camp/key.txt").read_text()
    Path("params.yaml").write_text("train: {rate: 3}\n")  # for the next training, before the report of this one
    with track("report", {}, parent=key):
        pass
    delivered(repository)
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "result")
    Path("raw.txt").write_text("other")
    run("git", "commit", "-q", "-am", "later: other data, another result")

    into = tmp_path / "back"
    commands(["restore", key[:12], "--into", str(into)])
    assert capsys.readouterr().out.rstrip().endswith(", params.yaml, dvc.lock, data, the model in models/camp")
    assert (into / "params.yaml").read_text() == "train: {rate: 2}\n"
    assert (into / "raw.txt").read_text() == "raw"
    assert (into / "models/camp/model.safetensors").read_text() == "2 raw"
    assert (into / "models/camp/key.txt").read_text() == key

    shutil.rmtree(".dvc/cache")
    commands(["restore", key[:12], "--into", str(tmp_path / "without")])
    said = "data but for evaluation.txt, models/camp/, which DVC does not have any more, no model"
    assert said in capsys.readouterr().out

    commands(["find", "HEAD~1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "val/rsum 1.0" in lines[0]
    commands(["find", "HEAD~2"])  # where they began
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(InputError, match="is not a commit"):
        commands(["find", "nowhere"])
    for command in (["find", "HEAD~1"], ["restore", key]):
        with monkeypatch.context() as without, pytest.raises(InputError, match="git: is no program on PATH"):
            without.setenv("PATH", str(tmp_path / "empty"))
            commands(command)
    with pytest.raises(InputError, match="exists"):
        commands(["restore", key, "--into", str(into)])
    with pytest.raises(InputError, match="no runs have this name or id"):
        commands(["restore", "f" * 33])
    with pytest.raises(InputError, match="registered no model"):
        commands(["promote", key])


@pytest.mark.filterwarnings("ignore")
def test_a_training_without_an_evaluation_is_found_and_gets_no_other_model(repository, capsys, tmp_path):
    """Its dvc.lock is that of its beginning, which names the model of the training before."""
    Path("params.yaml").write_text("train: {rate: 3}\n")
    run(sys.executable, "-m", "dvc", "repro", "-q", "train")
    delivered(repository)
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "only trained")
    commands(["find", "HEAD"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "train" in line
    commands(["restore", line.split()[0], "--into", str(tmp_path / "back")])
    assert capsys.readouterr().out.rstrip().endswith("no model: the run has logged none")
    assert not (tmp_path / "back/models/camp").exists()
    # Resumed after its uncommitted changes were committed, it has none.
    with track("train", {}, run_id=Path("models/camp/key.txt").read_text()):
        pass
    delivered(repository)
    commands(["restore", line.split()[0], "--into", str(tmp_path / "again")])
    assert "uncommitted" not in capsys.readouterr().out
    assert (tmp_path / "again/params.yaml").read_text() == "train: {rate: 3}\n"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workspace", ["josé's %20"], indirect=True)
def test_a_run_is_restored_in_a_path_of_any_script(repository, capsys):
    """DVC itself writes only ASCII into its settings."""
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "result")
    commands(["restore", Path("models/camp/key.txt").read_text()])
    # The stage `evaluate` had made nothing yet when its run recorded dvc.lock.
    assert capsys.readouterr().out.rstrip().endswith(", params.yaml, dvc.lock, data, the model in models/camp")


@pytest.mark.filterwarnings("ignore")
def test_new_files_of_the_code_are_restored_and_equal_models_have_the_last_run(repository, capsys, tmp_path):
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "result")
    (repository / "camp_model").mkdir()
    (repository / "camp_model" / "mine \u00e9.py").write_text("of my own")
    (repository / "notes.txt").write_text("no code")
    weights = repository / "model.safetensors"
    weights.write_bytes(b"equal")
    sha256, keys = sha256_of(weights), []
    for _ in range(2):
        with track("train", {}) as trained:
            trained.set_tags({"camp.model": sha256})
        keys.append(trained.run_id)
    assert run("git", "status", "--porcelain").splitlines() == [
        "?? camp_model/", "?? model.safetensors", "?? notes.txt",
    ], "the index is as it was"  # fmt: skip
    delivered(repository)
    into = tmp_path / "back"
    commands(["restore", sha256, "--into", str(into)])
    assert "its uncommitted changes" in capsys.readouterr().out
    assert (into / "camp_model" / "mine \u00e9.py").read_text() == "of my own" and not (into / "notes.txt").exists()
    with track("train", {}) as other:
        other.set_tags({"camp.model": sha256[:20] + "0" * 44})
    delivered(repository)
    with pytest.raises(InputError, match=r"3 runs have this name or id \("):
        commands(["restore", sha256[:20]])


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_written_through_a_link_that_a_run_brings(repository, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("of this person")
    (repository / "params.yaml").unlink()
    (repository / "params.yaml").symlink_to(outside)
    with track("train", {}) as trained:
        pass
    delivered(repository)
    outside.write_text("changed since")
    with pytest.raises(InputError, match=r"params\.yaml: is a link to .*outside in the run's code"):
        commands(["restore", trained.run_id, "--into", str(tmp_path / "back")])
    assert outside.read_text() == "changed since" and not (tmp_path / "back").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("earlier_version", [False, True])
def test_the_results_of_a_restored_run_are_its_own(repository, capsys, tmp_path, monkeypatch, earlier_version):
    """The commit has those of a run before; DVC deletes a stage's own before it runs, which is no person's change."""
    names = ("metrics/train.json", "plots/train_loss.csv", "metrics/retrieval.json", "metrics/foils.json")
    recorded_at_start = ("metrics/detector.json", "named/content.json")
    for name in (*names, *recorded_at_start, "report/index.html"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("before")
    run("git", "add", "-A", ":!report")
    run("git", "commit", "-q", "-m", "result of a run before")
    if earlier_version:  # its patches held the outputs, and it recorded none at its start
        monkeypatch.setattr(machine, "DIFF", machine.DIFF[: -len(machine.NO_OUTPUTS)])
    with track("sweep", {}) as sweep:
        pass
    for name in names[:2]:
        Path(name).unlink()
    for name in recorded_at_start:
        Path(name).write_text("own")
    with track("train", {}) as trained:
        for name in names[:2]:
            Path(name).write_text("own")
            trained.log_artifact(name)
    with track("evaluate", {}, parent=trained.run_id) as evaluated:
        Path(names[2]).write_text("own")
        evaluated.log_artifact(names[2], "metrics")
    delivered(repository)

    for key in (trained.run_id, evaluated.run_id):
        into = tmp_path / key
        commands(["restore", key, "--into", str(into)])
        said = capsys.readouterr().out
        assert "its metrics, its plots, no metrics/foils.json of its own, data" in said and "uncommitted" not in said
        assert not (into / "metrics/foils.json").exists()
        here = names[:3] + (() if earlier_version and key == evaluated.run_id else recorded_at_start)
        assert {name: (into / name).read_text() for name in here} == dict.fromkeys(here, "own")
    store = connect(repository, local_uri(repository))
    changed = [find_run(store, key).data.tags["git.changed"] for key in (trained.run_id, sweep.run_id)]
    assert changed == [str(earlier_version), "False"]
    commands(["restore", sweep.run_id, "--into", str(tmp_path / "sweep")])
    said = capsys.readouterr().out
    assert f"no {', '.join(sorted(names))} of its own, data, no model: a sweep has none of its own" in said
    assert not any((tmp_path / "sweep" / name).exists() for name in (*names, "models/camp"))


def test_a_store_that_does_not_answer_is_said_soon(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://person:secret@127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9: .*(refused|Max retries)") as said:
        commands(["find", "HEAD"])
    assert time.monotonic() - begun < 60 and "secret" not in str(said.value)


@pytest.mark.parametrize(("place", "says"), [("http://a b", "http://a b: "), ("postgresql://u:p@h/db", "psycopg")])
def test_an_address_that_mlflow_cannot_use_is_said_in_a_line(workspace, monkeypatch, place, says):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    with pytest.raises(InputError, match=says):
        commands(["find", "HEAD"])


@pytest.mark.parametrize("port", ["99999", "0", "web"])
def test_a_port_that_is_none_is_refused(workspace, port, capsys):
    with pytest.raises(SystemExit) as ended:
        commands(["ui", "--port", port])
    assert ended.value.code == 2 and f"--port: '{port}' is not a port" in capsys.readouterr().err


def test_model_hash():
    assert model_hash("stages: {train: {outs: [{path: a, md5: x}, {path: models/camp, md5: y.dir}]}}") == "y.dir"
    assert model_hash("schema: '2.0'") is None
