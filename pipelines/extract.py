"""The flow `extract`: a Dask cluster extracts the missing region shards, then DVC commits them.

python -m pipelines.extract --workers 4
python -m pipelines.extract --cluster tcp://scheduler:8786 --storage s3://bucket/regions --resource GPU=1

The scheduler waits while a worker imports this module and deserializes task arguments. Therefore torch, and most of
stages, which imports it, are imported only in the functions that need them.
"""

import argparse
import asyncio
import contextlib
import os
import pickle
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.base import annotate
from distributed import Nanny
from distributed.comm.core import connect
from distributed.security import Security
from prefect import flow, get_run_logger, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff
from prefect_dask.task_runners import DaskTaskRunner

from camp_model.files import remove_unused, replacing
from pipelines.commands import Unfinished, allow_commands, prefect_command
from pipelines.dag import read_dag
from pipelines.devices import device_environments
from pipelines.pairs import by_name
from pipelines.reproduce import ONE_BY_ONE, run_stage
from pipelines.shard_storage import check_storage, filesystem_of, is_stored, upload
from stages.entry import read_params
from stages.errors import InputError

if TYPE_CHECKING:
    from stages.extraction.describing import Detector
    from stages.extraction.plan import Plan

STAGE = "extract_regions"
DATASET, DETECTOR, REGIONS = Path("data/dataset"), Path("data/detector"), Path("data/regions")


def is_retryable(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry a failed task: not if its input is wrong."""
    return not isinstance(state.result(raise_on_failure=False), InputError)


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_condition_fn=is_retryable,
)
def fill_shards(workspace: str, plan: bytes, folder: str, storage: str | None) -> list[str]:
    """Extract the missing shards of `plan` in this process, from the folder `workspace`; return the keys of new ones.

    They are written to `folder` and, if there is a storage, uploaded to it. Complete shards are skipped, so a task can
    run repeatedly, also after another worker died during it.

    Args:
        plan: a `Plan`, pickled by `fill`.
    """
    os.chdir(workspace)  # a Dask worker runs one task at a time, and paths in params.yaml start here
    from stages.extraction.filling import extract_missing

    whole: Plan = pickle.loads(plan)
    if storage is None:
        return extract_missing(whole, Path(folder), loading=_cached_detector)
    wanted = [shard for shard in whole.shards if not is_stored(storage, shard.key)]
    extract_missing(whole.of(wanted), Path(folder), loading=_cached_detector)
    for shard in wanted:
        upload(Path(folder) / shard.file_name, storage)
    remove_unused(Path(folder), ())  # no other process on this machine does so
    return [shard.key for shard in wanted]


def _cached_detector(plan: "Plan", device: str) -> "Detector":
    """The plan's detector, cached so that a worker loads it once and not for each task."""
    from stages.extraction.filling import load

    # Not only its fingerprint: what a backend alone is told, such as nms_iou, is in the params.
    identity = (str(Path.cwd()), plan.info.detector, repr(plan.params), device)
    if identity not in _detectors:
        _detectors.clear()
        _detectors[identity] = load(plan, device)
    return _detectors[identity]


_detectors: dict[tuple[str, str, str, str], "Detector"] = {}


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_condition_fn=is_retryable,
)
def collect(keys: list[str], storage: str, folder: str) -> None:
    """Download shards from the storage into the shard folder, except those that are complete there.

    Raises:
        InputError: a shard in the storage is damaged.
    """
    from camp_model.regions import read_header

    filesystem, path = filesystem_of(storage)
    for key in keys:
        target = Path(folder) / f"{key}.arrow"
        with contextlib.suppress(ValueError):  # absent, or damaged since it was written
            read_header(target)
            continue
        stored = posixpath.join(path, target.name)
        with replacing(target) as temporary:
            filesystem.get_file(stored, str(temporary))
            try:
                read_header(temporary)
            except ValueError:
                raise InputError(f"storage: {stored}: is damaged; remove it, and it is extracted again") from None


class _DeviceWorker(Nanny):
    """Starts a worker of a local cluster with its own environment, which includes its devices."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options["env"] = options.pop("environments")[options["name"]]
        super().__init__(*arguments, **options)


def check_cluster(address: str) -> None:
    """Raise InputError if no Dask scheduler answers; a flow would end with tracebacks instead."""

    async def connect_once() -> None:
        secrets = Security().get_connection_args("client")  # type: ignore[no-untyped-call]
        await (await connect(address, **secrets)).close()  # type: ignore[no-untyped-call]

    try:
        asyncio.run(connect_once())
    except (OSError, ValueError) as error:
        raise InputError(f"cluster: {address}: {error}; expected the address of a Dask scheduler") from None


def runner(cluster: str | None, workers: int) -> DaskTaskRunner:
    """Use an existing cluster, or a temporary local one on the loopback address, each worker with its own devices."""
    if cluster:
        return DaskTaskRunner(address=cluster)
    local = {"n_workers": workers, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    # The flow's server; otherwise each worker would start a server of its own that is never stopped.
    server = {"PREFECT_API_URL": str(get_client(sync_client=True).api_url)}
    options = {
        "worker_class": _DeviceWorker,
        "environments": [devices | server for devices in device_environments(workers)],
    }
    return DaskTaskRunner(cluster_kwargs=local | options)


def fill(plan: "Plan", folder: Path, storage: str | None, per_task: int, resources: dict[str, float]) -> int:
    """Distribute the plan's shards over the cluster of the task runner; return how many were extracted.

    Each task gets the list of its shards' images, so it reads neither the dataset's tables nor params.yaml.
    """
    portions = [
        pickle.dumps(plan.of(plan.shards[start : start + per_task])) for start in range(0, len(plan.shards), per_task)
    ]
    with annotate(resources=resources) if resources else contextlib.nullcontext():
        futures = fill_shards.map(unmapped(str(Path.cwd())), portions, unmapped(str(folder)), unmapped(storage))
    return sum(len(future.result()) for future in futures)


@flow(name="extract", task_runner=ONE_BY_ONE)  # type: ignore[arg-type]  # its type is too narrow
def extract(
    cluster: str | None = None,
    workers: int | None = None,
    storage: str | None = None,
    shards_per_task: int = 1,
    resources: dict[str, float] = {},  # noqa: B006
) -> dict[str, int]:
    """Extract the missing regions on many workers; `dvc repro` then finds nothing left to extract.

    Args:
        cluster: address of a Dask scheduler, such as tcp://host:8786; none: local worker processes. Its workers must
            see this workspace under the same path, for pictures and detector.
        workers: worker processes of the local cluster; each gets a share of this machine's GPUs and uses the first.
            none: 2, or those of `cluster`.
        storage: where the workers upload shards: a shared folder or an fsspec URL, which is tried first; none: directly
            in .work/shards.
        shards_per_task: number of shards that one task extracts.
        resources: what a worker of `cluster` must offer to get a task, such as {"GPU": 1}.
    """
    from stages.extraction.plan import ExtractSections, plan_shards
    from stages.extraction.shard_folder import absent_shards, link_existing_shards, missing_shards, shard_folder

    logger = get_run_logger()
    allow_commands()
    for name, number in (("workers", workers), ("shards_per_task", shards_per_task)):
        if number is not None and number < 1:
            raise InputError(f"{name}: {number} is below 1")
    if cluster and workers:
        raise InputError("workers: only without a cluster, which has its own; expected one of the two")
    if resources and not cluster:
        raise InputError("resources: only with a cluster: workers on this machine offer none, so no task would begin")
    if storage is not None:
        check_storage(storage)
    params = read_params(ExtractSections)
    done: dict[str, Any] = {}
    stages = read_dag(targets=(STAGE,)).stages
    for stage in stages[:-1]:
        done[stage.name] = run_stage.with_options(name=stage.name)(
            stage.name, stage.stale, [done[name] for name in stage.upstream]
        )
    plan, folder = plan_shards(params, DATASET, DETECTOR), shard_folder()
    link_existing_shards(plan.shards, REGIONS, folder)
    missing = missing_shards(plan.shards, folder)
    logger.info("%d of %d shards are missing", len(missing), len(plan.shards))
    extracted = 0
    if missing:
        if cluster:
            check_cluster(cluster)
        workers_of: Any = runner(cluster, workers or 2)
        on_cluster = flow(name="fill shards", task_runner=workers_of, validate_parameters=False)(fill)
        extracted = on_cluster(plan.of(missing), folder, storage, shards_per_task, resources)
        if storage is not None:
            collect([shard.key for shard in missing], storage, str(folder))
    # A shard with unreadable images set aside counts as present; the stage tries those images again.
    if absent := absent_shards(plan.shards, folder):
        raise Unfinished(f"{len(absent)} of {len(plan.shards)} shards are still missing in {folder}")
    done[STAGE] = run_stage.with_options(name=STAGE)(STAGE, True, [])
    return {"shards": len(plan.shards), "extracted": extracted}


def resource(text: str) -> tuple[str, float]:
    """Parse NAME=COUNT."""
    name, _, count = text.partition("=")
    try:
        number = float(count)
    except ValueError:
        number = 0.0
    if not name or not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=COUNT, such as GPU=1")
    return name, number


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill in missing region shards on many workers.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster", help="address of a Dask scheduler (default: a cluster on this machine)")
    where.add_argument("--workers", type=int, help="workers of a cluster on this machine (default: 2)")
    parser.add_argument("--storage", help="folder or fsspec URL that the workers write to (default: .work/shards)")
    parser.add_argument("--shards-per-task", type=int, default=1, help="shards that a task fills (default: 1)")
    parser.add_argument("--resource", action="append", type=resource, default=[], metavar="NAME=COUNT",
                        help="Dask resource that a worker of --cluster must have, such as GPU=1")  # fmt: skip
    arguments = parser.parse_args()
    with prefect_command():
        extract(arguments.cluster, arguments.workers, arguments.storage, arguments.shards_per_task,
                by_name(arguments.resource))  # fmt: skip


if __name__ == "__main__":
    main()
