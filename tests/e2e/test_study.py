"""The study on the small pipeline: real DVC experiments, their numbers read back, the document that they make."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
STUDY = ("python", "-m", "pipelines.ablation", "--only", "full", "no-gates", "--set", "train.epochs=1", "--jobs", "2")


def trainings(folder: Path, run: Run) -> list[str]:
    """The study's experiments; other tests leave theirs in the folder that this one is copied from."""
    listed = run(folder, "dvc", "exp", "list", "--name-only").stdout.split()
    return [name for name in listed if name.startswith("ablation-")]


@pytest.mark.timeout(600)
def test_a_study_compares_trainings_and_goes_on_where_it_was(pipeline: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "study"
    shutil.copytree(pipeline, folder, symlinks=True)
    environment = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_LOGGING_LEVEL": "WARNING"}
    run(folder, *STUDY, "--seeds", "0", **environment)
    first = trainings(folder, run)
    assert len(first) == 2
    run(folder, *STUDY, "--seeds", "0", "1", "--promote", **environment)
    names = trainings(folder, run)
    assert len(names) == 4 and set(first) < set(names)  # what was there was not trained again

    found = json.loads(run(folder, "dvc", "exp", "show", "--json").stdout)
    listed = [entry["revs"][0] for baseline in found for entry in baseline["experiments"] or []]
    revisions = [entry for entry in listed if entry["name"] in names]
    rsums: dict[str, list[float]] = {"full": [], "no-gates": []}
    for entry in revisions:
        rsum = entry["data"]["metrics"]["metrics/retrieval.json"]["data"]["test"]["rsum"]
        rsums["full" if "full" in entry["name"] else "no-gates"].append(rsum)
    best = max(revisions, key=lambda entry: entry["data"]["metrics"]["metrics/train.json"]["data"]["val_rsum"])

    from mlflow import MlflowClient

    store = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(store, store)
    champion = client.get_model_version_by_alias("camp", "champion")
    assert client.get_run(champion.run_id).data.tags["dvc.experiment"] == best["name"]

    lines = (folder / "docs/study.md").read_text().splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    for label, name in (("full model", "full"), ("without gates", "no-gates")):
        recall = next(line.split(" | ") for line in lines if line.startswith(f"| {label} | "))
        assert recall[1] == f"{np.mean(rsums[name]):.1f} ± {np.std(rsums[name], ddof=1):.1f}"
    difference = next(line.split(" | ")[4] for line in lines if line.startswith("| without gates | "))
    assert difference.startswith(f"{np.mean(rsums['full']) - np.mean(rsums['no-gates']):+.1f} [")
    assert cells["*foils*"][-1].removesuffix(" |").isdigit()
    for picture in ("differences", "gates"):
        assert (folder / f"docs/study-{picture}.svg").read_text().startswith("<?xml")
