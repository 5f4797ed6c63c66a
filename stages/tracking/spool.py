"""The spool: what a run has to tell MLflow, on disk first.

One folder per run, `.tracking/spool/<run key>/`: `events.jsonl` (append-only, one JSON object a line), `artifacts/`
(copies of the files), `delivered` (how many bytes of the events have reached the server), `refused.jsonl` (events that
it does not take), `problem` (why the last delivery failed) and `writer.lock`, held by the process that still writes:
the system lets it go when that process dies, however it dies.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from camp_model.files import write_text

SPOOL = Path(".tracking") / "spool"
Event = dict[str, Any]


def experiment_name() -> str:
    """The MLflow experiment that runs belong to."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or "camp"


class Spool:
    """One run's folder, opened for writing. Every method returns once the bytes are with the operating system."""

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / SPOOL / key
        self._lock = FileLock(self.folder / "writer.lock")
        self._lock.acquire(timeout=10)  # makes the folder, too
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
        name = f"artifacts/{time.time_ns()}"
        (self.folder / name).mkdir(parents=True)
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, self.folder / name / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, self.folder / name / source.name)
        return name

    def close(self) -> None:
        """Give the folder up to whoever delivers it."""
        self._file.close()
        self._lock.release()


def writer_alive(folder: Path) -> bool:
    """Whether a process still holds this spool folder."""
    if not folder.exists():  # a lock would make it again
        return False
    try:
        with FileLock(folder / "writer.lock", timeout=0):
            return False
    except Timeout:
        return True


def read_events(folder: Path, offset: int = 0) -> Iterator[tuple[int, Event | None]]:
    """The whole lines after byte `offset`: pairs of (offset after the line, event; None for a torn line)."""
    with (folder / "events.jsonl").open("rb") as file:
        file.seek(offset)
        while (line := file.readline()).endswith(b"\n"):
            offset += len(line)
            try:
                yield offset, dict(json.loads(line))
            except (ValueError, TypeError):
                yield offset, None


def undelivered(folder: Path) -> Iterator[tuple[int, Event]]:
    """The events that have not reached the server. Metrics that follow each other are one event.

    Its `values` are name -> points [value, time, step].
    """
    delivered = folder / "delivered"
    offset = int(delivered.read_text(encoding="ascii")) if delivered.exists() else 0
    events = ((at, event) for at, event in read_events(folder, offset) if event)
    for _, group in groupby(enumerate(events), _batch):
        batch = [pair for _, pair in group]
        offset, event = batch[-1]
        yield offset, event | {"values": _points(batch)} if event["event"] == "metrics" else event


def _batch(item: tuple[int, tuple[int, Event]]) -> Any:
    number, (_, event) = item
    return (number // 500, event.get("also")) if event["event"] == "metrics" else number


def _points(batch: list[tuple[int, Event]]) -> dict[str, list[Any]]:
    points: dict[str, list[Any]] = {}
    for _, event in batch:
        for name, value in event["values"].items():  # one that was refused before has points already
            more = value if isinstance(value, list) else [[value, event["time"], event["step"]]]
            points.setdefault(name, []).extend(more)
    return points


def set_delivered(folder: Path, offset: int) -> None:
    """Remember that `events.jsonl` has reached the server up to byte `offset`."""
    write_text(folder / "delivered", str(offset))


def started(folder: Path) -> Event | None:
    """The event that began the run; None where its writer died before it."""
    return next((event for _, event in read_events(folder) if event and event["event"] == "start"), None)


def left_behind(root: Path, key: str) -> bool:
    """Whether the spool holds another run that has ended and that the server did not take, as far as it would."""
    others = [folder for folder in pending(root) if folder.name != key and not (folder / "refused.jsonl").exists()]
    return any(not writer_alive(folder) for folder in others)


def pending(root: Path) -> list[Path]:
    """The spool folders, oldest first. A folder that is wholly delivered is removed, so each holds something."""
    starts = {}
    for path in (root / SPOOL).glob("*/events.jsonl"):
        try:
            starts[path.parent] = (started(path.parent) or {"time": 0})["time"]
        except FileNotFoundError:  # it is being delivered and removed right now
            continue
    return sorted(starts, key=lambda folder: (starts[folder], folder.name))
