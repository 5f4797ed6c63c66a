"""From a run back to its code, data and model, and from a commit to its runs."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stages.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL = "models/camp"


def model_hash(lock: str) -> str | None:
    """The hash under which DVC knows the trained model, from the text of a dvc.lock."""
    entries = (yaml.safe_load(lock) or {}).get("stages", {}).values()
    outs = [out for entry in entries for out in entry.get("outs", [])]
    return next((out.get("md5") for out in outs if out["path"] == MODEL), None)


def find_run(client: "MlflowClient", name: str) -> "Run":
    """The run with this key or MLflow id, or the beginning of one.

    Raises:
        InputError: there is none, or more than one.
    """
    found = [
        run
        for run in _all_runs(client)
        if run.info.run_id.startswith(name) or run.data.tags.get("camp.run", "").startswith(name)
    ]
    if len(found) != 1:
        raise InputError(
            f"run {name}: {len(found) or 'no'} runs have this id; expected an MLflow run id or a camp.run tag"
        )
    return found[0]


def find_commit(client: "MlflowClient", root: Path, revision: str) -> list["Run"]:
    """The runs of a commit: those that trained the model in its dvc.lock; else those started from it.

    A run starts before its result is committed, so the commit that holds a model usually follows the one it began at.

    Raises:
        InputError: no such commit.
    """
    commit = _git(root, "rev-parse", "--verify", f"{revision}^{{commit}}")
    if commit is None:
        raise InputError(f"{revision}: is no commit of {root}")
    lock = _git(root, "show", f"{commit.strip()}:dvc.lock")
    wanted = model_hash(lock) if lock else None
    runs = _all_runs(client)
    trained = [
        run
        for run in runs
        if wanted and run.data.tags.get("dvc.model") == wanted and run.data.tags.get("camp.kind") == "train"
    ]
    return trained or [run for run in runs if run.data.tags.get("git.commit") == commit.strip()]


def _all_runs(client: "MlflowClient") -> list["Run"]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(experiments, filter_string="tags.`camp.run` != ''", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def restore(client: "MlflowClient", root: Path, run: "Run", into: Path) -> list[str]:
    """Put a run's code, params, data and model into the new folder `into`; lines that say what is there.

    Raises:
        InputError: the folder exists, the run recorded no commit, or this repository does not have it.
    """
    if into.exists():
        raise InputError(f"{into}: exists; expected a folder to be made")
    commit = run.data.tags.get("git.commit")
    if commit is None:
        raise InputError(f"run {run.info.run_id}: recorded no commit, it did not run in a git repository")
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise InputError(f"run {run.info.run_id}: its commit {commit} is not in {root}; fetch it first")
    try:
        # Shared objects: commits that no branch holds can be checked out too.
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", str(root), str(into)], check=True)
        subprocess.run(["git", "-C", str(into), "checkout", "-q", "--detach", commit], check=True)
        said = [f"code at {commit[:12]}", *_restore_files(client, run, into)]
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return said + _restore_data(client, run, root, into)


def _restore_files(client: "MlflowClient", run: "Run", into: Path) -> list[str]:
    """Uncommitted changes, params.yaml and dvc.lock as they were."""
    names = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "code")}
    said = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("changes.patch", "params.yaml", "dvc.lock"):
            if name not in names:
                continue
            file = client.download_artifacts(run.info.run_id, f"code/{name}", folder)
            if name == "changes.patch":
                subprocess.run(["git", "-C", str(into), "apply", str(file)], check=True)
                said.append("its uncommitted changes")
            else:
                shutil.copyfile(file, into / name)
                said.append(name)
    return said


def _restore_data(client: "MlflowClient", run: "Run", root: Path, into: Path) -> list[str]:
    """Data from DVC's cache or remote, the model from there or from the run itself."""
    dvc = [sys.executable, "-m", "dvc"]
    said = []
    if (into / "dvc.lock").is_file() and (into / ".dvc").is_dir():
        cache = subprocess.run([*dvc, "cache", "dir"], cwd=root, capture_output=True, text=True, check=True)
        place = (root / cache.stdout.strip()).resolve()
        subprocess.run([*dvc, "cache", "dir", "--local", str(place)], cwd=into, check=True, capture_output=True)
        done = subprocess.run([*dvc, "checkout", "--quiet"], cwd=into, check=False, capture_output=True, text=True)
        remotes = subprocess.run([*dvc, "remote", "list"], cwd=into, check=False, capture_output=True, text=True)
        if done.returncode and remotes.stdout.strip():
            done = subprocess.run([*dvc, "pull", "--quiet"], cwd=into, check=False, capture_output=True, text=True)
        said.append("data" if done.returncode == 0 else f"what of the data is still there ({done.stderr.strip()})")
    if not (into / MODEL).exists():
        versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
        if versions:
            import mlflow

            (into / MODEL).parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                source = f"models:/{versions[0].name}/{versions[0].version}"
                local = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder))
                shutil.copytree(next(local.glob("artifacts/*")), into / MODEL)
    said.append(f"the model in {MODEL}" if (into / MODEL).exists() else "no model: the run has logged none")
    return said
