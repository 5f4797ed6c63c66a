"""Restores the code, data and model of a run, and finds the runs of a commit."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from camp_model.files import write_text
from stages.errors import InputError
from stages.tracking.machine import NO_OUTPUTS, check_git, command_output
from stages.tracking.store import search_runs, training_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL = "models/camp"
DETECTOR = "metrics/detector.json"
RESULTS = {"metrics": "*.json", "plots": "*.csv", "report": "*.html"}
"""Folder -> pattern of the files in it that say what a model achieved."""


def model_hash(lock: str | bytes) -> str | None:
    """DVC's hash of the trained model, from the content of a dvc.lock; None if it has none."""
    try:
        entries = (yaml.safe_load(lock) or {}).get("stages", {}).values()
        return next(str(out["md5"]) for entry in entries for out in entry.get("outs", []) if out["path"] == MODEL)
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError, StopIteration):
        return None


def weights_hash(root: Path, commit: str) -> str | None:
    """Hex sha256 of the trained weights of a commit, the tag `camp.model` of their run; None if DVC lacks them."""
    from dvc.api import DVCFileSystem

    try:
        with DVCFileSystem(str(root), rev=commit).open(f"{MODEL}/model.safetensors", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def find_run(client: "MlflowClient", name: str) -> "Run":
    """The run with exactly this name, key or MLflow id, or the last that trained the model with this sha256; if there
    is none, the run whose key, id or model's sha256 begins so.

    Raises:
        InputError: there is no such run, or more than one.
    """
    id_ = name.removeprefix("model-")
    keys = ("attributes.run_id", "tags.`camp.run`", "tags.`camp.model`") if re.fullmatch(r"[0-9A-Za-z-]+", id_) else ()
    exact = [f"{key} = '{id_}'" for key in keys]
    if "'" not in name:
        exact.append(f"attributes.run_name = '{name}'")
    # Any short name may be the beginning of another run's id, so beginnings count only where nothing is equal.
    runs = _runs(client, exact) or _runs(client, [f"{key} LIKE '{id_}%'" for key in keys])
    # Equal trainings give equal models; any of the runs can restore it.
    models = {run.data.tags.get("camp.model", "") for run in runs.values()}
    same = len(models) == 1 and next(iter(models)).startswith(id_)
    if not runs or (len(runs) > 1 and not same):
        listed = f" ({', '.join(list(runs)[:5])})" if runs else ""
        expected = "expected the name or MLflow id of a run, a camp.run tag or the sha256 of a model.safetensors"
        raise InputError(f"run {name[:80]}: {len(runs) or 'no'} runs have this name or id{listed}; {expected}")
    return max(runs.values(), key=lambda run: run.info.start_time)


def _runs(client: "MlflowClient", conditions: Iterable[str]) -> dict[str, "Run"]:
    """The runs that meet any of some conditions, by their MLflow id."""
    found = (search_runs(client, f"{condition} and tags.`camp.run` != ''") for condition in conditions)
    return {run.info.run_id: run for runs in found for run in runs}


def _git(root: Path, *arguments: str) -> bytes | None:
    """The output of a git command in a repository, however long it takes; None if it fails."""
    return command_output("git", "-C", str(root), *arguments, timeout=None)


def find_commit(client: "MlflowClient", root: Path, revision: str) -> list["Run"]:
    """The runs of a commit: those that trained the model in its dvc.lock or, if there are none, those started from it.

    A run starts before its result is committed, so the commit with a model usually follows the one that it began at.

    Raises:
        InputError: there is no such commit, or no git.
    """
    check_git()
    commit = _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise InputError(f"{revision}: is not a commit of {root}")
    name = commit.decode().strip()
    trained: list[Run] = []
    if model := model_hash(_git(root, "show", f"{name}:dvc.lock") or b""):
        trained = search_runs(client, f"tags.`dvc.model` = '{model}' and tags.`camp.kind` = 'train'")
        if not trained and (sha256 := weights_hash(root, name)):  # an evaluation records dvc.model: there was none
            trained = search_runs(client, f"tags.`camp.model` = '{sha256}' and tags.`camp.kind` = 'train'")
    return trained or search_runs(client, f"tags.`git.commit` = '{name}'")


def restore(client: "MlflowClient", root: Path, run: "Run", into: Path) -> list[str]:
    """Restore a run's code, params, data and model into the new folder `into`; return lines that say what is there.

    Raises:
        InputError: the folder exists, the run recorded no commit, this repository does not have it, or there is no git.
    """
    check_git()
    commit = run.data.tags.get("git.commit")
    if into.exists():
        raise InputError(f"{into}: exists; expected a folder to be made")
    if commit is None:
        raise InputError(f"run {run.info.run_id}: recorded no commit, it did not run in a git repository")
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise InputError(f"run {run.info.run_id}: its commit {commit} is not in {root}; fetch it first")
    # The same line ends as in this repository, so that files are restored byte for byte.
    ends = [(name, _git(root, "config", name)) for name in ("core.autocrlf", "core.eol")]
    settings = [f"--config={name}={value.decode().strip()}" for name, value in ends if value]
    try:
        # Objects are shared, so that commits on no branch can be checked out too.
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", *settings, str(root), str(into)], check=True)
        subprocess.run(["git", "-C", str(into), "checkout", "-q", "--detach", commit], check=True)
        lines = [f"code at {commit[:12]}", *_restore_files(client, run, into)]
        lines += _restore_outputs(client, run, into, "metrics", "plots", "named")
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    lines += _restore_data(root, into)
    # After DVC, which has the page that dvc.lock names: that of the run before, if this run's was drawn later.
    return [*lines, *_restore_outputs(client, run, into, "report"), _restore_model(client, run, into)]


def _restore_files(client: "MlflowClient", run: "Run", into: Path) -> list[str]:
    """Apply the uncommitted changes, then write params.yaml and dvc.lock as they were."""
    recorded = {file.path for file in client.list_artifacts(run.info.run_id, "code")}
    restored = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("changes.patch", "params.yaml", "dvc.lock"):
            if f"code/{name}" not in recorded:
                continue
            path = Path(client.download_artifacts(run.info.run_id, f"code/{name}", folder))
            if name != "changes.patch":
                shutil.copyfile(path, _inside(into, name))
                restored.append(name)
            elif path.stat().st_size:  # empty once a resumed run's changes were committed
                subprocess.run(["git", "-C", str(into), "apply", "--whitespace=nowarn", str(path)], check=True)
                # The patches of earlier versions hold what DVC had deleted too.
                if _git(into, "status", "--porcelain", "--", ":/", *NO_OUTPUTS):
                    restored.append("its uncommitted changes")
    if "dvc.lock" not in run.data.tags and "dvc.lock" not in restored:
        (into / "dvc.lock").unlink(missing_ok=True)  # the run had none
    return restored


def _restore_outputs(client: "MlflowClient", run: "Run", into: Path, *folders: str) -> list[str]:
    """Write the run's own outputs into folders, in place of those of its commit, and remove results of other runs.

    An evaluation or a report has those of its training, but for its own.
    """
    own: dict[str, tuple[str, str]] = {}
    for owner in (training_of(client, run).info.run_id, run.info.run_id):
        files = [file for part in (None, *folders) for file in client.list_artifacts(owner, part) if not file.is_dir]
        for path in (Path(file.path) for file in files):
            # A training's are in no folder.
            folder = path.parent.name or {".json": "metrics", ".csv": "plots"}.get(path.suffix)
            if folder in folders:
                own[f"{folder}/{path.name}"] = (owner, path.as_posix())
    patterns = {folder: RESULTS[folder] for folder in folders if folder in RESULTS}
    there = [f"{folder}/{path.name}" for folder in patterns for path in _inside(into, folder).glob(patterns[folder])]
    # Earlier versions did not record the detector's; that of the commit and the patch is the run's.
    others = sorted({*there} - {*own} - {DETECTOR})
    for name in {*others, *own}:
        target = _inside(into, name)
        target.unlink(missing_ok=True)  # not written over: it may be a link into DVC's cache
        if name in own:
            target.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory() as download:
                shutil.copyfile(client.download_artifacts(*own[name], download), target)
    lines = [
        f"its {folder}" for folder in patterns if any(Path(name).match(f"{folder}/*") for name in {*own} - {DETECTOR})
    ]
    return [*lines, f"no {', '.join(others)} of its own"] if others else lines


def _inside(into: Path, name: str) -> Path:
    """The path for a file of the run; InputError if the code has a link there, which could lead anywhere."""
    path = into
    for part in Path(name).parts:
        path /= part
        if path.is_symlink():
            raise InputError(f"{path}: is a link to {path.readlink()} in the run's code; expected a file or a folder")
    return path


def _restore_data(root: Path, into: Path) -> list[str]:
    """Get the data from DVC's cache or else from its remote.

    DVC's own exit status would count outputs of dvc.yaml that did not exist yet when the run's dvc.lock was written.
    """

    def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    def missing() -> list[str]:
        """Outputs that are recorded and are missing or different."""
        status = json.loads(dvc(into, "data", "status", "--json").stdout)
        changed = [path for paths in status.get("uncommitted", {}).values() for path in paths]
        return sorted({*status.get("not_in_cache", []), *changed})

    if not ((into / "dvc.lock").is_file() and (into / ".dvc").is_dir()):
        return []
    # Written here, because DVC itself writes only ASCII; three quotes allow single ones in the path.
    cache = (root / dvc(root, "cache", "dir").stdout.strip()).resolve()
    write_text(_inside(into, ".dvc/config.local"), f"[cache]\n    dir = '''{cache}'''\n")
    done = dvc(into, "checkout", "--quiet")
    try:
        if missing() and dvc(into, "remote", "list").stdout.strip():
            done = dvc(into, "pull", "--quiet")
        gone = missing()
    except ValueError:  # DVC cannot read this pipeline; it prints why
        return [f"no data ({done.stderr.strip()})"]
    return [f"data but for {', '.join(gone)}, which DVC does not have any more" if gone else "data"]


def _restore_model(client: "MlflowClient", run: "Run", into: Path) -> str:
    """Get the model from the run itself if DVC does not have it.

    Without an evaluation, the dvc.lock of a training is that of its beginning, with the model of an earlier one. That
    of a sweep, which trains nothing itself, always is.
    """
    tags, lock = run.data.tags, into / "dvc.lock"
    if (
        tags["camp.kind"] in ("train", "sweep")
        and lock.is_file()
        and model_hash(lock.read_bytes()) != tags.get("dvc.model")
    ):
        shutil.rmtree(into / MODEL, ignore_errors=True)
    if not (into / MODEL).exists() and (versions := client.search_model_versions(f"run_id = '{run.info.run_id}'")):
        from mlflow.artifacts import download_artifacts

        # Not models:/name/version, for which MLflow would also open, or create, the store of the current folder.
        source = client.get_model_version_download_uri(versions[0].name, versions[0].version)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(download_artifacts(source, dst_path=folder, tracking_uri=client.tracking_uri))
            shutil.copytree(next(local.rglob("model.safetensors")).parent, _inside(into, MODEL))
    if (into / MODEL).exists():
        return f"the model in {MODEL}"
    none = "a sweep has none of its own, its runs have" if tags["camp.kind"] == "sweep" else "the run has logged none"
    return f"no model: {none}"
