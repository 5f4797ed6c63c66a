"""What an MLflow store holds, read out of its own files."""

import hashlib
import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

VARYING = re.compile("per_second|data_wait_share")
"""In the name of metrics that are other numbers in each run."""


def content(root: Path, experiment: str = "camp") -> dict[str, Any]:
    """Everything of an experiment but what names runs and moments: kinds of runs stand for the runs."""
    with closing(sqlite3.connect(f"file:{root / 'mlflow.db'}?mode=ro", uri=True)) as store:

        def select(query: str, *values: object) -> list[tuple[Any, ...]]:
            return store.execute(query, values).fetchall()

        ((number,),) = select("select experiment_id from experiments where name = ?", experiment)
        runs = dict(select("select run_uuid, artifact_uri from runs where experiment_id = ?", number))
        kind = dict(select("select run_uuid, value from tags where key = 'camp.kind'"))
        logged = select(
            "select status from logged_models where experiment_id = ? and lifecycle_stage = 'active'", number
        )
        versions = [run for (run,) in select("select run_id from model_versions") if run in runs]
        aliases = [
            kind[run] for (run,) in select(
                "select v.run_id from registered_model_aliases a join model_versions v"
                " on a.version = v.version and a.name = v.name"
            ) if run in runs
        ]  # fmt: skip
        points: Counter[tuple[Any, ...]] = Counter()
        for run, key, step, value in select("select run_uuid, key, step, value from metrics"):
            if run in runs and not key.startswith("system/"):
                points[kind[run], key, step, "" if VARYING.search(key) else value] += 1
        return {
            "runs": sorted((kind[run], status) for run, status in select("select run_uuid, status from runs")
                           if run in runs),
            "params": sorted((kind[run], *rest) for run, *rest in select("select run_uuid, key, value from params")
                             if run in runs),
            "tags": sorted((kind[run], key) for run, key in select("select run_uuid, key from tags") if run in runs),
            "datasets": sorted(select(
                "select d.name, d.digest from inputs i join datasets d on i.source_id = d.dataset_uuid"
                " where d.experiment_id = ?", number)),
            "points": points,
            "files": sorted((kind[run], *file) for run, address in runs.items() for file in _files(address)),
            "models": [*map(str, sorted(logged)), *sorted(kind[run] for run in versions)],
            "champion": aliases,
        }  # fmt: skip


def _files(address: str) -> list[tuple[str, str]]:
    """Path and hash of each file of a run, but for what says when and where it was made."""
    folder = Path(unquote(urlparse(address).path))
    hashes = []
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            hashes.append((name, "" if name.startswith("code/") else hashlib.sha256(path.read_bytes()).hexdigest()))
    return hashes


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What two stores do not have in common, to be shown; empty where they hold the same."""
    lines = []
    for name, items in one.items():
        missing, more = _only(items, other[name]), _only(other[name], items)
        if missing or more:
            lines.append(f"{name}: missing {len(missing)} {missing[:10]}, more {len(more)} {more[:10]}")
    return "\n".join(lines)


def _only(one: Any, other: Any) -> list[str]:
    counted = (Counter(map(repr, items.items() if isinstance(items, Counter) else items)) for items in (one, other))
    first, second = counted
    return list((first - second).elements())
