"""The MLflow store that runs go to: its address, a client of it, the experiment, and the runs in it."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from stages.errors import InputError, without_password
from stages.garbage import garbage_collection_paused
from stages.tracking.view import TAG, view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

ARTIFACTS = "mlartifacts"
"""Folder of a workspace with the artifacts of a local store's runs."""
TRAININGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tag that makes MLflow show an experiment's pages for trainings, not for chats."""


def experiment_name() -> str:
    """The MLflow experiment that runs belong to."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or "camp"


def local_uri(root: Path) -> str:
    """The SQLite file at the repository root."""
    return _uri(root / "mlflow.db")


def _uri(file: Path) -> str:
    """The address of a SQLite file for SQLAlchemy, which accepts a question mark only in a path that is a URI.

    Its slashes are quoted too: MLflow, which takes a URI for a path, would make its folders in the current one.
    """
    return f"sqlite:///file:{quote(str(file), safe='')}?uri=true" if "?" in str(file) else f"sqlite:///{file}"


def _file(uri: str) -> Path:
    """The SQLite file of an address."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database or ""
    return Path(unquote(database.removeprefix("file:")) if database.startswith("file:") else database)


def named_uri() -> str:
    """MLFLOW_TRACKING_URI; empty if it names no store."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip()


def store_uri(root: Path) -> str:
    """The store that the environment names, else the local one."""
    return named_uri() or local_uri(root)


@garbage_collection_paused()
def connect(root: Path, uri: str) -> "MlflowClient":
    """A client of the store, which is created if it is a SQLite file that does not exist.

    MLflow creates the tables of a new SQLite file step by step: two processes at once, or one that is killed, would
    leave a broken file. So one process creates it under another name, and renames it when it is complete.
    """
    try:
        Path.home()
    except RuntimeError:  # a user without a home, as in a container: MLflow would not start
        os.environ["HOME"] = str(root / ".tracking")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # its message may hold the password of the address
    import mlflow

    if uri.startswith("sqlite:///"):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        path = _file(uri)
        (root / ".tracking").mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".tracking" / "store.lock", timeout=120):
            if not path.exists():
                new = path.with_name(f"{path.name}.new")
                new.unlink(missing_ok=True)
                # The folder of MLflow's default experiment, by default the current one. MLflow writes it into SQL like
                # a Python string, which breaks with a quote, a colon or a backslash in the path.
                SqlAlchemyStore(_uri(new), _artifacts(root))  # type: ignore[no-untyped-call]
                new.replace(path)
    return mlflow.MlflowClient(uri, uri)


def _artifacts(root: Path) -> str:
    """Address of the folder with the artifacts of a local store's runs."""
    return (root / ARTIFACTS).as_uri()


def open_experiment(client: "MlflowClient", root: Path, name: str) -> "Experiment":
    """The experiment `name`, which is created if it does not exist.

    Raises:
        InputError: the experiment is deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server decides where artifacts go; with a local file, this project does.
        location = None if _is_remote(client) else _artifacts(root)
        created = client.create_experiment(name, artifact_location=location, tags=TRAININGS)
        set_view(client, created)
        return client.get_experiment(created)
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"the experiment {name!r} is deleted there: "
            f"`MLFLOW_TRACKING_URI={without_password(client.tracking_uri)} mlflow experiments "
            f"restore -x {experiment.experiment_id}` brings it back, or name another one in MLFLOW_EXPERIMENT_NAME"
        )
    return experiment


def _is_remote(client: "MlflowClient") -> bool:
    return "://" in client.tracking_uri and not client.tracking_uri.startswith("sqlite:")


def check_artifact_location(client: "MlflowClient", root: Path, location: str) -> None:
    """Check that artifacts can be written to `location`, that of an experiment or a run.

    Raises:
        InputError: it is below the folder that this workspace was moved from, which MLflow would create again.
    """
    where = urlsplit(location)
    path = Path(url2pathname(where.path))
    old = next((folder.parent for folder in (path, *path.parents) if folder.name == ARTIFACTS), None)
    if where.scheme == "file" and old and not old.exists() and not _is_remote(client):
        parent, link, here = (shlex.quote(str(folder)) for folder in (old.parent, old, root))
        raise InputError(
            f"{_file(client.tracking_uri)}: the files of its runs belong in {old}, which was moved or removed; "
            f"`mkdir -p {parent} && ln -sfn {here} {link}` leads there, or move it back"
        )


def set_view(client: "MlflowClient", experiment: str) -> None:
    """Set the view that MLflow's pages show of an experiment, if MLflow accepts it."""
    try:
        client.set_experiment_tag(experiment, TAG, view())
    except Exception as error:  # the tag's format is internal to MLflow: deliveries must not depend on it
        print(f"experiment {experiment} has no view: {error}", file=sys.stderr)


def training_of(client: "MlflowClient", run: "Run") -> "Run":
    """The training that an evaluation or a report is nested under; of another run, or without one, the run itself."""
    if run.data.tags["camp.kind"] not in ("evaluate", "report"):
        return run
    parent = run.data.tags.get("mlflow.parentRunId", "")
    return next(iter(search_runs(client, f"attributes.run_id = '{parent}'")), run)


def search_runs(client: "MlflowClient", condition: str) -> list["Run"]:
    """The runs of all experiments that match an MLflow filter, latest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=50_000)]
    return list(client.search_runs(experiments, condition, max_results=50_000))
