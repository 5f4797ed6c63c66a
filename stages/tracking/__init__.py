"""MLflow remembers what came out.

A run writes everything to the spool (stages/tracking/spool.py) and never talks to a server itself; a process beside
it (stages/tracking/delivery.py) carries the spool to MLflow. So a server that is down, slow or frozen costs a stage
only the wait at its end, `WAIT` seconds at most, and what it did not take stays in the spool for
`python -m stages.tracking sync` or the next run.

The store is `mlflow.db` at the root of the main workspace unless MLFLOW_TRACKING_URI names another; the experiment is
`camp` unless MLFLOW_EXPERIMENT_NAME names another. CAMP_TRACKING=off records nothing.

    python -m stages.tracking ui | sync | find COMMIT | restore RUN [--into FOLDER] | promote RUN
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import Timeout

from stages.tracking.machine import output, sample_machine
from stages.tracking.restore import model_hash
from stages.tracking.spool import Spool, experiment_name, pending, writer_alive
from stages.workspace import main_root

WAIT = 18.0
"""Seconds that the end of a run waits for the server at most."""
WAIT_AGAIN = 3.0
"""The same where the server has not taken an earlier run either: training, evaluation and report wait 30 s in all."""
HEADLINE = "best/val_rsum"
"""Validation rsum of the kept model. MLflow's compare page draws the params that differ against the metric that a run
had first, so a train run begins with this one, at 0."""
PARENT = "CAMP_PARENT_RUN"
"""Environment variable: key of the run that a train run is nested under (a sweep)."""


class Run:
    """One run. No method raises for the tracking server's sake, or waits for it.

    `run_id` is the run's own key, known before any server has answered; on the server it is the tag `camp.run`.
    None: nothing is recorded (switched off, a second process of one training, or a disk that cannot be written).
    """

    def __init__(self, spool: Spool | None, key: str, parent: str | None, params: object) -> None:
        self._spool = spool
        self._params = flatten(params)
        self._lock = threading.Lock()
        self.run_id = key if spool else None
        self._parent = parent

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers; the name's part before `/` is its group on MLflow's pages. A child's go to its parent too."""
        numbers = {name: float(value) for name, value in values.items()}
        self._write("metrics", values=numbers, step=int(step or 0), also=self._parent)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Record a copy of a file or folder as it is now. A child's go to its parent too."""
        self._keep("artifact", Path(path), folder=folder, also=self._parent)

    def log_dataset(self, name: str, path: Path | str, digest: str) -> None:
        """Record that the run reads `path`, whose content has the hash `digest`."""
        self._write("dataset", name=name, path=str(path), digest=digest)

    def log_model(self, folder: Path | str, val_rsum: float) -> None:
        """Record a checkpoint folder as an MLflow model and register it; `champion` follows the best val rsum.

        Its code is kept with it as it is now: the delivery may happen after the code has changed. The fingerprints of
        the dataset and the detector in its fingerprint.json become tags of the run.
        """
        self.log_metrics({HEADLINE: val_rsum})
        fingerprint = Path(folder) / "fingerprint.json"
        if fingerprint.is_file():
            facts = json.loads(fingerprint.read_text(encoding="utf-8"))
            self.set_tags({name: facts.get(name) for name in ("dataset", "detector")})
        package = Path(__file__).parents[2]
        code = self._copy(package / "stages" / "tracking" / "served_model.py", package / "camp_model")
        start_end = self._params.get("captions.start_end") == "True"
        self._keep("model", Path(folder), code=code, val_rsum=float(val_rsum), start_end=start_end)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record tags; None is left out."""
        self._write("tags", values={name: str(value) for name, value in tags.items() if value is not None})

    def _keep(self, event: str, path: Path, **values: Any) -> None:
        if (copy := self._copy(path)) is not None:
            self._write(event, source=f"{copy}/{path.name}", **values)

    def _copy(self, *paths: Path) -> str | None:
        if self._spool is None:
            return None
        try:
            with self._lock:
                return self._spool.keep(*paths)
        except OSError as error:
            self._give_up(error)
            return None

    def _write(self, event: str, **values: Any) -> None:
        if self._spool is None:
            return
        try:
            with self._lock:
                self._spool.write(event, **values)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        warnings.warn(f"the run is not recorded further: {error}", stacklevel=3)
        self._spool = None


def flatten(params: object, prefix: str = "") -> dict[str, str]:
    """Nested dataclasses and mappings as dotted names: {"model": {"gate": "none"}} -> {"model.gate": "none"}."""
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        params = dataclasses.asdict(params)
    if not isinstance(params, Mapping):
        return {prefix: str(list(params) if isinstance(params, tuple) else params)}
    flat: dict[str, str] = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


@contextmanager
def track(
    kind: str,
    params: object,
    *,
    run_id: str | None = None,
    parent: str | None = None,
    name: str | None = None,
    tags: Mapping[str, object] | None = None,
) -> Iterator[Run]:
    """Record what the body does as one run.

    Args:
        kind: train, evaluate, report, sweep: the tag `camp.kind`.
        params: mapping or dataclass of params; logged flattened, as `model.gate`.
        run_id: key of a run to go on with, after a resume.
        parent: key of the run that this one is nested under (the train run of an evaluation).
        name: the name in MLflow's table; else the DVC experiment's, else the kind and the time.
        tags: further tags.

    The run is closed as the body ends: FINISHED, FAILED or KILLED. A body whose process dies is closed as KILLED by
    whoever delivers the spool.
    """
    key = run_id or uuid.uuid4().hex
    root = main_root()
    wanted = os.environ.get("CAMP_TRACKING") != "off" and os.environ.get("RANK", "0") == "0"
    spool = _open_spool(root, key) if wanted else None
    run = Run(spool, key, parent, params)
    experiment = os.environ.get("DVC_EXP_NAME")
    run._write(
        "start",
        kind=kind,
        resumed=run_id is not None,
        name=name or (experiment if kind == "train" else None) or f"{kind} {datetime.now():%m-%d %H:%M:%S}",
        parent=parent or os.environ.get(PARENT),
        uri=os.environ.get("MLFLOW_TRACKING_URI", ""),
        experiment=experiment_name(),
    )
    run._write("params", values=run._params)
    stop = threading.Event()
    process = None
    if spool:
        run.set_tags({"dvc.experiment": experiment, **_origin(), **(tags or {})})
        _keep_code(run, parent)
        if kind == "train" and run_id is None:
            run.log_metrics({HEADLINE: 0.0})
        process = _deliver(root, key)
        threading.Thread(target=sample_machine, args=(run._write, stop), daemon=True).start()
    status = "FINISHED"
    try:
        yield run
    except Exception:
        status = "FAILED"
        raise
    except BaseException as error:
        status = "FINISHED" if isinstance(error, SystemExit) and not error.code else "KILLED"
        raise
    finally:
        stop.set()
        run._write("end", status=status)
        run._spool = None
        if spool:
            spool.close()
        if process:
            _wait(process, root, key)


def _open_spool(root: Path, key: str) -> Spool | None:
    try:
        return Spool(root, key)
    except (OSError, Timeout) as error:
        warnings.warn(f"the run is not recorded: {error}", stacklevel=4)
        return None


def _deliver(root: Path, key: str) -> subprocess.Popen[bytes] | None:
    """Start the process that carries the spool to the server; it ends by itself after this one."""
    command = [sys.executable, "-m", "stages.tracking.delivery", str(root), key]
    try:
        path = root / ".tracking" / "delivery.log"
        grown = path.exists() and path.stat().st_size > 1_000_000
        with path.open("wb" if grown else "ab") as log:
            return subprocess.Popen(
                command,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        warnings.warn(f"MLflow gets this run later: {error}", stacklevel=4)
        return None


def _wait(process: subprocess.Popen[bytes], root: Path, key: str) -> None:
    """Wait for the delivery, `WAIT` seconds at most, and say so once where something was not delivered."""
    server = os.environ.get("MLFLOW_TRACKING_URI") or "mlflow.db"
    seconds = WAIT_AGAIN if _left_behind(root, key) else WAIT
    try:
        if process.wait(timeout=seconds) == 0:
            return
        state = f"did not take this run (why: {root / '.tracking' / 'delivery.log'})"
    except subprocess.TimeoutExpired:
        state = f"has not taken all of this run within {seconds:.0f} s"
    print(
        f"warning: MLflow at {server} {state}. Nothing is lost: the next run delivers it, or "
        "`python -m stages.tracking sync`.",
        file=sys.stderr,
    )


def _left_behind(root: Path, key: str) -> bool:
    """Whether the spool still holds an earlier run that has ended."""
    try:
        return any(folder.name != key and not writer_alive(folder) for folder in pending(root))
    except OSError:  # it is being delivered and removed right now
        return False


def _origin() -> dict[str, object]:
    """Where the run comes from: tags that are the same on every path, desk, queue, flow or sweep."""
    commit = (output("git", "rev-parse", "HEAD") or "").strip() or None
    lock = Path("dvc.lock")
    return {
        "git.commit": commit,
        "git.changed": bool(output("git", "status", "--porcelain", "--untracked-files=no")) if commit else None,
        "mlflow.source.git.commit": commit,
        "dvc.lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "prefect.flow_run": os.environ.get("PREFECT__FLOW_RUN_ID"),
    }


def _keep_code(run: Run, parent: str | None) -> None:
    """Keep what `restore` needs beside the commit: uncommitted changes, params.yaml and dvc.lock.

    A child's dvc.lock replaces its parent's: DVC enters the train stage only after the train run has ended.
    """
    for file in ("params.yaml", "dvc.lock"):
        if Path(file).is_file():
            run.log_artifact(file, "code")
    if parent and Path("dvc.lock").is_file():
        model = model_hash(Path("dvc.lock").read_text(encoding="utf-8"))
        run._write("tags", values={"dvc.model": model} if model else {}, also=parent)
    patch = output("git", "diff", "--binary", "HEAD")
    if patch and not parent:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "changes.patch"
            path.write_text(patch, encoding="utf-8")
            run.log_artifact(path, "code")
