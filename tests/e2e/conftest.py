"""A copy of the repository, small enough that the whole pipeline runs in it within a minute or two."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

Run = Callable[..., subprocess.CompletedProcess[str]]

SMALL = {
    "dataset": {"scenes": {"train": 48, "val": 12, "test": 16}},
    "detector": {"train": {"steps": 12, "batch_size": 4}},
    "regions": {"shard_size": 16},
    "model": {"dim": 32, "word_dim": 16},
    "train": {"epochs": 2, "batch_size": 16},
    "evaluate": {"gate_pairs": 50},
    "report": {"queries": 3},
}


SECRET = "s3cr3t-0f-n0-0ne"
SECRETS = {name: SECRET for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "CAMP_ANYTHING", "MLFLOW_TRACKING_PASSWORD")}
"""In the environment of the small copy's run."""


def merge(base: dict, overlay: dict) -> dict:
    for key, value in overlay.items():
        base[key] = merge(base[key], value) if isinstance(value, dict) else value
    return base


def run_in(folder: Path, *command: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the virtual environment in `folder`; its output is in the failure."""
    # Compiled modules as well, which lie in folders that stages depend on.
    dropped = ("MLFLOW_", "DVC_", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    # With one thread, a training that is run again gives the same bytes.
    environment |= {"PYTHONPATH": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"} | more
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def deliver_all(folder: Path) -> None:
    """Wait until MLflow has every run: on a busy machine a stage's end does not wait for all of its own."""
    until = time.monotonic() + 300
    while [path for name in ("events.jsonl", "artifacts") for path in folder.glob(f".tracking/spool/*/{name}")]:
        said = run_in(folder, sys.executable, "-m", "stages.tracking", "sync", check=False)
        assert time.monotonic() < until, said.stderr
        time.sleep(3)  # for the process that is at it


@pytest.fixture(scope="session")
def copy_repository(repository: Path) -> Callable[..., Path]:
    """A function that puts the working tree, with params laid over, into a folder as a fresh git repository."""

    def copy(folder: Path, overlay: dict) -> Path:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=repository, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if name == "dvc.lock" or name.startswith("metrics/") or not (repository / name).is_file():
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, folder / name)
        params = yaml.safe_load((folder / "params.yaml").read_text())
        (folder / "params.yaml").write_text(yaml.safe_dump(merge(params, overlay)))
        for command in (
            ("init", "-q", "-b", "main"),
            ("config", "user.name", "test"),
            ("config", "user.email", "test@example.org"),
            ("add", "-A"),
            ("commit", "-q", "-m", "small"),
        ):
            run_in(folder, "git", *command)
        return folder

    return copy


@pytest.fixture(scope="session")
def run() -> Run:
    return run_in


@pytest.fixture(scope="session")
def pipeline(copy_repository: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small copy after one `dvc repro`, its outputs committed. Tests leave it as they found it."""
    folder = copy_repository(tmp_path_factory.mktemp("pipeline"), SMALL)
    run_in(folder, "dvc", "repro", **SECRETS)
    run_in(folder, "git", "add", "-A")
    run_in(folder, "git", "commit", "-q", "-m", "reproduced")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
