"""Records runs in MLflow.

A run writes everything to the spool (stages/tracking/spool.py) and never talks to a server itself; a second process
(stages/tracking/delivery.py) delivers the spool to MLflow. So a server that is down, slow or frozen costs a stage only
the wait at its end, and what was not delivered stays in the spool for `python -m stages.tracking sync` or the next run.
docs/tracking.md says where runs go and what they hold.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic_core import to_jsonable_python

from camp_model.files import sha256_of, write_text
from stages.contracts import read_fingerprint
from stages.errors import without_password
from stages.params.captions import CaptionsParams
from stages.params.document import leaves
from stages.tracking.machine import command_output, sample_machine, uncommitted_changes
from stages.tracking.restore import model_hash
from stages.tracking.spool import SPOOL, Spool, pending, writer_alive
from stages.tracking.store import experiment_name, named_uri
from stages.workspace import main_root

WAIT = 18.0
"""Longest time in seconds that the end of a run waits for the server."""
WAIT_AGAIN = 3.0
"""The same if the server did not take an earlier run either: training, evaluation and report wait 30 s together."""
HEADLINE = "best/val_rsum"
"""Validation rsum of the kept model. MLflow's compare page plots the params that differ against the metric that a run
logged first, so a train run begins by logging this one as 0."""
TRAINED = Path(".tracking") / "trained"
"""Folder below the repository root: files named by the sha256 of a model.safetensors hold the key of its run."""
PARENT = "CAMP_PARENT_RUN"
"""Environment variable: key of the run that a train run is nested under (a sweep)."""


class Run:
    """One run. No method waits for the tracking server or raises because of it.

    `run_id` is the run's own key, known before any server has answered; on the server it is the tag `camp.run`.
    None: nothing is recorded (switched off, not the first process of a training, or a disk that cannot be written).
    """

    run_id: str | None = None

    def __init__(self, parent: str | None, params: object, shared: bool) -> None:
        self._parent, self._params = parent, flatten(params)
        self._also = parent if shared else None
        self._spool: Spool | None = None
        self._lock = threading.Lock()

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics; the part of a name before `/` is its group on MLflow's pages.

        A shared child's metrics go to its parent too, except those of val, which a training logs itself by epoch.
        """
        numbers = {name: float(value) for name, value in values.items()}
        of_val = {name: value for name, value in numbers.items() if name.startswith("val/")}
        others = {name: value for name, value in numbers.items() if name not in of_val}
        for some, also in ((of_val, None), (others, self._also)):
            if some:
                self._write("metrics", values=some, step=step, also=also)

    def log_artifact(self, path: Path | str, folder: str | None = None, shared: bool = True) -> None:
        """Record a copy of a file or folder as it is now; a shared child's go to its parent too."""
        self._write("artifact", Path(path), folder=folder, also=self._also if shared else None)

    def log_dataset(self, name: str, path: Path, digest: str) -> None:
        """Record that the run reads `path`, whose content has the hash `digest`."""
        self._write("dataset", name=name, path=str(path), digest=digest)

    def log_model(self, folder: Path, val_rsum: float) -> None:
        """Record a checkpoint folder as an MLflow model and register it; `champion` follows the best val rsum.

        The model's code is copied now, because it may have changed by the time of delivery. The hash of the val split
        and the detector's fingerprint from fingerprint.json, and the hash of the weights, become tags.
        """
        if self._spool is None:
            return
        self.log_metrics({HEADLINE: val_rsum})
        facts, sha256 = read_fingerprint(folder), sha256_of(folder / "model.safetensors")
        self.set_tags({name: facts.get(name) for name in ("dataset", "detector")} | {"camp.model": sha256})
        try:
            write_text(main_root() / TRAINED / sha256, str(self.run_id))
        except OSError as error:
            warnings.warn(f"evaluations of this model will not be nested under this run: {error}", stacklevel=2)
        code = (Path(__file__).with_name("served_model.py"), Path(__file__).parents[2] / "camp_model")
        # For a model that does not say it; params.yaml may leave out a key that has its default.
        stated = self._params.get("captions.max_words", CaptionsParams().max_words)
        max_words = int(facts.get("max_words") or stated)
        start_end = bool(facts.get("start_end"))
        self._write("model", folder, *code, val_rsum=float(val_rsum), start_end=start_end, max_words=max_words)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record tags, except those that are None."""
        self._write("tags", values={name: str(value) for name, value in tags.items() if value is not None})

    def _write(self, event: str, *sources: Path, **values: Any) -> None:
        """Append an event with copies of `sources`. If the spool cannot be written, only recording ends."""
        with self._lock:
            if self._spool is None:
                return
            try:
                self._spool.write(event, *sources, **values)
            except OSError as error:
                warnings.warn(f"the run is not recorded further: {error}", stacklevel=3)
                self._spool = None


def training_run_of(checkpoint: Path) -> str | None:
    """The run that trained a checkpoint, in the form that `track` accepts as parent: its key or, if this repository
    does not know the run, `model-<sha256>` of the weights; None if there are no weights."""
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        return None
    sha256 = sha256_of(weights)
    known = main_root() / TRAINED / sha256
    return known.read_text(encoding="utf-8") if known.is_file() else f"model-{sha256}"


def flatten(params: object) -> dict[str, str]:
    """Flatten nested sections and mappings: {"model": {"gate": "none"}} -> {"model.gate": "none"}."""
    return {name: str(value) for name, value in leaves(to_jsonable_python(params))}


@contextmanager
def track(
    kind: str,
    params: object,
    *,
    run_id: str | None = None,
    parent: str | None = None,
    shared: bool = True,
    name: str | None = None,
    tags: Mapping[str, object] | None = None,
) -> Iterator[Run]:
    """Record the body as one run.

    Args:
        kind: train, evaluate, report, sweep: the tag `camp.kind`.
        params: sections or a mapping of them; logged flattened, as `model.gate`.
        run_id: key of a run to continue, after a resume.
        parent: key of the run that this one is nested under (for an evaluation, its train run); see `training_run_of`.
        shared: whether metrics and files are copied to the parent; False if the run measured something else.
        name: the name in MLflow's table; by default that of the DVC experiment, or else the kind and the time.
        tags: further tags.

    The run is closed when the body ends: FINISHED, FAILED or KILLED. If the process dies, the process that delivers the
    spool closes the run as KILLED.
    """
    key, root = run_id or uuid.uuid4().hex, main_root()
    run, stop, spool, process = Run(parent, params, shared), threading.Event(), None, None
    if os.environ.get("CAMP_TRACKING") != "off" and os.environ.get("RANK", "0") == "0":
        try:
            run._spool = spool = Spool(root, key)
            run.run_id = key
            _begin(run, spool, kind, name, tags or {}, run_id is not None)
        except (OSError, Timeout) as error:
            warnings.warn(f"the run is not{' completely' if spool else ''} recorded: {error}", stacklevel=3)
    if spool:
        process = _deliver(root, key)
        threading.Thread(target=sample_machine, args=(run._write, stop), daemon=True).start()
    status = "FINISHED"
    try:
        yield run
    except Exception as error:  # the reader of its output, the flow or worker that started it, is gone
        status = "KILLED" if isinstance(error, BrokenPipeError) else "FAILED"
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
        if process and status != "KILLED":  # a cancelled run does not wait; the delivery continues on its own
            _wait(process, root, key)


def _begin(run: Run, spool: Spool, kind: str, name: str | None, tags: Mapping[str, object], resumed: bool) -> None:
    """Record where a run comes from, however it was started (shell, queue, flow or sweep), and what `restore` needs."""
    experiment = os.environ.get("DVC_EXP_NAME")
    run._write(
        "start",
        kind=kind,
        name=name or (experiment if kind == "train" else None) or f"{kind} {datetime.now():%m-%d %H:%M:%S}",
        parent=run._parent or os.environ.get(PARENT),
        uri=without_password(named_uri()),
        experiment=experiment_name(),
    )
    run._write("params", values=run._params)
    commit, patch = _commit_and_changes()
    lock = Path("dvc.lock")
    origin = {
        "dvc.experiment": experiment,
        "git.commit": commit,
        "git.changed": bool(patch) if commit else None,
        "mlflow.source.git.commit": commit,
        "dvc.lock": sha256_of(lock) if lock.is_file() else None,
        "prefect.flow_run": os.environ.get("PREFECT__FLOW_RUN_ID"),
    }
    run.set_tags(origin | dict(tags))
    for file in filter(Path.is_file, (Path("params.yaml"), lock)):
        # Not to the parent's: params.yaml may be that of the next experiment by now.
        run.log_artifact(file, "code", shared=file == lock)
    # Outputs that git may track, of stages that record no run: dvc.lock has their hashes, the patch leaves them out.
    for output, folder in ((Path("metrics/detector.json"), "metrics"), (Path("named"), None)):
        if output.exists():
            run.log_artifact(output, folder)
    if run._parent and lock.is_file():  # DVC enters the stage only after the train run has ended
        model = model_hash(lock.read_bytes())
        run._write("tags", values={"dvc.model": model} if model else {}, also=run._parent)
    # A resumed run may hold changes of its beginning that are committed by now: an empty patch replaces them.
    if patch is not None and (patch or resumed) and not run._parent:
        (spool.folder / "changes.patch").write_bytes(patch)
        run.log_artifact(spool.folder / "changes.patch", "code")
    if kind == "train" and not resumed:
        run.log_metrics({HEADLINE: 0.0}, step=-1)  # the model's page in MLflow shows all metrics of step 0


def _commit_and_changes() -> tuple[str | None, bytes | None]:
    """The commit that is checked out, if any, and the differences from it; a warning says what git cannot tell."""
    commit = (command_output("git", "rev-parse", "HEAD") or b"").decode().strip() or None
    here = Path.cwd()
    if commit is None:
        is_repository = any((folder / ".git").exists() for folder in (here, *here.parents))
        if is_repository and command_output("git", "rev-parse", "--git-dir") is None:
            warnings.warn(
                "git does not answer here (`git status` says why): the run holds no commit, and `restore` will not "
                "find its code; another person's clone needs git's safe.directory", stacklevel=5,
            )  # fmt: skip
        return None, None
    patch = uncommitted_changes()
    if patch is None:
        warnings.warn("git diff failed: `restore` will not have the uncommitted changes of this run", stacklevel=5)
    return commit, patch


def _deliver(root: Path, key: str) -> subprocess.Popen[bytes] | None:
    """Start the process that delivers the spool; it ends on its own after this process has ended."""
    command = [sys.executable, "-m", "stages.tracking.delivery", str(root), key]
    path = root / ".tracking" / "delivery.log"
    try:
        grown = path.exists() and path.stat().st_size > 1_000_000
        with path.open("wb" if grown else "ab") as log:
            return subprocess.Popen(
                command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        warnings.warn(f"this run will be delivered to MLflow later: {error}", stacklevel=4)
        return None


def _wait(process: subprocess.Popen[bytes], root: Path, key: str) -> None:
    """Wait up to `WAIT` seconds for the delivery, and print once what of the run was not delivered, and why."""
    others = [folder for folder in pending(root) if folder.name != key and not (folder / "refused.jsonl").exists()]
    until = time.monotonic() + (WAIT if all(map(writer_alive, others)) else WAIT_AGAIN)
    events = root / SPOOL / key / "events.jsonl"
    while events.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    if not events.exists():  # the process may go on with what earlier runs left
        return
    reason = f"has not received all of this run yet (details: {root / '.tracking' / 'delivery.log'})"
    with contextlib.suppress(OSError):
        reason = f"did not accept this run: {(root / SPOOL / key / 'problem').read_text(encoding='utf-8').rstrip('.')}"
    server = without_password(named_uri() or "mlflow.db")
    after = "Nothing is lost: the next run delivers it, or `python -m stages.tracking sync`."
    if (refused := root / SPOOL / key / "refused.jsonl").exists():
        after = f"It has the rest; the refused events and the reasons are in {refused}."
    print(f"warning: MLflow at {server} {reason}. {after}", file=sys.stderr)
