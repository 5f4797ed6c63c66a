"""Reads the outcomes of a finished study from its DVC experiments, and compares them with the full model."""

import io
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.errors import InputError
from stages.evaluation.bootstrap import ImageHits, paired_differences, read_hits

SPLIT = "test"
"""Models are selected on val; reported numbers are measured once, on test."""


@dataclass(frozen=True)
class Outcome:
    """The results of one training."""

    recall: dict[str, float]
    gates: dict[str, float | None]
    foils: dict[str, dict[str, float | None]]
    hits: ImageHits
    curve: pd.DataFrame
    """plots/val_recall.csv, a row per epoch."""
    val_rsum: float
    """rsum of the kept model on val."""


@dataclass(frozen=True)
class Difference:
    """Full model minus variant, in rsum, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __neg__(self) -> "Difference":
        return Difference(-self.mean, -self.high, -self.low)

    @property
    def verdict(self) -> str:
        """The conclusion about the full model that the interval, rounded as printed, supports."""
        return "better" if round(self.low, 1) > 0 else "worse" if round(self.high, 1) < 0 else "not significant"


def commit_of(experiment: str) -> str | None:
    """The commit of a DVC experiment; None if none of this name has finished."""
    command = ["git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{experiment}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0] or None


def read_outcome(experiment: str) -> Outcome:
    """Read a finished experiment's metrics, curve and ranks from git and DVC's cache.

    Raises:
        InputError: there is no such experiment, or it did not evaluate the test split.
    """
    from dvc.api import DVCFileSystem

    commit = commit_of(experiment)
    if commit is None:
        raise InputError(f"{experiment}: there is no such DVC experiment; expected one that has finished")
    files = DVCFileSystem(rev=commit)

    def metrics(name: str) -> Any:
        content = json.loads(files.read_bytes(f"metrics/{name}.json"))
        if SPLIT not in content:
            raise InputError(
                f"{experiment}: metrics/{name}.json: {SPLIT}: is missing; expected evaluate.splits to hold it"
            )
        return content[SPLIT]

    with tempfile.TemporaryDirectory() as folder:
        ranks = Path(folder, f"{SPLIT}.parquet")
        files.get_file(f"data/evaluation/{SPLIT}.parquet", ranks)
        hits = read_hits(ranks, f"{experiment}: ")
    return Outcome(
        recall=metrics("retrieval"),
        gates=metrics("gates"),
        foils=metrics("foils"),
        hits=hits,
        curve=pd.read_csv(io.BytesIO(files.read_bytes("plots/val_recall.csv"))),
        val_rsum=json.loads(files.read_bytes("metrics/train.json"))["val_rsum"],
    )


def compare(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Difference]:
    """The full model minus every other variant; outcomes[variant] has one entry per seed, some have more seeds.

    Raises:
        InputError: the variants were tested on different captions.
    """
    of_full = outcomes["full"][0].hits.queries
    if others := [name for name, seeds in outcomes.items() if any(seed.hits.queries != of_full for seed in seeds)]:
        raise InputError(
            f"{others[0]}: was tested on other captions or images than full; expected variants with the same {SPLIT} "
            "split, such as with the same dataset.scenes.seed"
        )
    return {
        name: difference_of(outcomes["full"], of_variant) for name, of_variant in outcomes.items() if name != "full"
    }


def difference_of(first: Sequence[Outcome], second: Sequence[Outcome]) -> Difference:
    """The first model minus the second, over the leading seeds that both have; each has an entry per seed."""
    common = min(len(first), len(second))
    hits = ([outcome.hits for outcome in of_model[:common]] for of_model in (first, second))
    return Difference(*paired_differences(*hits)["rsum"])


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation over seeds (the latter None for one seed); None if any seed lacks the
    number."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None
