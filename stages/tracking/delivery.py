"""Delivers the spool to MLflow. `python -m stages.tracking.delivery ROOT KEY` does so while a run is going on.

Delivering an event twice changes nothing, so a delivery may be killed at any point: runs are identified by their tag
`camp.run`, and equal params, metric points, tags and files replace each other. An event leaves the spool only after the
server has stored it.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from camp_model.files import write_text
from stages.errors import InputError, without_password
from stages.tracking.model import log_model
from stages.tracking.spool import SPOOL, Event, pending, start_event, undelivered, writer_alive
from stages.tracking.store import (
    check_artifact_location,
    connect,
    local_uri,
    named_uri,
    open_experiment,
    search_runs,
    store_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_CHARACTERS = 5000
"""Characters of a param or tag; longer ones are cut, and a file of the run holds the full text."""
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "MALFORMED_REQUEST")
"""MLflow's error codes for an invalid event, as opposed to a server that cannot be reached."""
OF_FOLDER = (InputError, PermissionError, LookupError, TypeError, ValueError)
"""Errors raised by a spool folder that is damaged or belongs to another user, not by the store."""


def limit_request_time(seconds: int) -> None:
    """Limit each call to a server to about twice `seconds` (by default MLflow retries for four minutes)."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(seconds)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


class Delivery:
    """Delivers spool folders to the store `uri`, into `experiment` or, if empty, the one that each was started for."""

    def __init__(self, root: Path, uri: str, experiment: str = "") -> None:
        self.client = connect(root, uri)
        self.root, self.experiment = root, experiment
        self._runs: dict[str, str] = {}

    def deliver(self, folder: Path) -> bool:
        """Deliver a spool folder; True if it was removed, False if another process still writes or delivers it.

        Raises:
            InputError: MLflow refuses some events, which stay in the folder.
            Exception: any that MLflow raises if the store cannot be reached.
        """
        refused, delivered = folder / "refused.jsonl", folder / "delivered"
        try:
            with FileLock(folder / "deliverer.lock", timeout=0):
                start = start_event(folder)
                if refused.exists() and not writer_alive(folder):  # another try
                    with (folder / "events.jsonl").open("ab") as events:
                        events.write(refused.read_bytes())
                    refused.unlink()
                if start and self._find(folder.name) is None:  # the run is new there, or was deleted: deliver all of it
                    delivered.unlink(missing_ok=True)
                for offset, event in undelivered(folder):
                    if start is None:
                        raise InputError(f"{folder / 'events.jsonl'}: holds no start of a run")
                    self._send(folder, event)
                    write_text(delivered, str(offset))
                with FileLock(folder / "writer.lock", timeout=0):
                    if next(undelivered(folder), None):  # a resumed run wrote meanwhile
                        return False
                    if start and self.client.get_run(self._runs[folder.name]).info.status == "RUNNING":
                        self.client.set_terminated(self._runs[folder.name], "KILLED")
                    if refused.exists():
                        reason = json.loads(refused.read_text(encoding="utf-8").splitlines()[0])["reason"]
                        raise InputError(f"it refuses a part of the run, which stays in {refused}: {reason}")
                    shutil.rmtree(folder)
        except (Timeout, FileNotFoundError):
            if not (folder / "events.jsonl").exists():  # delivered by another process; the lock created it again
                shutil.rmtree(folder, ignore_errors=True)
            return not folder.exists()
        return True

    def _find(self, key: str) -> str | None:
        """MLflow's id of the run with this key; for `model-<sha256>`, of the last run that trained this model."""
        if key not in self._runs:
            model = key.removeprefix("model-")
            named = f"tags.`camp.run` = '{key}'" if model == key else f"tags.`camp.model` = '{model}'"
            if runs := search_runs(self.client, named):
                check_artifact_location(self.client, self.root, runs[0].info.artifact_uri)
                self._runs[key] = runs[0].info.run_id
        return self._runs.get(key)

    def _send(self, folder: Path, event: Event) -> None:
        """Send one event. If MLflow refuses it for good, set it aside and go on."""
        if event["event"] == "start":
            self._start(folder.name, event)
            return
        run_id, also = self._runs[folder.name], event.get("also")
        try:
            write(self.client, run_id, folder, event)
            if parent := also and self._find(also):
                write(self.client, parent, folder, event)
        except Exception as error:
            if not _refuses(error):
                raise
            values = event.get("values", {})
            if len(values) > 1:
                for name in values:
                    self._send(folder, event | {"values": {name: values[name]}})
                return
            reason = shorten(f"{event['event']} {' '.join(values)}: {error}", 500)
            self.client.set_tag(run_id, "camp.refused", reason)  # raises if the whole run is refused
            with (folder / "refused.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(event | {"reason": reason}) + "\n")

    def _start(self, key: str, event: Event) -> None:
        """Create or continue a run, below its parent, which is delivered first if it is still in the spool."""
        if run_id := self._find(key):
            self.client.update_run(run_id, status="RUNNING")
            return
        tags = {
            "camp.run": key,
            "camp.kind": event["kind"],
            "mlflow.source.name": f"stages.{event['kind']}",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": os.environ.get("USER", "unknown"),
        }
        if parent := event.get("parent"):
            waiting = self.root / SPOOL / parent
            if self._find(parent) is None and waiting.exists():
                with contextlib.suppress(InputError):  # its own delivery reports the problem
                    self.deliver(waiting)
                if self._find(parent) is None:
                    raise InputError(f"its parent, run {parent}, has to be delivered first")
            if run_id := self._find(parent):
                tags["mlflow.parentRunId"] = run_id
        experiment = open_experiment(self.client, self.root, self.experiment or event["experiment"] or "camp")
        check_artifact_location(self.client, self.root, experiment.artifact_location)
        run = self.client.create_run(
            experiment.experiment_id, start_time=event["time"], tags=tags, run_name=event["name"]
        )
        self._runs[key] = run.info.run_id


def _refuses(error: Exception) -> bool:
    """Whether an error is due to the event, not to the connection."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in REFUSED
    return isinstance(error, FileNotFoundError) or not isinstance(error, OSError)  # errors of `requests` are OSErrors


def write(client: "MlflowClient", run_id: str, folder: Path, event: Event) -> None:
    """Log one event of the spool `folder` to a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    kind, values = event["event"], event.get("values", {})
    if kind in ("params", "tags"):
        for name in [name for name in values if len(values[name]) > MAX_CHARACTERS]:
            client.log_text(run_id, values[name], f"{kind}/{name}.txt")
        values = {name: value[:MAX_CHARACTERS] for name, value in values.items()}
    match kind:
        case "metrics":
            client.log_batch(run_id, metrics=[Metric(name, *point) for name in values for point in values[name]])
        case "params":  # MLflow never changes a param; those of a resumed run are in its code/params.yaml
            first = client.get_run(run_id).data.params
            client.log_batch(run_id, params=[Param(name, values[name]) for name in values if name not in first])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(name, values[name]) for name in values])
        case "dataset":  # MLflow keeps 36 characters of a digest; the tag keeps all of it
            entry = Dataset(event["name"], event["digest"][:36], "local", json.dumps({"uri": event["path"]}))
            client.log_inputs(run_id, [DatasetInput(entry, [InputTag("mlflow.data.context", event["name"])])])
            client.set_tag(run_id, f"data.{event['name']}", event["digest"])
        case "artifact":
            # The folder of the copy is logged, not the copy itself: MLflow would not report a missing file.
            client.log_artifacts(run_id, str((folder / event["source"]).resolve(strict=True).parent), event["folder"])
        case "model":
            log_model(client, run_id, folder / event["source"], event)
        case "end":
            client.set_terminated(run_id, event["status"], event["time"])
        case _:
            raise ValueError("is not an event that this version knows")


def sync(root: Path, moved: bool = True) -> tuple[int, list[str]]:
    """Deliver everything in the spool; return the number of runs delivered, and a line for each that was not.

    A run goes to the server and the experiment that it was started for or, if `moved`, to those that the environment
    variables name now, if any.
    """
    named, uri, experiment = named_uri(), "", ""
    if moved:
        uri, experiment = named, os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip()
        limit_request_time(30)
    delivered, problems = 0, []
    unreachable: dict[str, Exception] = {}
    for folder in pending(root):
        goal = uri
        try:
            goal = uri or (start_event(folder) or {}).get("uri") or local_uri(root)
            if goal == without_password(named):  # as recorded, without name and password
                goal = named
            if goal in unreachable:
                raise unreachable[goal]
            if Delivery(root, goal, experiment).deliver(folder):
                delivered += 1
            else:
                problems.append(f"{folder.name}: is still being written or delivered by another process")
        except Exception as error:
            if not folder.exists():  # another process has just delivered it
                continue
            if not isinstance(error, OF_FOLDER):
                unreachable[goal] = error
            problems.append(f"{folder.name}: {without_password(goal)} did not take it: {in_one_line(error)}")
    return delivered, problems


def in_one_line(error: Exception) -> str:
    """An error as one line of bounded length, without the passwords of addresses in it."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return shorten(without_password(text), 1000)


def deliver_during_run(root: Path, key: str) -> int:
    """Deliver one run while it is being written, and what earlier runs left, after it if it is short; return 0 if this
    run is delivered."""
    os.chdir(root)  # relative addresses of stores start here
    limit_request_time(3)
    os.nice(10)  # the run has priority over its delivery
    folder, delivery, pause, others_tried = root / SPOOL / key, None, 1.0, False
    while True:
        alive = writer_alive(folder)
        try:
            delivery = delivery or Delivery(root, store_uri(root))
            if delivery.deliver(folder):
                if not others_tried:
                    sync(root, moved=False)
                return 0
            (folder / "problem").unlink(missing_ok=True)
            pause = 1.0
            if alive and not others_tried:
                others_tried = True
                sync(root, moved=False)
        except Exception as error:
            print(f"{time.strftime('%F %T')} {key}: {in_one_line(error)}", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                (folder / "problem").write_text(in_one_line(error), encoding="utf-8")
            delivery, pause = None, min(pause * 2, 60)
        if not alive:
            return 1  # another process delivers it, or the rest needs `sync`
        resume_at = time.monotonic() + pause
        while time.monotonic() < resume_at and writer_alive(folder):
            time.sleep(0.3)


if __name__ == "__main__":
    raise SystemExit(deliver_during_run(Path(sys.argv[1]), sys.argv[2]))
