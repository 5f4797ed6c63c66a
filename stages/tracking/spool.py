"""The spool: what a run has to tell MLflow, on disk first.

One folder per run, `.tracking/spool/<run key>/`: `events.jsonl` (append-only, one JSON object a line), `artifacts/`
(copies of the files), `delivered` (how many bytes of the events have reached the server) and `writer.lock`, held by
the process that is still writing: the system lets it go when that process dies, however it dies.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from camp_model.files import write_text

SPOOL = Path(".tracking") / "spool"


def experiment_name() -> str:
    """The MLflow experiment that runs belong to."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "camp")


class Spool:
    """One run's folder, opened for writing. Every method returns once the bytes are with the operating system."""

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / SPOOL / key
        (self.folder / "artifacts").mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "writer.lock")
        self._lock.acquire(timeout=10)
        path = self.folder / "events.jsonl"
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if torn:  # the last writer was killed in the middle of a line
            self._file.write("\n")

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the present time (milliseconds since 1970)."""
        line = json.dumps({"event": event, "time": int(time.time() * 1000), **values}, default=str)
        self._file.write(line + "\n")
        self._file.flush()

    def keep(self, *sources: Path) -> str:
        """Copy files or folders into a new folder of the spool; returns its path relative to the spool folder."""
        number = sum(1 for _ in (self.folder / "artifacts").iterdir())
        target = self.folder / "artifacts" / f"{number:05d}"
        target.mkdir()
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target / source.name)
        return target.relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Give the folder up to whoever delivers it."""
        self._file.close()
        self._lock.release()


def writer_alive(folder: Path) -> bool:
    """Whether a process still holds this spool folder."""
    try:
        with FileLock(folder / "writer.lock", timeout=0):
            return False
    except Timeout:
        return True


def delivered_bytes(folder: Path) -> int:
    """How much of `events.jsonl` has reached the server."""
    try:
        return int((folder / "delivered").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def set_delivered(folder: Path, offset: int) -> None:
    """Remember that `events.jsonl` has reached the server up to byte `offset`."""
    write_text(folder / "delivered", str(offset))


def read_events(folder: Path, offset: int, limit: int = 1000) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The whole lines after byte `offset`: pairs of (offset after the line, event; None for a torn line)."""
    with (folder / "events.jsonl").open("rb") as file:
        file.seek(offset)
        for _ in range(limit):
            line = file.readline()
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            yield offset, event if isinstance(event, dict) else None


def started(folder: Path) -> dict[str, Any] | None:
    """The event that began the run; None where the writer died before it."""
    return next((event for _, event in read_events(folder, 0, limit=1) if event), None)


def last_event(folder: Path) -> str | None:
    """The kind of the last whole event."""
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    try:
        return str(json.loads(lines[-1])["event"])
    except (IndexError, ValueError):
        return None


def whole(folder: Path) -> bool:
    """Whether everything in the folder is delivered; the half line of a killed writer does not count."""
    return next(read_events(folder, delivered_bytes(folder), limit=1), None) is None


def pending(root: Path) -> list[Path]:
    """The spool folders, oldest first. A folder that is wholly delivered is removed, so each holds something."""
    spool = root / SPOOL
    if not spool.is_dir():
        return []
    folders = [folder for folder in spool.iterdir() if (folder / "events.jsonl").is_file()]
    return sorted(folders, key=lambda folder: ((started(folder) or {"time": 0})["time"], folder.name))
