"""Two processes never write one stage's outputs; a stage ends with its dvc."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import stages
from camp_model.files import write_json
from stages.content.hashes import content_hash
from stages.entry import OutputsLocked, lock_outputs, stage_main

ROOT = Path(stages.__file__).parents[1]
DVC = [sys.executable, "-m", "dvc"]

HOLD = """
import sys, time
from pathlib import Path
from stages.entry import lock_outputs
with lock_outputs("train", Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_the_second_says_who_holds_the_outputs(tmp_path):
    with (
        holder(tmp_path, 60) as other,
        pytest.raises(OutputsLocked, match=rf'"pid": {other.pid}'),
    ):
        try:
            with lock_outputs("train", tmp_path, timeout=0.5):
                pass
        finally:
            other.kill()
    with lock_outputs("train", tmp_path, timeout=5):  # a killed holder lets go
        pass


def test_the_second_waits(tmp_path, capsys):
    with holder(tmp_path, 1):
        begun = time.monotonic()
        with lock_outputs("train", tmp_path):
            waited = time.monotonic() - begun
    assert waited > 0.3
    assert "waiting for it" in capsys.readouterr().err
    with lock_outputs("evaluate", tmp_path), lock_outputs("train", tmp_path):
        pass


STAGE = """
import time
from pathlib import Path
from stages.entry import stage_main
def main():
    Path("running").touch()
    time.sleep(60)
stage_main(main)
"""


def dvc_repository(monkeypatch, folder, command, script):
    """A DVC repository of one stage, entered."""
    monkeypatch.chdir(folder)
    for name in ("DVC_STAGE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    Path("stage.py").write_text(script)
    Path("dvc.yaml").write_text(f"stages: {{train: {{cmd: '{command}', deps: [stage.py], outs: [out.txt]}}}}")
    subprocess.run([*DVC, "init", "-q", "--no-scm"], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the system sends the signal on Linux only")
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])  # dash stays between dvc and a command without `exec`
def test_a_stage_ends_when_its_dvc_is_killed(tmp_path, monkeypatch, shell):
    dvc_repository(monkeypatch, tmp_path, f"exec {sys.executable} stage.py", STAGE)
    monkeypatch.setenv("SHELL", shell)
    with subprocess.Popen([*DVC, "repro"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as dvc:
        wait_for(lambda: Path("running").exists())
        dvc.kill()
        begun = time.monotonic()
        assert dvc.stdout is not None
        dvc.stdout.read()  # until the stage's end of the pipe is closed
    assert time.monotonic() - begun < 30
    with lock_outputs("train", Path(".work/locks"), timeout=5):
        pass


def test_every_shipped_stage_is_a_child_of_dvc_itself():
    shipped = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert all(stage["cmd"].startswith("exec python -m stages.") for stage in shipped.values())


SLOW = """
import os, signal, time
from pathlib import Path
from stages.entry import stage_main
def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stage that is not told, as on other systems than Linux
    alone = not Path("writing").exists()
    Path("writing").touch()
    with Path("log").open("a") as log:
        print("alone" if alone else "beside another", file=log)
    until = time.monotonic() + 60
    while Path("slow").exists() and time.monotonic() < until:
        time.sleep(0.1)
    Path("writing").unlink()
    Path("out.txt").write_text("whole")
stage_main(main)
"""


@pytest.mark.timeout(240)
def test_the_next_dvc_waits_for_the_stage_of_a_killed_one(tmp_path, monkeypatch):
    dvc_repository(monkeypatch, tmp_path, f"{sys.executable} stage.py", SLOW)
    Path("slow").touch()
    with subprocess.Popen([*DVC, "repro"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: Path("writing").exists())
        first.kill()
    with Path("second.log").open("w") as log, subprocess.Popen([*DVC, "repro"], stdout=log, stderr=log) as second:
        wait_for(lambda: "waiting for it" in Path("second.log").read_text())
        assert '"pid"' in Path("second.log").read_text()  # who holds the outputs
        Path("slow").unlink()
        assert second.wait(timeout=90) == 0
    assert Path("log").read_text().split("\n")[:-1] == ["alone", "alone"]
    assert Path("out.txt").read_text() == "whole"


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_link_in_the_place_of_outputs_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "disk").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "prepare_dataset")
    monkeypatch.setattr(sys, "argv", ["stage"])
    worked = []
    Path("data").symlink_to(tmp_path / "disk")
    with pytest.raises(SystemExit) as ended:
        stage_main(lambda: worked.append(1))
    assert ended.value.code == 2 and not worked
    said = capsys.readouterr().err
    assert f"data: is a link to {tmp_path / 'disk'}" in said and "expected a folder" in said.lower()
    Path("data").unlink()
    Path("data").mkdir()
    stage_main(lambda: worked.append(1))
    assert worked


QUIET = """
import ctypes, sys, time
from stages import entry
entry.QUIET_SECONDS = 0.5
def inner_loop():
    time.sleep(1.2)
    for _ in range(8):
        print("a word", flush=True)
        time.sleep(0.2)
    print("a library", flush=True)
    library = ctypes.PyDLL(None) if "held" in sys.argv[0] else ctypes.CDLL(None)  # the first lets no other thread run
    library.sleep(60)
entry.stage_main(inner_loop)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["stage", "held"])
def test_a_silent_stage_says_that_it_runs_and_ends_at_once_in_a_librarys_call(tmp_path, number, name):
    (tmp_path / f"{name}.py").write_text(QUIET)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, f"{name}.py"], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # as from a terminal
    ) as stage:  # fmt: skip
        assert stage.stdout is not None
        lines = []
        while lines[-1:] != ["a library"]:
            lines.append(stage.stdout.readline().strip())
        time.sleep(0.5)
        begun = time.monotonic()
        stage.send_signal(number)
        stage.wait(20)
        assert time.monotonic() - begun < 5
    first = lines.index("a word")
    assert first >= 2 and lines[first:-1] == ["a word"] * 8, "a line while nothing is said, none beside others"
    assert all(line.startswith(f"stage {name}: still running, ") for line in lines[:first])
    assert stage.returncode == -number


EDITED = """
from pathlib import Path
from stages.entry import stage_main
def main():
    Path("out.txt").write_text("made")
    edit = Path("edit")
    if edit.exists():
        path, text = edit.read_text().split("|")
        Path(path).write_text(text)
stage_main(main)
"""

NAMED = {"named/content.json": ["train"]}


def test_what_changes_while_a_stage_runs_is_not_recorded_with_its_result(tmp_path, monkeypatch):
    dvc_repository(monkeypatch, tmp_path, f"exec {sys.executable} stage.py", EDITED)
    described = yaml.safe_load(Path("dvc.yaml").read_text())
    described["stages"]["train"] |= {"deps": ["stage.py", "code"], "params": ["model.dim", "train", NAMED]}
    Path("dvc.yaml").write_text(yaml.safe_dump(described))
    params = "model: {dim: 1, gate: a}\ntrain: {rate: 2}\n"
    Path("params.yaml").write_text(params)
    Path("code").mkdir()
    Path("code/loss.py").write_text("")
    Path("words.txt").write_text("a")
    entry = {"path": "words.txt", "sha256": content_hash(Path("words.txt"), Path("hashes"))}
    write_json(Path("named/content.json"), {"train": {"train.word_vectors": entry}})

    def repro(path, text):
        Path("edit").write_text(f"{path}|{text}")
        done = subprocess.run([*DVC, "repro"], capture_output=True, text=True, check=False)
        return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]

    for path, text, said in (
        ("params.yaml", "model: {dim: 1, gate: a}\ntrain: {rate: 3}\n", "train.rate: was 2 when train began and is 3"),
        ("params.yaml", "model: {dim: 1, gate: a}\ntrain: {rate: 2, more: 4}\n", "train.more: was None"),
        ("code/loss.py", "x", "code/loss.py: has changed since train began"),
        ("words.txt", "b", "words.txt: has changed since named_files hashed it for train.word_vectors"),
        (
            "named/content.json",
            '{"train": {"train.word_vectors": 1}}',
            "content.json: train: {'train.word_vectors': 1};",
        ),
    ):
        before = Path(path).read_text()
        (error,) = repro(path, text)
        assert said in error
        assert not Path("dvc.lock").exists()
        Path(path).write_text(before)
    subprocess.run([*DVC, "commit", "-q", "-f", "train"], check=True)  # as the message says
    Path("dvc.lock").unlink()
    assert repro("params.yaml", "# of another stage\nmodel: {dim: 1, gate: b}\ntrain: {rate: 2}\n") == []
    assert repro("code/new.py", "nobody had imported it") == []


def test_a_stage_names_what_the_terminal_has_no_letters_for():
    script = "from stages.entry import stage_main; stage_main(lambda: print('no file \u72ac.jpg'), arguments=True)"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"no file \\u72ac.jpg\n"


def test_closed_streams_are_no_error(tmp_path):
    """As a service or `>&-` closes them; what comes next must not get their numbers, here and in what a stage runs."""
    program = (
        "import subprocess, sys\nfrom stages.entry import stage_main\n"
        "def run():\n"
        "    print('done')\n"
        "    assert open('first', 'w').fileno() > 2\n"
        "    streams = 'import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))'\n"
        "    subprocess.run([sys.executable, '-c', streams], check=True)\n"
        "stage_main(run)"
    )
    for closed in (">&-", "<&- >&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], cwd=tmp_path, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setenv("DVC_STAGE", "evaluate")
    for make, said in (
        (lambda: Path("metrics/gates.json").mkdir(parents=True), "metrics/gates.json: Is a directory"),
        (lambda: Path("metrics").touch(), "metrics: File exists"),
    ):
        make()
        with pytest.raises(SystemExit, match="2"):
            stage_main(lambda: write_json(Path("metrics/gates.json"), {}))
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"error: {said}; expected that this user may read and write it, and nothing else there"
        shutil.rmtree("metrics", ignore_errors=True)
