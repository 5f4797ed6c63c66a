"""Content that flows publish: tables of numbers, and the link to MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.contracts import read_object
from stages.cost import Cost, cost_of
from stages.errors import InputError
from stages.workspace import main_root

DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


def rows_of_metrics(path: Path) -> list[dict[str, Any]]:
    """A row per split and direction of metrics/retrieval.json; empty if there is no such file."""
    if not path.is_file():
        return []
    rows = []
    for split, numbers in read_object(path, "the metrics of the stage evaluate").items():
        for short, direction in DIRECTIONS.items():
            names = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "median rank": "medr", "mean rank": "meanr"}
            cells = {shown: _rounded(numbers.get(f"{short}_{name}")) for shown, name in names.items()}
            rows.append({"split": split, "direction": direction, **cells, "rsum": _rounded(numbers.get("rsum"))})
    return rows


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows, which all have the same keys, as a markdown table."""
    if not rows:
        return ""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join("" if row[key] is None else str(row[key]) for key in head) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def summary_markdown(done: Mapping[str, str], rows: Sequence[Mapping[str, Any]], link: str | None) -> str:
    """The page of a run: the recall table, the link to the MLflow run, and the state of each stage."""
    sections = ["# Retrieval\n", table(rows) or "There is no metrics/retrieval.json.\n"]
    if link:
        sections.append(f"\nMLflow run: {link}\n")
    sections.append("\n# Stages\n")
    sections.append(
        table([{"stage": name, "state": state, **cost_cells([cost_of(name)])} for name, state in done.items()])
    )
    return "\n".join(sections)


def cost_cells(costs: Sequence[Cost | None]) -> dict[str, str]:
    """Mean time and largest memory of some runs of a stage; empty if unknown for any of them."""
    known = [cost for cost in costs if cost is not None]
    if not known or len(known) < len(costs):
        return {"time": "", "memory": ""}
    cost = Cost(sum(cost.seconds for cost in known) / len(known), max(cost.peak_bytes for cost in known))
    return {"time": cost.time, "memory": cost.memory}


def costs_markdown(shared: Sequence[str], experiments: Mapping[str, Sequence[str]], jobs: int) -> str:
    """A section with the time and memory of each stage; empty if nothing is known.

    Args:
        shared: stages that ran once, in this workspace.
        experiments: label of a model -> names of its experiments, whose train and evaluate stages are listed.
        jobs: number of experiments that ran at once.
    """
    rows = [{"stage": stage, "model": "", **cost_cells([cost_of(stage)])} for stage in shared]
    rows += [
        {"stage": stage, "model": label, **cost_cells([cost_of(stage, name) for name in names])}
        for stage in ("train", "evaluate")
        for label, names in experiments.items()
    ]
    if not (known := [row for row in rows if row["time"]]):
        return ""
    return f"\nMean time and peak memory of each stage, {jobs} experiments at once:\n\n{table(known)}"


def diff_markdown(rows: Sequence[Mapping[str, Any]] | None, base: str) -> str:
    """A section with the rows of `dvc metrics diff`; None: there is nothing to compare with."""
    if rows is None:
        return f"\n# Against {base}\n\nNot compared: `git rev-parse {base}` names no revision with metrics here.\n"
    shown = [{key: _rounded(value) for key, value in row.items()} for row in rows]
    return f"\n# Against {base}\n\n" + (table(shown) or f"No number differs from {base}.\n")


def mlflow_link(checkpoint: Path) -> str | None:
    """A link to the run that trained a model, on the server or, for a local store, in `make ui`; None if unknown."""
    from stages.errors import without_password
    from stages.tracking import training_run_of
    from stages.tracking.delivery import limit_request_time
    from stages.tracking.restore import find_run
    from stages.tracking.store import named_uri, store_uri

    try:
        key = training_run_of(checkpoint)
    except (OSError, InputError):
        return None
    if key is None:
        return None
    from mlflow import MlflowClient

    server = named_uri()
    base = server.rstrip("/") if server.startswith("http") else "http://127.0.0.1:5000"
    limit_request_time(3)  # a server that hangs must not block the flow
    try:
        run = find_run(MlflowClient(store_uri(main_root())), key)
    except Exception as error:  # publish the page without the link
        why = "MLflow has no such run yet" if isinstance(error, InputError) else "the server does not answer now"
        return f"`{key}` (tag camp.run or camp.model; {why})"
    return (
        f"[{run.info.run_name}]({without_password(base)}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"
    )
