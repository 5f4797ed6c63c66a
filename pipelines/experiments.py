"""Runs DVC experiments in parallel, each in its own workspace, under one MLflow run; and the flow `sweep`.

python -m pipelines.experiments '{"model.pooling": ["attention", "mean"], "train.seed": [0, 1]}'
"""

import argparse
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from camp_model.seal import digest_of_values
from pipelines.commands import Unfinished, allow_commands, prefect_command, run_command, stop_commands
from pipelines.dag import check_experiments, shared_stages
from pipelines.devices import DevicePool
from pipelines.reproduce import DVC, is_transient
from pipelines.study import commit_of
from pipelines.variants import (
    GRID,
    SharedInputs,
    check_validated,
    grid_of,
    name_for_git,
    named_content,
    params_of,
    set_param,
    variants_of,
)
from stages import usable_cores
from stages.errors import InputError
from stages.tracking import PARENT, track
from stages.tracking.delivery import sync
from stages.tracking.model import promote_if_better
from stages.tracking.restore import MODEL, weights_hash
from stages.tracking.spool import pending
from stages.tracking.store import connect, search_runs, store_uri
from stages.workspace import main_root

PROMOTE_WITHIN = 120.0
"""Seconds to wait for the model that is to become champion to arrive in MLflow."""

RANKED_BY = "val_rsum"
"""The number of metrics/train.json to rank by: on the validation split, never on the test split."""


@task(
    cache_policy=NO_CACHE,
    retries=4,
    retry_delay_seconds=exponential_backoff(backoff_factor=3),
    retry_jitter_factor=1,
    retry_condition_fn=is_transient,
    task_run_name="{name}",
)
def run_experiment(
    name: str,
    overrides: dict[str, Any],
    parent: str | None,
    threads: int,
    devices: DevicePool,
    target: str | None,
    copied: Sequence[str],
    inputs: SharedInputs,
) -> dict[str, Any]:
    """Run one DVC experiment in its own workspace; return its metrics.

    A stage that has already run with the same inputs and params is restored from DVC's run cache.

    Args:
        devices: lends it the GPUs that the fewest other experiments use.
        target: the last stage to run; None: all stages.
        copied: paths to copy into its workspace that neither git nor DVC provides: see `_uncommitted`.
        inputs: what all experiments share, as they were when these began.

    Raises:
        InputError: they have changed.
    """
    logger = get_run_logger()
    if commit_of(name) is None:  # otherwise it has already finished
        inputs.check(name)
        command = [*DVC, "exp", "run", "--temp", "--name", name, *([target] if target else [])]
        for key, value in overrides.items():
            command += set_param(key, value)
        for path in copied:
            command += ["--copy-paths", path]
        environment = {"PREFECT__FLOW_RUN_ID": str(flow_run.id or ""), "OMP_NUM_THREADS": str(threads)}
        with devices.lend() as lent:
            run_command(command, logger.info, environment | lent | ({PARENT: parent} if parent else {}))
        if commit_of(name) is None:
            raise Unfinished(f"{name}: DVC ended without an error, but keeps no experiment of this name")
    return experiment_metrics(name)


def _uncommitted() -> list[str]:
    """Paths that record which stages are done here, and that neither git nor DVC's cache provides; without them an
    experiment would run these stages again."""
    from dvc.repo import Repo

    with Repo() as repo:
        results = [os.path.relpath(out.fs_path, repo.root_dir) for out in repo.index.outs if not out.use_cache]
    paths = [Path(path) for path in ("dvc.lock", *results) if Path(path).is_file()]
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.split(b"\0")
    provided = {path for name in map(os.fsdecode, tracked) for path in (Path(name), *Path(name).parents)}
    # DVC copies a file only into an existing folder, and copies a folder with all its contents.
    missing = [[folder for folder in (*reversed(path.parents), path) if folder not in provided] for path in paths]
    return sorted({str(first) for first, *_ in filter(None, missing)})


def experiment_metrics(name: str) -> dict[str, Any]:
    """The metrics of a finished experiment as a flat dict; all but those of metrics/train.json have a prefix."""
    from dvc.repo import Repo

    with Repo() as repo:
        shown = repo.metrics.show(revs=[name], hide_workspace=True)
    numbers: dict[str, Any] = {}
    for path, content in shown.get(name, {}).get("data", {}).items():
        stem = Path(path).stem
        for key, value in content.get("data", {}).items():
            for inner, number in value.items() if isinstance(value, dict) else [(None, value)]:
                label = key if stem == "train" else f"{key}_{inner}" if inner else f"{stem}_{key}"
                numbers[label] = number
    return numbers


def _rank(variants: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per finished variant, best validation first; those without RANKED_BY last."""
    order = sorted(results, key=lambda name: -float(results[name].get(RANKED_BY, "-inf")))
    shown = (RANKED_BY, "test_rsum", "test_i2t_r1", "test_t2i_r1")
    rows = []
    for rank, name in enumerate(order, start=1):
        numbers = {key: results[name][key] for key in shown if key in results[name]}
        rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in numbers.items()}
        changes = ", ".join(f"{key}={value}" for key, value in variants[name].items()) or "nothing changed"
        rows.append({"rank": rank, "variant": name, **rounded, "params": changes})
    return rows


def _prepare(variants: Mapping[str, dict[str, Any]]) -> SharedInputs:
    """Run the stages that no variant affects once, in this workspace; return what all variants share."""
    shared = shared_stages({key for overrides in variants.values() for key in overrides})
    if shared:
        run_command([*DVC, "repro", *shared], get_run_logger().info)
    return SharedInputs.of(shared)


def _names(
    kind: str, variants: Mapping[str, dict[str, Any]], target: str | None
) -> tuple[dict[str, str], str, SharedInputs]:
    """The experiments' names by variant, the key of their MLflow parent, and what all variants share.

    Names and key depend only on what is run, so an interrupted flow continues where it stopped, with the same parent.
    """
    content = named_content(params_of(variants))
    common = _prepare(variants)
    hashes = {
        name: digest_of_values([common.sha256, overrides, content[name], target])
        for name, overrides in variants.items()
    }
    names = {name: name_for_git(kind, of_variant, name) for name, of_variant in hashes.items()}
    return names, digest_of_values([kind, common.sha256, variants, content, target])[:32], common


def _run_all(
    kind: str, variants: Mapping[str, dict[str, Any]], jobs: int, promote: bool, target: str | None
) -> tuple[list[dict[str, Any]], dict[str, str], str | None]:
    """A row per variant, the experiments' names by variant, and the key of their MLflow parent.

    Raises:
        Unfinished: an experiment failed; all others have ended.
    """
    logger = get_run_logger()
    names, key, inputs = _names(kind, variants, target)
    threads, devices, copied = max(1, usable_cores() // jobs), DevicePool(jobs), _uncommitted()
    tags = {"prefect.flow_run": flow_run.id}
    with track("sweep", {"variants": variants}, run_id=key, name=f"{kind} {key[:8]}", tags=tags) as run:
        try:
            futures = {
                name: run_experiment.with_options(name=name).submit(
                    names[name], overrides, run.run_id, threads, devices, target, copied, inputs
                )
                for name, overrides in variants.items()
            }
            for future in futures.values():
                future.wait()
        except BaseException:  # the flow is being ended, and would otherwise wait for its experiments
            stop_commands()
            raise
        outcomes = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
        failures = {name: why for name, why in outcomes.items() if not futures[name].state.is_completed()}
        results = {name: numbers for name, numbers in outcomes.items() if name not in failures}
        rows = _rank(variants, results)
        if rows:
            best = rows[0]["variant"]
            if RANKED_BY in results[best]:
                run.log_metrics({"val/rsum": results[best][RANKED_BY]})
                run.set_tags({"best": best, "best.experiment": names[best]})
            create_table_artifact(rows, key=kind, description=f"{kind}: ranked by validation rsum")
            logger.info("best: %s; `dvc exp apply %s` applies it to this workspace", best, names[best])
        if failures:
            of_all = f"{len(failures)} of {len(variants)} experiments failed: {', '.join(failures)}"
            raise Unfinished(f"{of_all}. The first: {next(iter(failures.values()))}")
    if promote:
        _promote(names[rows[0]["variant"]])
    return rows, names, run.run_id


def _promote(experiment: str) -> None:
    """Make an experiment's model champion if it is better on the same val, once MLflow has the run that trained it: its
    own run, or the earlier one whose result came from DVC's run cache.

    Raises:
        InputError: that run has not reached the server in time, or does not exist.
    """
    model = _model_of(experiment)
    client = connect(main_root(), store_uri(main_root()))
    deadline = time.monotonic() + PROMOTE_WITHIN
    while True:
        sync(main_root())
        waiting = pending(main_root())  # before the search, so that it finds what has left the spool
        trained = search_runs(client, f"tags.`camp.model` = '{model}' and tags.`camp.kind` = 'train'")
        # A separate process delivers the events of a run; it holds the spool, and may finish after the run.
        runs = [run for run in trained if client.search_model_versions(f"run_id = '{run.info.run_id}'")]
        if runs:
            break
        if not waiting:
            raise InputError(
                f"{experiment}: no run in MLflow has its model (sha256 {model}); expected the run that trained it"
            )
        if time.monotonic() > deadline:
            raise InputError(
                f"{experiment}: its model is not in MLflow yet; `python -m stages.tracking sync` delivers it"
            )
        time.sleep(1)
    version, *_ = client.search_model_versions(f"run_id = '{runs[0].info.run_id}'")
    if why := promote_if_better(client, version.version, version.tags):
        get_run_logger().warning("champion stays: %s; `stages.tracking promote %s` moves it", why, version.run_id)
    else:
        get_run_logger().info("champion is now version %s, of %s", version.version, experiment)


def _model_of(experiment: str) -> str:
    """The hex sha256 of an experiment's trained weights: the tag `camp.model` of the run that trained them."""
    sha256 = weights_hash(Path.cwd(), str(commit_of(experiment)))
    if sha256 is None:
        raise InputError(f"{experiment}: {MODEL}: is not there; expected the model that it trained")
    return sha256


@flow(name="sweep")
def sweep(grid: dict[str, list[Any]], jobs: int = 1, promote: bool = False) -> list[dict[str, Any]]:
    """Try every combination of a grid of params and rank them.

    Args:
        grid: dotted params key -> the values to try.
        jobs: experiments that run at the same time.
        promote: make the best model the `champion` in MLflow, if it is better than that on the same val.
    """
    return run_in_parallel("sweep", variants_of(grid), jobs, promote, None)[0]


def run_in_parallel(
    kind: str, variants: Mapping[str, dict[str, Any]], jobs: int, promote: bool, target: str | None
) -> tuple[list[dict[str, Any]], dict[str, str], str | None]:
    """Run experiments in parallel, up to the stage `target` (None: all stages).

    They run in their own flow, because the number that run at once is part of a flow's definition.

    Returns:
        A row per variant, best validation first; the experiments' names by variant; the key of their MLflow parent.
    """
    allow_commands()
    check_validated(params_of(variants))
    check_experiments(jobs)
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=jobs)
    inner = flow(name=f"{kind} experiments", task_runner=runner, validate_parameters=False)(_run_all)  # type: ignore[arg-type]
    return inner(kind, variants, jobs, promote, target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train every combination of a grid side by side.")
    parser.add_argument("grid", type=grid_of, help=f"JSON, dotted params key -> values, such as {GRID}")
    parser.add_argument("--jobs", type=int, default=1, help="trainings that run at the same time (default: 1)")
    parser.add_argument("--promote", action="store_true", help="make the best the champion, if better on the same val")
    arguments = parser.parse_args()
    with prefect_command():
        sweep(arguments.grid, jobs=arguments.jobs, promote=arguments.promote)


if __name__ == "__main__":
    main()
