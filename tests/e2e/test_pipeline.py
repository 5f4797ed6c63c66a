"""The real pipeline on a small copy: what it leaves behind, that it stops when up to date, and its experiments."""

import ast
import contextlib
import hashlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.chaos.workspace import Workspace
from tests.e2e.conftest import SECRET, deliver_all

Run = Callable[..., subprocess.CompletedProcess[str]]
STUDY = ("python", "-m", "pipelines.ablation", "--only", "full", "no-gates", "--set", "train.epochs=1", "--jobs", "2")


def test_every_stage_leaves_what_the_next_ones_and_people_read(pipeline: Path) -> None:
    images = pq.read_table(pipeline / "data/dataset/images.parquet").to_pandas()
    assert images.groupby("split").size().to_dict() == {"train": 48, "val": 12, "test": 16}
    for row in images.itertuples():
        content = (pipeline / "data/dataset/images" / row.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.sha256
    manifest = pq.read_table(pipeline / "data/regions/manifest.parquet").to_pandas()
    assert set(manifest.image_id) == set(images.image_id)
    shards = list((pipeline / "data/regions").glob("*.arrow"))
    assert shards and all(shard.stat().st_nlink > 1 for shard in shards), "DVC's cache should link, not copy"
    captions = pq.read_table(pipeline / "data/captions/test.parquet").to_pandas()
    retrieval = json.loads((pipeline / "metrics/retrieval.json").read_text())["test"]
    directions = [f"{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr")]
    assert set(retrieval) == {*directions, "rsum"}
    assert retrieval["rsum"] == pytest.approx(sum(retrieval[f"{w}_r{k}"] for w in ("i2t", "t2i") for k in (1, 5, 10)))
    queries = pq.read_table(pipeline / "data/evaluation/test.parquet").to_pandas()
    assert queries.groupby("direction").size().to_dict() == {"i2t": 16, "t2i": len(captions)}
    hits = (queries[queries.direction == "t2i"]["rank"] <= 5).mean() * 100
    assert hits == pytest.approx(retrieval["t2i_r5"], abs=1e-6)
    gates = json.loads((pipeline / "metrics/gates.json").read_text())["test"]
    assert 0 <= gates["gate_negative_mean"] <= 1 and 0 <= gates["gate_auc"] <= 1
    assert 0 <= gates["gate_content_positive_mean"] <= 1
    foils = json.loads((pipeline / "metrics/foils.json").read_text())["test"]
    assert foils["all"]["foils"] == pq.read_table(pipeline / "data/evaluation/foils_test.parquet").num_rows > 100
    assert {"object", "colour", "texture", "relation"} < set(foils)
    page = (pipeline / "report/index.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 6  # three queries each way, each image held once
    assert {path.name for path in (pipeline / "models/camp").iterdir()} >= {
        "model.safetensors", "config.json", "vocabulary.json",
    }  # fmt: skip


def test_a_second_repro_runs_no_stage(pipeline: Path, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in (pipeline / "data/regions").iterdir()}
    done = run(pipeline, "dvc", "repro")
    assert "Running stage" not in done.stdout
    assert "Data and pipelines are up to date." in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (pipeline / "data/regions").iterdir()} == before


def test_mlflow_holds_the_run_with_the_metrics_of_the_files(pipeline: Path, run: Run) -> None:
    deliver_all(pipeline)
    with sqlite3.connect(pipeline / "mlflow.db") as store:
        metrics = dict(store.execute("select key, value from latest_metrics").fetchall())
        statuses = {row[0] for row in store.execute("select status from runs")}
    retrieval = json.loads((pipeline / "metrics/retrieval.json").read_text())["test"]
    assert statuses == {"FINISHED"}
    assert metrics["test/rsum"] == pytest.approx(retrieval["rsum"])
    foils = json.loads((pipeline / "metrics/foils.json").read_text())["test"]
    assert metrics["test/foils_all_true_first"] == pytest.approx(foils["all"]["true_first"])
    assert {"val/gate_content_hardest_mean", "test/gate_content_hardest_mean", "val/region_gate_auc"} <= set(metrics)
    assert 0 <= metrics["train/data_wait_share"] <= 1
    recorded = [path.parents[2].name for path in pipeline.glob("mlartifacts/*/artifacts/queries/test.parquet")]
    assert len(recorded) == 2, "of the training, and of the evaluation below it"
    said = run(pipeline, "python", "-m", "stages.tracking", "compare", recorded[0], "data/evaluation").stdout
    assert f"rsum{retrieval['rsum']:12.1f}{retrieval['rsum']:8.1f}     +0.0  [+0.0, +0.0]" in said


def test_no_secret_of_the_environment_is_written_anywhere(pipeline: Path) -> None:
    """Not by DVC, not into MLflow's store, not into a log: the run had some in its environment."""
    deliver_all(pipeline)
    files = [path for path in pipeline.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"mlflow.db", "dvc.lock", "delivery.log", "params.yaml"} <= {path.name for path in files}
    holding = [path for path in files if SECRET.encode() in path.read_bytes()]
    # The test's own code, which is copied along.
    assert [path.name for path in holding if path.relative_to(pipeline).parts[0] not in ("tests", ".git")] == []


def test_the_example_of_the_readme_needs_the_model_alone(pipeline: Path, run: Run) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (pipeline / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "load_checkpoint" in block)
    others = "import sys; print(sorted({'stages', 'pipelines', 'mlflow', 'dvc', 'prefect', 'yaml'} & set(sys.modules)))"
    printed = run(pipeline, sys.executable, "-c", f"{example}\n{others}").stdout.splitlines()
    assert printed[-1] == "[]"
    scores = ast.literal_eval(printed[-2])
    assert len(scores) == 2 and all(0 < score < 1 for score in scores.values())


def test_an_experiment_changes_the_switch_and_only_what_depends_on_it(pipeline: Path, run: Run) -> None:
    try:
        done = run(
            pipeline, "dvc", "exp", "run", "-n", "joint", "-S", "model.matcher=joint",
            "-S", "train.loss=triplet", "-S", "train.gate_supervision=0", CAMP_TRACKING="off",
        )  # fmt: skip
        ran = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]
        assert [name for name in ran if name != "index"] == ["train", "evaluate", "report"]
        assert "index" in ran[1:]
        config = json.loads((pipeline / "models/camp/config.json").read_text())
        assert config["matcher"] == "joint"
        difference = json.loads(run(pipeline, "dvc", "metrics", "diff", "--json").stdout)
        assert "metrics/retrieval.json" in json.dumps(difference)
        table = run(pipeline, "dvc", "exp", "show", "--csv").stdout
        assert "joint" in table and "model.matcher" in table
        plots = run(pipeline, "dvc", "plots", "diff", "main", "joint", "-o", "plots-page")
        assert (pipeline / "plots-page/index.html").is_file(), plots.stdout
    finally:
        run(pipeline, "git", "checkout", "-q", "-f", "HEAD")
        run(pipeline, "git", "clean", "-qfd")
        run(pipeline, "dvc", "checkout", "-q")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model.gate": "soft"}, "model.gate: 'soft' is not one of scalar, elementwise, none"),
        ({"dataset.source": "karpathy", "captions.lexicon": "photographs"}, "dataset.json"),
    ],
)
def test_a_wrong_param_stops_the_pipeline_and_keeps_the_last_results(
    values: dict[str, str], says: str, pipeline: Path, run: Run
) -> None:
    params = (pipeline / "params.yaml").read_text()
    model = (pipeline / "models/camp/model.safetensors").read_bytes()
    lines = params.splitlines()
    for key, value in values.items():
        section, name = key.split(".")
        start = lines.index(f"{section}:")
        at = next(i for i in range(start, len(lines)) if lines[i].startswith(f"  {name}:"))
        lines[at] = f"  {name}: {value}"
    try:
        (pipeline / "params.yaml").write_text("\n".join(lines))
        done = run(pipeline, "dvc", "repro", check=False)
        assert done.returncode != 0
        assert says in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    finally:
        run(pipeline, "git", "checkout", "-q", "-f", "HEAD")
        run(pipeline, "dvc", "checkout", "-q")
    assert (pipeline / "models/camp/model.safetensors").read_bytes() == model


@pytest.mark.timeout(300)
def test_killed_in_training_and_in_evaluation_it_ends_with_the_same_bytes(pipeline: Path, tmp_path: Path) -> None:
    """A sample of tests/chaos, in a copy that has done what comes before."""
    folder = tmp_path / "killed"
    shutil.copytree(pipeline, folder, symlinks=True)
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    outputs = {out["path"]: out["md5"] for stage in ("train", "evaluate") for out in lock["stages"].pop(stage)["outs"]}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    for path in (folder / name for name in (*outputs, ".dvc/cache/runs")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    workspace = Workspace(folder)
    assert workspace.interrupt(signal.SIGKILL, ["train"], 0.0, ["evaluate"], "epoch 1:"), workspace.printed
    assert "evaluate" not in workspace.begun
    assert workspace.interrupt(signal.SIGINT, ["evaluate"], 0.0, ["evaluate"], "score test:"), workspace.printed
    workspace.repro("evaluate")
    assert "Stage 'train' didn't change, skipping" in workspace.printed
    done = workspace.hashes()
    assert {path for path, md5 in outputs.items() if done[path] != md5} == set()
    assert workspace.orphans() == []


@pytest.mark.timeout(900)
def test_a_second_clone_pulls_everything_and_queues_experiments_side_by_side(pipeline: Path, run: Run) -> None:
    run(pipeline, "dvc", "push", "-q")
    clone = pipeline.parent / "second"  # beside the first, where the remote's relative address leads to the same folder
    run(pipeline, "git", "clone", "-q", str(pipeline), str(clone))
    for key in ("name", "email"):
        run(clone, "git", "config", f"user.{key}", "test")
    run(clone, "dvc", "pull", "-q")
    done = run(clone, "dvc", "repro")
    assert "Running stage" not in done.stdout
    assert "Data and pipelines are up to date." in done.stdout

    for name, seed in (("one", 1), ("two", 2)):
        run(clone, "dvc", "exp", "run", "--queue", "-n", name, "-S", f"train.seed={seed}", "-S", "train.epochs=1")
    # Its workers keep what it inherits open: without /dev/null this would wait for them.
    run(clone, "bash", "-c", "dvc queue start -j 2 < /dev/null > /dev/null 2>&1")
    own = {path.stat().st_ino for path in (clone / "data/regions").glob("*.arrow")}
    workspaces = clone / ".dvc/tmp/exps"
    foreign: set[str] = set()
    shared: set[str] = set()
    until = time.monotonic() + 600

    def trainings() -> list[psutil.Process]:
        """Those that go on now in the experiments' workspaces, whose shards are looked at."""
        for path in workspaces.glob("tmp*/data/regions/*.arrow"):
            with contextlib.suppress(FileNotFoundError):  # its workspace is being removed
                (shared if path.stat().st_ino in own else foreign).add(path.parts[-4])
        assert time.monotonic() < until, run(clone, "dvc", "queue", "status").stdout
        time.sleep(0.2)
        processes = [process for process in psutil.process_iter(["cmdline", "cwd"]) if process.info["cwd"]]
        below = [process for process in processes if Path(process.info["cwd"]).is_relative_to(workspaces)]
        return [process for process in below if "stages.train" in (process.info["cmdline"] or ())]

    while not (begun := trainings()):
        pass
    begun[0].suspend()
    try:
        while len(trainings()) < 2:  # one begins while the other stands still: side by side
            pass
    finally:
        begun[0].resume()
    while (status := run(clone, "dvc", "queue", "status").stdout).count("Success") < 2:
        assert "Failed" not in status, status
        for _ in range(20):  # between two calls of dvc, which take a core a second each
            trainings()
    assert len(shared) == 2 and not foreign, (shared, foreign)  # the shards are those of the clone, not copies
    deliver_all(clone)
    assert not list(workspaces.glob("**/mlflow.db"))
    with sqlite3.connect(clone / "mlflow.db") as store:
        names = "select distinct value from tags where key = 'dvc.experiment' order by value"
        assert store.execute(names).fetchall() == [("one",), ("two",)]

    run(clone, "dvc", "exp", "apply", "two")
    assert yaml.safe_load((clone / "params.yaml").read_text())["train"]["seed"] == 2
    assert "Running stage" not in run(clone, "dvc", "repro").stdout
    shutil.rmtree(clone, ignore_errors=True)


def trainings(folder: Path, run: Run) -> list[str]:
    """The study's experiments; other tests leave theirs in the folder that this one is copied from."""
    listed = run(folder, "dvc", "exp", "list", "--name-only").stdout.split()
    return [name for name in listed if name.startswith("ablation-")]


@pytest.mark.timeout(600)
def test_a_study_compares_trainings_and_goes_on_where_it_was(
    pipeline: Path, tmp_path: Path, run: Run, prefect_home: Callable[[Path], Path]
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(pipeline, folder, symlinks=True)
    environment = {"PREFECT_HOME": str(prefect_home(tmp_path / "prefect")), "PREFECT_LOGGING_LEVEL": "WARNING"}
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
