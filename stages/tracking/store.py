"""From a spool folder to an MLflow store.

Delivering twice changes nothing, so a delivery may die at any point: a run is found by its tag `camp.run`, and equal
params, metric points, tags and files are the same ones.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from stages.tracking.model import log_model
from stages.tracking.spool import (
    SPOOL,
    delivered_bytes,
    last_event,
    read_events,
    set_delivered,
    started,
    whole,
    writer_alive,
)
from stages.tracking.view import KEY, TAG, view

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

ABOUT = {
    TAG: view(),
    "mlflow.experimentKind": "custom_model_development",  # its pages are those of trainings, not of chats
    "mlflow.note.content": (
        "CAMP text-image retrieval. A row is a training; its evaluation and report are nested under it, and their "
        "numbers are on it too.\n\n"
        "Metrics: `best/val_rsum` of the kept model, `val/...` by epoch, `test/...` once, `train/...` by step, "
        "`system/...` of the machine. Recalls are percentages, `medr` and `meanr` are ranks, `rsum` is the sum of the "
        "six recalls.\n\n"
        f"Open the table of runs with `?viewStateShareKey={KEY}` at the end of its address for the columns and charts "
        "that matter. `tags.camp.kind = 'train'` hides the nested runs."
    ),
}
"""Tags of the experiment when it is created."""
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "MALFORMED_REQUEST")
"""Answers that say the event itself is wrong: it would be refused for ever, so it is dropped with a line in the log."""


def store_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file at the repository root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def connect(root: Path, uri: str) -> "MlflowClient":
    """A client of the store, which `mlflow` is set to, too.

    MLflow makes the tables of a new SQLite file step by step: two processes at it, or one that is killed, would leave a
    file that no one can use any more. So one process makes it, and gives it its name once it is whole.
    """
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if not uri.startswith("sqlite:///"):
        return mlflow.MlflowClient(uri, uri)
    path = Path(uri.removeprefix("sqlite:///"))
    (root / ".tracking").mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".tracking" / "store.lock", timeout=120):
        if not path.exists():
            new = path.with_name(f"{path.name}.new")
            new.unlink(missing_ok=True)
            mlflow.MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
            new.replace(path)
        return mlflow.MlflowClient(uri, uri)


class Delivery:
    """Carries spool folders to one store."""

    def __init__(self, root: Path, uri: str) -> None:
        self.client = connect(root, uri)
        self.root = root
        self.uri = uri
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}

    def experiment_id(self, name: str) -> str:
        """The id of the experiment `name`, created where there is none."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                # A server knows where its artifacts go; beside the local file they are ours to place.
                place = None if "://" in self.uri and not self.uri.startswith("sqlite:") else self._artifact_root()
                try:
                    self._experiments[name] = self.client.create_experiment(name, artifact_location=place, tags=ABOUT)
                except Exception:
                    found = self.client.get_experiment_by_name(name)  # another delivery was faster
                    if found is None:
                        raise
            if found is not None:
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def show(self, name: str) -> str:
        """The id of the experiment `name`, with the view that this version of the project has of it."""
        found = self.experiment_id(name)
        self.client.set_experiment_tag(found, TAG, ABOUT[TAG])
        return found

    def _artifact_root(self) -> str:
        return (self.root / "mlartifacts").as_uri()

    def find(self, key: str, experiment: str) -> str | None:
        """MLflow's id of the run with this key."""
        if key not in self._runs:
            runs = self.client.search_runs(
                [self.experiment_id(experiment)], filter_string=f"tags.`camp.run` = '{key}'", max_results=1
            )
            if not runs:
                return None
            self._runs[key] = runs[0].info.run_id
        return self._runs[key]

    def deliver(self, folder: Path) -> bool:
        """Deliver what is in one spool folder; True once nothing more can come and the folder is removed.

        Raises:
            Exception: whatever MLflow raises where the store cannot be reached.
        """
        try:
            with FileLock(folder / "deliverer.lock", timeout=0):
                alive = writer_alive(folder)  # asked before reading: what a dead writer wrote is all there
                start = started(folder)
                while start and not whole(folder) and self._next_events(folder, start):
                    pass
                if alive or not whole(folder):
                    return False
                if start and last_event(folder) != "end":  # its process was killed
                    self._send(folder, start, {"event": "end", "status": "KILLED", "time": int(time.time() * 1000)})
            shutil.rmtree(folder)
        except (Timeout, FileNotFoundError):
            return not folder.exists()  # another process delivers it
        return True

    def _next_events(self, folder: Path, start: dict[str, Any]) -> bool:
        """Deliver the next event, or the next thousand points of metrics in one call; False where there is none."""
        batch: dict[str, Any] = {}
        for after, event in read_events(folder, delivered_bytes(folder)):
            if event is not None and event["event"] == "metrics" and event["also"] == batch.get("also", event["also"]):
                batch = batch or {"event": "metrics", "points": [], "also": event["also"]}
                batch["points"] += [(name, v, event["time"], event["step"]) for name, v in event["values"].items()]
                offset = after
                if len(batch["points"]) < 900:
                    continue
            elif not batch:
                if event is not None:
                    self._send(folder, start, event)
                set_delivered(folder, after)
                return True
            break
        if not batch:
            return False
        self._send(folder, start, batch)
        set_delivered(folder, offset)
        return True

    def _send(self, folder: Path, start: dict[str, Any], event: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if event["event"] == "start":
                self._start(folder.name, event)
                return
            run_id = self.find(folder.name, start["experiment"])
            if run_id is None:  # the store was emptied meanwhile: the run is begun anew
                run_id = self._start(folder.name, start)
            getattr(self, f"_{event['event']}")(run_id, folder, event)
            if also := event.get("also"):
                parent = self.find(also, start["experiment"])
                if parent is not None:
                    getattr(self, f"_{event['event']}")(parent, folder, event)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            print(f"{folder.name}: {event['event']} was refused and is left out: {error}", file=sys.stderr)

    def _start(self, key: str, event: dict[str, Any]) -> str:
        run_id = self.find(key, event["experiment"])
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {
            "camp.run": key,
            "camp.kind": event["kind"],
            "mlflow.source.name": f"stages.{event['kind']}",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": os.environ.get("USER", "unknown"),
        }
        if event.get("parent"):
            tags["camp.parent"] = event["parent"]
            self._parent_first(event["parent"])
            parent = self.find(event["parent"], event["experiment"])
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(
            self.experiment_id(event["experiment"]), start_time=event["time"], tags=tags, run_name=event["name"]
        )
        self._runs[key] = run.info.run_id
        return str(run.info.run_id)

    def _parent_first(self, key: str) -> None:
        """A parent that is still in the spool goes before its child."""
        folder = self.root / SPOOL / key
        if folder.is_dir():
            self.deliver(folder)

    def _params(self, run_id: str, folder: Path, event: dict[str, Any]) -> None:
        from mlflow.entities import Param

        items = [Param(name, value) for name, value in event["values"].items()]
        for first in range(0, len(items), 100):
            self.client.log_batch(run_id, params=items[first : first + 100])

    def _metrics(self, run_id: str, folder: Path, event: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        points = [Metric(name, value, time, step) for name, value, time, step in event["points"]]
        for first in range(0, len(points), 1000):
            self.client.log_batch(run_id, metrics=points[first : first + 1000])

    def _tags(self, run_id: str, folder: Path, event: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in event["values"].items()])

    def _dataset(self, run_id: str, folder: Path, event: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow keeps 36 characters of a digest; the tag keeps all of it.
        entry = Dataset(
            name=event["name"],
            digest=event["digest"][:36],
            source_type="local",
            source=json.dumps({"uri": event["path"]}),
        )
        self.client.log_inputs(run_id, [DatasetInput(entry, [InputTag("mlflow.data.context", event["name"])])])
        self._tags(run_id, folder, {"values": {f"data.{event['name']}": event["digest"]}})

    def _artifact(self, run_id: str, folder: Path, event: dict[str, Any]) -> None:
        source = folder / event["source"]
        if source.is_dir():
            place = "/".join(part for part in (event.get("folder"), source.name) if part)
            self.client.log_artifacts(run_id, str(source), place)
        else:
            self.client.log_artifact(run_id, str(source), event.get("folder"))

    def _model(self, run_id: str, folder: Path, event: dict[str, Any]) -> None:
        log_model(self.client, run_id, folder / event["source"], folder / event["code"], event)

    def _end(self, run_id: str, folder: Path, event: dict[str, Any]) -> None:
        self.client.set_terminated(run_id, event["status"], event["time"])
