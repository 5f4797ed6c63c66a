"""A small copy of the repository in which the whole DAG runs, is killed, and goes on."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import psutil
import voluptuous
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

HERE = Path(__file__).parent
SMALL = {
    "dataset": {"scenes": {"train": 24, "val": 8, "test": 10}},
    "detector": {"train": {"steps": 6, "batch_size": 4}},
    "regions": {"shard_size": 8},
    "model": {"dim": 16, "word_dim": 8},
    "train": {"epochs": 2, "batch_size": 16, "checkpoint_steps": 2},
    "evaluate": {"gate_pairs": 20, "foils": 60},
    "report": {"queries": 2},
}
ENDED = 20.0
"""Seconds after which nothing of an interrupted run may be alive; its deliveries to MLflow wait for no server."""


def _check_lock(content: bytes) -> None:
    """Raise an error if DVC would not accept the content of a dvc.lock, or if it ends within a stage."""
    stages = COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(content)).get("stages", {}).values()
    if not all("md5" in entry for stage in stages for entry in (*stage.get("deps", ()), *stage.get("outs", ()))):
        raise ValueError("an entry has no hash")


def remove_damaged(workspace: Path) -> None:
    """Remove what DVC writes in place if a kill has left half of it, as docs/reliability.md says."""
    for name, check in (
        (".dvc/tmp/rwlock", json.loads),
        ("dvc.lock", _check_lock),
        ("named/dvc.lock", _check_lock),
    ):
        path = workspace / name
        try:
            check(path.read_bytes())
        except FileNotFoundError:
            continue
        except (ValueError, yaml.YAMLError, voluptuous.Invalid):
            print(f"{name}: damaged, and removed", flush=True)
            path.unlink()
    for folder in (workspace / ".dvc" / "cache" / "runs").glob("*/*"):
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


class Workspace:
    """One repository and the `dvc repro` that is run in it."""

    def __init__(self, folder: Path, tracking: str = "off") -> None:
        self.folder, self.tracking = folder, tracking
        self.printed, self.seconds = "", 0.0
        self.begun: dict[str, float] = {}
        """Stage -> seconds after the start of the last `dvc repro` at which it began to run."""

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        dropped = ("MLFLOW_", "DVC_", "CAMP_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", "PYTHONPATH": str(self.folder),
            "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "CAMP_TRACKING": self.tracking,
            "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        return kept | own | more

    def start(self, *targets: str, **more: str) -> subprocess.Popen[str]:
        """Start `dvc repro` as the leader of a process group; what it prints is collected, with the stages' starts."""
        remove_damaged(self.folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *targets], cwd=self.folder, env=self.environment(more), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            # A shell's background jobs, of which this may be one, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )  # fmt: skip
        self.process, self.printed, self.begun, begin = process, "", {}, time.monotonic()

        def read() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    self.printed += line
                    if stage := re.search(r"Running stage '(\w+)'", line):
                        self.begun[stage[1]] = time.monotonic() - begin

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()
        return process

    def repro(self, *targets: str, code: int = 0, seconds: float = 600, **more: str) -> float:
        """Run `dvc repro` to its end; the seconds that it took."""
        begin = time.monotonic()
        process = self.start(*targets, **more)
        assert process.wait(seconds) == code, self.printed[-4000:]
        self.reader.join(20)
        return time.monotonic() - begin

    def interrupt(
        self,
        number: signal.Signals,
        stages: Collection[str],
        seconds: float,
        targets: Sequence[str] = (),
        printed: str = "",
    ) -> bool:
        """Run `dvc repro` and signal its whole group, `seconds` after one of `stages` begins (none: after the start).

        Where a stage's pace decides how far it is then, `printed` names what must have been printed besides.

        Whether it was still running then.
        """
        process = self.start(*targets)
        while process.poll() is None and (
            (stages and self.begun.keys().isdisjoint(stages)) or printed not in self.printed
        ):
            time.sleep(0.01)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
        code = process.wait(60)
        self.reader.join(20)
        self.assert_nothing_runs()
        return code != 0

    def processes(self) -> list[psutil.Process]:
        """The processes that work in the folder or are told of it, but for this one's ancestors."""
        ours = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                inside = Path(process.cwd()).is_relative_to(self.folder) or str(self.folder) in process.cmdline()
                if inside and process.pid not in ours and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def assert_nothing_runs(self) -> None:
        """No process of an ended run goes on writing."""
        until = time.monotonic() + ENDED
        while left := self.processes():
            assert time.monotonic() < until, [process.cmdline() for process in left]
            time.sleep(0.1)

    def hashes(self) -> dict[str, str]:
        """Path of each output -> its hash, from dvc.lock."""
        stages = yaml.safe_load((self.folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}

    def orphans(self) -> list[str]:
        """Temporary files of ours, and states of unfinished trainings; what DVC leaves in its own folder is its own."""
        beside = (path for path in self.folder.rglob("*") if path.name.endswith((".tmp", ".partial")))
        states = self.folder.glob(".work/train/*")
        return sorted(
            str(path.relative_to(self.folder))
            for path in (*beside, *states)
            if path.relative_to(self.folder).parts[0] not in (".git", ".dvc")
        )
