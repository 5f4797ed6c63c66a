"""The flow `reproduce`: like `dvc repro`, with each stage as a task that Prefect can show, retry and recover.

python -m pipelines.reproduce           # here and now, in this workspace
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task, exponential_backoff

from pipelines.commands import CommandFailed, allow_commands, prefect_command, run_command, stop_commands
from pipelines.dag import Stage, metrics_diff, read_dag
from pipelines.forms import current_params, write_params
from pipelines.summary import diff_markdown, mlflow_link, rows_of_metrics, summary_markdown
from stages.errors import InputError

if TYPE_CHECKING:
    from stages.params.pipeline import Params as ParamsForm
else:
    from pipelines.forms import ParamsForm

DVC = (sys.executable, "-m", "pipelines.run_dvc")
UNCHANGED, RESTORED = "didn't change, skipping", "is cached - skipping run"
"""DVC's output for a stage with its results present, and for one whose different results DVC restored from cache."""
HALVED_PARAMS = {
    "train": ("train", "micro_batch", "batch_size"),
    "extract_regions": ("regions", "batch_size", "batch_size"),
}
"""Stage -> section, the key to halve when memory runs out, and the key to start from while that is 0. Halving does not
change what the stage computes."""


def is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry a failed task: not if its params, input or code are wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, CommandFailed) and error.reason != "error"


@task(
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=10),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
    task_run_name="{name}",
)
def run_stage(name: str, stale: bool, upstream: list[str]) -> Any:
    """Run one stage through DVC.

    Args:
        name: name of the stage.
        stale: whether DVC found it stale before the stages were run.
        upstream: the return value of this task for each stage that it depends on.

    Returns:
        "ran"; "cached" if DVC had nothing to do; "restored" if DVC restored a result that differs from the previous
        one, so that downstream stages may be stale.
    """
    logger = get_run_logger()
    if not stale and set(upstream) <= {"cached"}:
        return Completed(name="Cached", message="DVC: nothing changed", data="cached")
    try:
        output = run_command(
            [*DVC, "repro", "--single-item", name], logger.info, {"PREFECT__FLOW_RUN_ID": str(flow_run.id or "")}
        )
    except CommandFailed as error:
        if error.reason == "memory" and name in HALVED_PARAMS:
            logger.warning("out of memory: the next attempt uses %s", _halve(*HALVED_PARAMS[name]))
        if error.reason == "busy":  # another run began this stage first; the next attempt follows its end
            read_dag(targets=(name,))
        raise
    if RESTORED in output:
        return Completed(name="Cached", message="DVC: the result was restored from the cache", data="restored")
    if UNCHANGED in output:
        return Completed(name="Cached", message="DVC: the result is up to date", data="cached")
    return "ran"


def _halve(section: str, key: str, start: str) -> str:
    """Halve a number in params.yaml; return a description of the new value."""
    params = current_params()
    present = getattr(params, section)
    value = max(1, (getattr(present, key) or getattr(present, start)) // 2)
    write_params(params.replace(**{section: present.replace(**{key: value})}))
    return f"{section}.{key}: {value}"


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(10), retry_condition_fn=is_transient)
def transfer(direction: str, remote: str) -> None:
    """`dvc pull` what the remote has of the current state, or `dvc push` what it lacks, including the run cache."""
    extra = ["--allow-missing"] if direction == "pull" else []
    run_command([*DVC, direction, "--run-cache", *extra, "--remote", remote], get_run_logger().info)


# One worker: DVC locks the repository while it reads and writes, so parallel stages would only wait or fail.
ONE_BY_ONE: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)


@flow(name="reproduce", task_runner=ONE_BY_ONE)  # type: ignore[arg-type]  # its type is too narrow
def reproduce(
    params: ParamsForm = ParamsForm(),  # noqa: B008
    stages: list[str] = [],  # noqa: B006
    base: str = "main",
    transfers: bool = True,
) -> dict[str, str]:
    """Bring the results up to date: run the stale stages of dvc.yaml in order.

    Args:
        params: the params of all stages. Values that differ from the workspace's params.yaml are written to it.
        stages: run only these stages and their dependencies; all if empty.
        base: git revision to compare the metrics with.
        transfers: pull before and push after, if the default DVC remote is one of your own.
    """
    logger = get_run_logger()
    dag = read_dag(targets=tuple(stages))  # before params are written: a wrong target changes nothing
    if changed := write_params(params):
        logger.info("params.yaml: changed %s", ", ".join(changed))
        dag = read_dag(targets=tuple(stages))
    allow_commands()
    if transfers and dag.remote and dag.pending:
        pulled = transfer.with_options(name="pull")("pull", dag.remote, return_state=True)
        if pulled.is_failed():  # this state was never pushed, or the remote is unreachable: run the stages
            logger.warning("dvc pull downloaded nothing: %s", pulled.message)
        dag = read_dag(targets=tuple(stages))
    done = _run_stages(dag.stages)
    ran = any(done[stage.name] == "ran" for stage in dag.stages if not stage.watches)
    pushed = None
    if transfers and dag.remote and ran:
        pushed = transfer.with_options(name="push")("push", dag.remote, return_state=True)
    _publish(done, base)
    if ran:
        _warn_of_changes(stages)
    if pushed is not None and not pushed.is_completed():
        command = f"dvc push --run-cache --remote {dag.remote}"
        message = (
            f"all stages are done and their results are in this workspace, but not all are on the remote: `{command}`"
        )
        raise CommandFailed(command, 1, "network", f"{message} uploads the rest. {pushed.message}")
    return done


def _run_stages(stages: tuple[Stage, ...]) -> dict[str, str]:
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage in stages:  # in DAG order, so that the only worker never waits for a stage behind it in the queue
        futures[stage.name] = run_stage.with_options(name=stage.name).submit(
            stage.name,
            stage.stale,
            [futures[name] for name in stage.upstream if name in futures],  # type: ignore[misc]  # their results
        )
    try:
        return {name: future.result() for name, future in futures.items()}
    except BaseException:  # a stage failed, or the flow is cancelled: do not leave a stage running
        stop_commands()
        raise


def _warn_of_changes(stages: list[str]) -> None:
    """Name the stages that are out of date again, because something that they read changed while others ran."""
    with contextlib.suppress(InputError):  # dvc.yaml changed, or another process runs stages here: all is done anyway
        if pending := read_dag(tuple(stages)).pending:
            get_run_logger().warning(
                "out of date again: %s; params.yaml, code or a file they read changed while this ran. Run it again",
                ", ".join(pending),
            )


def _publish(done: dict[str, str], base: str) -> None:
    """Publish a run's artifacts: a page with recall, changes and the MLflow run, and a table of recalls."""
    rows = rows_of_metrics(Path("metrics/retrieval.json"))
    diff = metrics_diff(base)
    link = mlflow_link(Path("models/camp")) if "ran" in done.values() else None
    create_markdown_artifact(
        summary_markdown(done, rows, link) + diff_markdown(diff, base),
        key="reproduce",
        description="Recall, what changed, and where the run is in MLflow",
    )
    if rows:
        create_table_artifact(rows, key="recall", description="Recall of the trained model, in percent")


def main() -> None:
    """Run the flow in this workspace."""
    argparse.ArgumentParser(description="What `dvc repro` does, each stage a task of a Prefect flow.").parse_args()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    with prefect_command():
        reproduce()


if __name__ == "__main__":
    main()
