"""Information about the machine: the output of commands, and the load during a run."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from stages.errors import InputError

CODE = ("camp_model", "stages", "pipelines", "search", "presets")
"""Folders whose untracked files are recorded as part of the code."""
NO_OUTPUTS = (":(exclude)dvc.lock", ":(exclude)named", ":(exclude,glob)metrics/*.json", ":(exclude,glob)plots/*.csv")
"""Leaves out what stages write and git may track. DVC deletes some of it before a stage runs, so that its differences
are no person's; a run records its own."""
DIFF = ("git", "diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/",
        "HEAD", "--", ":/", ":(top,exclude,glob)**/.dvc/config", *NO_OUTPUTS)  # fmt: skip
"""Prints all differences from the commit that is checked out, in git's own form, because user settings may add colours
or filters; except the outputs of stages, and DVC's settings of remotes, which may hold keys. The output is bytes,
because a tracked file may have any encoding."""
SAMPLE_EVERY = 10.0
"""Seconds between two samples."""


def command_output(*command: str, timeout: float | None = 20, **environment: str) -> bytes | None:
    """The output of a command; None if it fails, is missing or takes longer than `timeout` seconds."""
    more = os.environ | environment
    try:
        return subprocess.run(command, capture_output=True, timeout=timeout, check=True, env=more).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def check_git() -> None:
    """Raise an InputError if the program git is not there: its commands would only seem to find no commit."""
    if shutil.which("git") is None:
        raise InputError("git: is no program on PATH; expected git to be installed")


def copy_index(folder: Path) -> Path:
    """Copy git's index, of this repository, into a folder: to add files to it without changing the user's own.

    The copy is as old as the index. By that git knows which files may have changed in the second after it read them:
    of a later index it would believe that they are as it read them.
    """
    index = command_output("git", "rev-parse", "--git-path", "index") or b""
    return Path(shutil.copy2(os.fsdecode(index).rstrip("\n"), folder / "index"))


def uncommitted_changes() -> bytes | None:
    """The differences from the commit that is checked out, new code files included, as a patch; None if git fails."""
    there = [folder for folder in CODE if Path(folder).is_dir()]
    new = command_output("git", "ls-files", "--others", "--exclude-standard", "-z", "--", *there) if there else b""
    if not new:
        return command_output(*DIFF)
    with tempfile.TemporaryDirectory() as folder:
        other = copy_index(Path(folder))
        names = [os.fsdecode(name) for name in new.split(b"\0") if name]
        if command_output("git", "add", "--intent-to-add", "--", *names, GIT_INDEX_FILE=str(other)) is None:
            return None
        return command_output(*DIFF, GIT_INDEX_FILE=str(other))


def commit_name() -> str:
    """The short name of the commit that is checked out here, and the changed files of code and params, with which
    experiments run too; or "not known"."""
    name = (command_output("git", "rev-parse", "--short=12", "HEAD") or b"not known").decode().strip()
    files = command_output(
        "git", "diff", "--name-only", "--relative", "-z", "HEAD", "--", *CODE, "dvc.yaml", "params.yaml"
    )
    changed = [os.fsdecode(file) for file in (files or b"").split(b"\0") if file]
    more = f" and {len(changed) - 3} more files" if changed[3:] else ""
    return f"{name}, with uncommitted changes of {', '.join(changed[:3])}{more}" if changed else name


def sample_machine(write: Callable[..., None], stop: threading.Event) -> None:
    """Record the machine's load under the names that MLflow's page of system metrics uses."""
    import psutil

    process, smi, sample = psutil.Process(), shutil.which("nvidia-smi"), 0
    psutil.cpu_percent()
    while not stop.wait(min(1.0, SAMPLE_EVERY) if sample == 0 else SAMPLE_EVERY):
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_megabytes": process.memory_info().rss / 1e6,
        }
        query = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
        for number, line in enumerate((command_output(smi, *query) or b"").decode().splitlines() if smi else []):
            for name, cell in zip(("utilization_percentage", "memory_usage_megabytes"), line.split(","), strict=True):
                if cell.strip().isdigit():
                    values[f"system/gpu_{number}_{name}"] = float(cell)
        write("metrics", values=values, step=sample, also=None)
        sample += 1
