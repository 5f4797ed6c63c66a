"""Flows that are started with something wrong: a line, exit code 2, no traceback."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import ablation, extract

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["pipelines.photographs", "--only", "nothing-known"], "rows: 'nothing-known' is not one of full, no-gates"),
        (["pipelines.experiments", '{"train.seed": [0]}', "--jobs", "0"], "jobs: 0 is below 1"),
        (["pipelines.photographs", "--jobs", "0"], "jobs: 0 is below 1"),
        (["pipelines.experiments", '{"model.gat": ["none"]}'], "gat-none: model.gat: unknown key; allowed here: "),
        (["pipelines.deploy", "--prefect-file", "none.yaml"], "--prefect-file: none.yaml is not a file; expected one"),
        (["pipelines.ablation", "--set", "train.epochs=3", "--set", "train.epochs=5"], "train.epochs: is there twice"),
        (
            ["pipelines.photographs", "--set", "train.epochs=3", "--set", "train.epochs=5"],
            "train.epochs: is there twice",
        ),
        (["pipelines.extract", "--resource", "GPU=1", "--resource", "GPU=2"], "GPU: is there twice; expected it once"),
        (["pipelines.experiments", '{"train.seed": 3}'], "grid.train.seed: Input should be a valid list"),
    ],
)
def test_wrong_input_ends_a_flow_with_a_line(prefect_server, repository, server_environment, arguments, why):
    Path("presets").mkdir(exist_ok=True)
    shutil.copy(ROOT / "presets/best_1_joint.yaml", "presets")
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=server_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    _, error, said = done.stderr.rpartition("error: ")
    assert error and why in said and len(said.splitlines()) <= 2
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(ablation, ["--only", "full", "--all"]), (extract, ["--cluster", "tcp://127.0.0.1:1", "--workers", "2"])],
)
def test_options_of_which_one_would_be_ignored_are_refused(monkeypatch, capsys, command, arguments):
    monkeypatch.setattr(sys, "argv", ["camp", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("arguments", "variable", "value", "why"),
    [
        (["reproduce"], "PREFECT_HOME", "/proc/none",
         "PREFECT_HOME: /proc/none: No such file or directory; expected a folder that"),
        (["deploy", "--prefect-file", str(ROOT / "prefect.yaml")], "PREFECT_HOME", "/proc/none",
         "PREFECT_API_URL: is not set"),
        (["refresh", "announce"], "PREFECT_HOME", "/proc/none", "PREFECT_API_URL: is not set"),
        (["reproduce"], "PREFECT_API_URL", "http://u:pw@127.0.0.1:9/api",
         "the Prefect server http://127.0.0.1:9/api does not answer"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_had_ends_a_flow_with_a_line(
    repository, server_environment, arguments, variable, value, why
):
    """Prefect itself would try for minutes to start one without a home; only flows bring one."""
    environment = {name: text for name, text in server_environment.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", f"pipelines.{arguments[0]}", *arguments[1:]]
    environment |= {variable: value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode and f"error: {why}" in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr and "pw@" not in done.stderr


WRITES = """
import resource
from pathlib import Path
from prefect import flow
from camp_model.files import write_text
from pipelines.commands import prefect_command

@flow
def write():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))
    try:
        write_text(Path("page.md"), "x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))

with prefect_command():
    write()
"""


@pytest.mark.timeout(300)
def test_a_disk_without_space_ends_a_flow_with_a_line(prefect_server, repository, server_environment):
    command = [sys.executable, "-c", WRITES]
    done = subprocess.run(command, env=server_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: page.md: File too large (")
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_wrong_params_yaml_ends_a_flow_with_a_line_and_an_option_for_help_not_at_all(
    prefect_server, repository, server_environment
):
    before = Path("params.yaml").read_text()
    wrong = re.sub(r"(?m)^(  epochs:) \d+", r"\1 -2", before, count=1)
    Path("params.yaml").write_text(wrong)

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, env=server_environment, capture_output=True, text=True, check=False)

    assert run("pipelines.ablation", "--help").returncode == 0
    for flow_of in ("pipelines.reproduce", "pipelines.refresh"):
        done = run(flow_of)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1] == "error: params.yaml: train.epochs: -2 is below 0"
        assert "Traceback" not in done.stdout + done.stderr
    assert Path("params.yaml").read_text() == wrong
