"""Shards over a real Dask scheduler with two worker processes, one of which is killed."""

import argparse
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import dask
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import pipelines
from camp_model.regions import RegionStore
from pipelines import extract as module
from pipelines.extract import DATASET, DETECTOR, REGIONS, collect, extract, fill_shards, resource, runner
from pipelines.reproduce import ONE_BY_ONE
from pipelines.shard_storage import check_storage
from stages.detectors.base import Description
from stages.detectors.scenes import build_network
from stages.detectors.weights import save_state
from stages.entry import read_params
from stages.errors import InputError
from stages.extraction import filling
from stages.extraction import plan as plan_module
from stages.extraction.filling import load
from stages.extraction.plan import ExtractSections, plan_shards
from stages.extraction.shard_folder import missing_shards, shard_folder
from stages.params.regions import RegionsParams
from tests.pipelines.conftest import command_of

ROOT = Path(pipelines.__file__).parents[1]
PICTURES = 32
PIPELINE = """
stages:
  extract_regions:
    cmd: python -m stages.extract_regions
    deps: [data/dataset, data/detector]
    params: [regions]
    outs: [data/regions]
"""
FAILING = """
from prefect import flow, task
from pipelines.extract import runner

@task
def fail():
    raise ValueError("as a task may")

@flow
def outer():
    @flow(task_runner=runner(None, 1))
    def inner():
        fail.submit().result()
    inner()

if __name__ == "__main__":
    outer()
"""
CONFIG = {"image_size": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture
def workspace(repository):
    """A DVC repository with pictures and an untrained detector, whose only stage is the extraction."""
    random = np.random.default_rng(0)
    files = []
    Path("pictures").mkdir()
    for i in range(PICTURES):
        path = Path(f"pictures/{i:03d}.png")
        Image.fromarray(random.integers(0, 255, (96, 120, 3)).astype(np.uint8)).save(path)
        files.append(path)
    Path("data/dataset").mkdir(parents=True)
    columns = {
        "image_id": [path.stem for path in files],
        "path": [path.name for path in files],
        "split": ["train"] * PICTURES,
        "width": pa.array([120] * PICTURES, pa.int32()),
        "height": pa.array([96] * PICTURES, pa.int32()),
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
    }
    pq.write_table(pa.table(columns), "data/dataset/images.parquet")
    torch.manual_seed(0)
    network = build_network(CONFIG, 3, 2)
    sha = save_state(network.state_dict(), Path("data/detector"))
    Description("torchvision", "scenes", "test", sha, 256, ["a", "b", "c"], ["x", "y"], CONFIG).save(
        Path("data/detector")
    )
    regions = RegionsParams(per_image=4, min_per_image=4, batch_size=2, shard_size=4)
    params = {
        "regions": regions.to_dict(),
        "captions": {"lexicon": "photographs"},
        "dataset": {"source": "table", "root": "pictures"},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("dvc.yaml").write_text(PIPELINE)
    return repository


@pytest.fixture
def cluster(server_environment, tmp_path, wait_for):
    """The address of a Dask scheduler with two worker processes."""
    address_file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(address_file)]
    with (tmp_path / "dask.log").open("wb") as log:
        options = {"env": server_environment, "stdout": log, "stderr": log}
        processes = [
            subprocess.Popen(
                [*dask, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(address_file)],
                **options,
            ),
            subprocess.Popen([*worker, "--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1",
                              "--resources", "GPU=1", "--local-directory", str(tmp_path)], **options),
        ]  # fmt: skip
        try:
            wait_for(address_file.exists, 60)
            yield yaml.safe_load(address_file.read_text())["address"]
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(timeout=60)


def dvc(*arguments):
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.timeout(400)
def test_a_cluster_fills_the_shards_and_a_killed_worker_is_replaced(prefect_server, workspace, cluster, wait_for):
    from distributed import Client

    killed = []

    def kill_one():
        with Client(cluster) as client:
            wait_for(lambda: len(client.scheduler_info()["workers"]) == 2, 60)
            pids = client.run(os.getpid)
            wait_for(lambda: list(shard_folder().glob("*.arrow")), 120)
            killed.append(min(pids.values()))
            os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = extract(cluster=cluster, resources={"GPU": 1})
    killer.join()
    assert killed
    assert result["shards"] == len(list(Path("data/regions").glob("*.arrow"))) > 3
    assert len(RegionStore(Path("data/regions"))) == PICTURES
    assert not list(Path("data/regions").glob(".*"))
    assert "Data and pipelines are up to date" in dvc("status")

    files = {path.name: path.read_bytes() for path in Path("data/regions").glob("*.arrow")}
    again = extract(cluster="tcp://127.0.0.1:9")  # nothing is missing: the cluster is not even asked
    assert again == {"shards": result["shards"], "extracted": 0}
    assert {path.name: path.read_bytes() for path in Path("data/regions").glob("*.arrow")} == files


def test_a_worker_answers_its_scheduler_before_it_imports_torch():
    code = "import sys, pipelines.extract; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_local_cluster_is_seen_on_this_machine_alone(prefect_server, listening):
    with runner(None, 1) as started:
        assert started.client
        assert listening(os.getpid()) == {"127.0.0.1"}


@pytest.mark.timeout(300)
def test_a_flow_and_its_workers_share_a_prefect_server_that_ends_with_them(server_environment, prefect_home, tmp_path):
    """Where none is there already, and a task fails."""
    environment = server_environment | {"PREFECT_HOME": str(prefect_home(tmp_path / "prefect"))}
    del environment["PREFECT_API_URL"]
    (tmp_path / "failing.py").write_text(FAILING)
    with (tmp_path / "log").open("wb") as log:
        code = subprocess.run(
            [sys.executable, tmp_path / "failing.py"], env=environment, stdout=log, stderr=log, check=False
        ).returncode
    said = (tmp_path / "log").read_text()
    begun = [process for process in psutil.process_iter() if str(tmp_path) in environment_of(process)]
    said_of = {process.pid: " ".join(command_of(process)) for process in begun}
    _, left = psutil.wait_procs(begun, 10)
    for process in left:
        process.kill()
    assert code == 1 and "as a task may" in said, said
    assert said.count("Starting temporary server on") == 1
    assert [said_of[process.pid] for process in left] == []


def environment_of(process):
    """What a process was started with, as text; nothing of one that has ended or is another person's."""
    try:
        return str(process.environ())
    except psutil.Error:
        return ""


def test_shards_travel_over_a_storage(workspace, tmp_path, monkeypatch):
    storage = f"file://{tmp_path / 'shared'}"
    loaded = []
    monkeypatch.setattr(module, "_detectors", {})
    monkeypatch.setattr(filling, "load", lambda plan, device: loaded.append(plan) or load(plan, device))
    plan = plan_shards(read_params(ExtractSections), DATASET, DETECTOR)
    plan = plan.of(plan.shards[:2])
    keys = [shard.key for shard in plan.shards]
    on_worker = tmp_path / "worker"
    for shard in plan.shards:
        assert fill_shards.fn(str(workspace), pickle.dumps(plan.of([shard])), str(on_worker), storage) == [shard.key]
    assert len(loaded) == 1, "a worker keeps the detector from one task to the next"
    assert fill_shards.fn(str(workspace), pickle.dumps(plan), str(on_worker), storage) == []  # they are there
    assert not REGIONS.exists()
    collect.fn(keys, storage, str(shard_folder()))
    assert len(missing_shards(plan.shards, shard_folder())) == 0
    assert sorted(path.name for path in shard_folder().iterdir()) == sorted(f"{key}.arrow" for key in keys)
    damaged = shard_folder() / f"{keys[0]}.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-9])  # here alone
    collect.fn(keys, storage, str(shard_folder()))
    assert len(missing_shards(plan.shards, shard_folder())) == 0
    for path in (damaged, tmp_path / "shared" / damaged.name):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"storage: .*shared/{damaged.name}: is damaged; remove it, and it is"):
        collect.fn(keys, storage, str(shard_folder()))


def test_a_worker_loads_the_detector_again_for_other_options(workspace, monkeypatch):
    """As the workers of a cluster that outlives an extraction do."""
    monkeypatch.setattr(module, "_detectors", {})
    params = read_params(ExtractSections)
    used = []
    for nms_iou in (0.5, 0.2, 0.2):
        of_backend = params.detector.torchvision.model_copy(update={"nms_iou": nms_iou})
        detector = params.detector.model_copy(update={"torchvision": of_backend})
        plan = plan_shards(params.model_copy(update={"detector": detector}), DATASET, DETECTOR)
        used.append(module._cached_detector(plan, "cpu"))
    assert [detector.nms_iou for detector in used] == [0.5, 0.2, 0.2]
    assert used[1] is used[2]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"storage": "nothing://here"}, "storage: nothing://here: Protocol not known: nothing; expected"),
        ({"storage": "params.yaml"}, r"storage: params\.yaml: .*File exists.*; expected a folder or an fsspec URL"),
        ({"storage": "zip://a.zip"}, "storage: zip://a.zip: .*; expected a folder or an fsspec URL"),
        ({"storage": "http://u:pw@127.0.0.1:9/x"}, "storage: http://127.0.0.1:9/x: .*; expected a folder or an"),
        ({"storage": "simplecache::memory://x"}, "storage: simplecache::memory://x: is the memory of one process"),
        ({"cluster": "tcp://127.0.0.1:9"}, "cluster: tcp://127.0.0.1:9: Timed out .*; expected the address of a Dask"),
        ({"cluster": "nothing://here"}, "cluster: nothing://here: unknown address scheme"),
    ],
)
def test_a_cluster_or_storage_that_is_not_there_is_wrong_input(prefect_server, workspace, options, why):
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(InputError, match=why):
        extract(**options)


def test_a_storage_that_takes_files_keeps_nothing_of_the_trial(tmp_path):
    check_storage(f"file://{tmp_path}/new")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


@pytest.mark.parametrize("text", ["GPU", "GPU=", "=1", "GPU=one", "GPU=0", "GPU=nan"])
def test_a_resource_is_a_name_and_a_number(text):
    assert resource("GPU=1") == ("GPU", 1.0)
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=COUNT"):
        resource(text)


@pytest.mark.timeout(400)
def test_a_missing_picture_is_set_aside_as_the_stage_does(prefect_server, workspace, monkeypatch):
    """In this process instead of a cluster's, which the test above has; without its params, tables and plan."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["regions"]["max_rejected_share"] = 0.1
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("pictures/005.png").unlink()
    monkeypatch.setattr(module, "runner", lambda *_: ONE_BY_ONE)
    planned = []
    monkeypatch.setattr(plan_module, "plan_shards", lambda *given: planned.append(plan_shards(*given)) or planned[-1])
    result = extract()
    assert result["extracted"] == result["shards"] > 3
    assert len(planned) == 1
    assert pq.read_table("data/regions/rejected.parquet")["image_id"].to_pylist() == ["005"]
    assert len(RegionStore(REGIONS)) == PICTURES - 1
    assert "Data and pipelines are up to date" in dvc("status")
    with pytest.raises(InputError, match="workers: 0 is below 1"):
        extract(workers=0)
    with pytest.raises(InputError, match="resources: only with a cluster"):
        extract(resources={"GPU": 1})
    with pytest.raises(InputError, match="workers: only without a cluster"):
        extract(cluster="tcp://127.0.0.1:1", workers=2)
