"""The spool: events of a run on disk, before they are delivered to MLflow.

Each run has a folder, `.tracking/spool/<run key>/`, with `events.jsonl` (append-only, one JSON object per line),
`artifacts/` (copies of the files), `delivered` (the number of bytes of events that the server has stored),
`refused.jsonl` (events that it rejected), `problem` (why the last delivery failed) and `writer.lock`, which the writing
process holds: the system releases it when that process dies, however it dies.
"""

import json
import shutil
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

SPOOL = Path(".tracking") / "spool"
Event = dict[str, Any]


class Spool:
    """A run's folder, opened for writing. Every method returns after handing the bytes to the operating system."""

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / SPOOL / key
        self._lock = FileLock(self.folder / "writer.lock")
        self._lock.acquire(timeout=10)  # creates the folder too
        self._file = (self.folder / "events.jsonl").open("a", encoding="utf-8")
        if self._file.tell():  # the last writer may have been killed in the middle of a line
            self._file.write("\n")

    def write(self, event: str, *sources: Path, **values: Any) -> None:
        """Append one event with the present time (milliseconds since 1970).

        `sources`, files or folders, are copied into a new folder; the event's `source` is the path of the first copy,
        relative to the spool folder.
        """
        if sources:
            kept = Path("artifacts", str(time.time_ns()))
            (self.folder / kept).mkdir(parents=True)
            for source in sources:
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, self.folder / kept / source.name, ignore=ignored)
                else:
                    shutil.copyfile(source, self.folder / kept / source.name)
            values["source"] = str(kept / sources[0].name)
        line = json.dumps({"event": event, "time": int(time.time() * 1000), **values}, default=str)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Stop writing, so that the folder can be delivered and removed."""
        self._file.close()
        self._lock.release()


def writer_alive(folder: Path) -> bool:
    """Whether a process still holds this spool folder."""
    if not folder.exists():  # taking the lock would create it again
        return False
    try:
        with FileLock(folder / "writer.lock", timeout=0):
            return False
    except (Timeout, PermissionError):  # belongs to another user, who delivers it
        return True


def read_events(folder: Path, offset: int = 0) -> Iterator[tuple[int, Event | None]]:
    """The complete lines after byte `offset`: pairs of (offset after the line, event; None if it is torn or empty)."""
    with (folder / "events.jsonl").open("rb") as file:
        file.seek(offset)
        while (line := file.readline()).endswith(b"\n"):
            offset += len(line)
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            yield offset, event if _is_event(event) else None


def _is_event(value: Any) -> bool:
    """Whether this is an event as `Spool.write` writes it, as far as readers depend on it."""
    if not (isinstance(value, dict) and isinstance(value.get("event"), str) and isinstance(value.get("time"), int)):
        return False
    if value["event"] == "start":
        return isinstance(value.get("kind"), str) and isinstance(value.get("uri"), str | None)
    return value["event"] != "metrics" or (isinstance(value.get("values"), dict) and "step" in value)


def undelivered(folder: Path) -> Iterator[tuple[int, Event]]:
    """The events that have not been delivered, each with the offset after it.

    Consecutive metrics are merged into one event, whose `values` are name -> points [value, time, step].
    """
    delivered = folder / "delivered"
    offset = int(delivered.read_text(encoding="ascii")) if delivered.exists() else 0
    events = ((at, event) for at, event in read_events(folder, offset) if event)

    def batch(item: tuple[int, tuple[int, Event]]) -> Any:
        number, (_, event) = item
        return (number // 500, event.get("also")) if event["event"] == "metrics" else number

    for _, group in groupby(enumerate(events), batch):
        points: dict[str, list[Any]] = {}
        for _, (offset, event) in group:  # noqa: B007
            for name, value in event["values"].items() if event["event"] == "metrics" else ():
                # An event that was refused before has points already.
                points.setdefault(name, []).extend(
                    value if isinstance(value, list) else [[value, event["time"], event["step"]]]
                )
        yield offset, event | {"values": points} if points else event


def start_event(folder: Path) -> Event | None:
    """The event that began the run; None if its writer died before writing it."""
    return next((event for _, event in read_events(folder) if event and event["event"] == "start"), None)


def pending(root: Path) -> list[Path]:
    """The spool folders, oldest first; they are still written, or not fully delivered: others are removed."""
    starts = {}
    for path in (root / SPOOL).glob("*/events.jsonl"):
        try:
            start = start_event(path.parent)
        except FileNotFoundError:  # it has just been delivered and removed
            continue
        except PermissionError:  # belongs to another user; the caller reports it
            start = None
        starts[path.parent] = start["time"] if start else 0
    return sorted(starts, key=lambda folder: (starts[folder], folder.name))
