"""Reads the outcomes of a finished study from its DVC experiments, and compares them with the full model."""

import io
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.contracts import read_table
from stages.errors import InputError
from stages.evaluation.bootstrap import ImageHits, paired_differences, read_hits
from stages.foils.facts import true_by_chance
from stages.params.dataset import SPLITS
from stages.params.pipeline import Params
from stages.tracking.machine import commit_name

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


Outcomes = Mapping[str, Sequence[Outcome]]
"""Row -> one outcome per seed, some rows have more seeds; includes `full`."""


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


@dataclass(frozen=True)
class Study:
    """The outcomes of a study, and what they were measured with."""

    outcomes: Outcomes
    labels: Mapping[str, str]
    """Row -> its name for readers."""
    seeds: Sequence[int]
    """Seeds that every row has."""
    base: Mapping[str, Any]
    """Params that the study sets for every row."""
    data: str
    """Source and number of the images and captions."""
    commit: str
    true_by_chance: float | None
    """Share of the content words of random negative pairs that are true of the picture; None if unknown."""
    run: str | None
    """Key of the MLflow run that all trainings are nested under."""

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """The full model minus every other row.

        Raises:
            InputError: a row was tested on other captions.
        """
        full = self.outcomes["full"]
        for name, of_row in self.outcomes.items():
            if any(outcome.hits.queries != full[0].hits.queries for outcome in of_row):
                raise InputError(
                    f"{name}: was tested on other captions or images than full; expected variants with the same "
                    f"{SPLIT} split, such as with the same dataset.scenes.seed"
                )
        return {name: difference_of(full, of_row) for name, of_row in self.outcomes.items() if name != "full"}


def read_study(
    experiments: Mapping[str, Sequence[str]],
    labels: Mapping[str, str],
    seeds: Sequence[int],
    base: Mapping[str, Any],
    run: str | None,
) -> Study:
    """Read the outcomes of finished experiments, and the data of the first of `full`, which `base` may have changed.

    Args:
        experiments: row -> names of its experiments, one per seed; for the other arguments see `Study`.

    Raises:
        InputError: as `read_outcome`.
    """
    outcomes = {row: [read_outcome(name) for name in names] for row, names in experiments.items()}
    data, chance = read_data(experiments["full"][0])
    return Study(outcomes, labels, seeds, base, data, commit_name(), chance, run)


def read_data(experiment: str) -> tuple[str, float | None]:
    """The data of a finished experiment: `data` and `true_by_chance` of `Study`."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(rev=commit_of(experiment))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in ("params.yaml", *(f"data/dataset/{table}.parquet" for table in ("images", "captions", "scenes"))):
            if files.isfile(path):
                files.get_file(path, str(folder / Path(path).name))
        return data_line(folder), load_true_by_chance(folder)


def data_line(folder: Path) -> str:
    """The source, and the number of images and captions of each split, of a dataset with the params.yaml beside it."""
    source = Params.load(folder / "params.yaml").dataset.source
    tables = {name: read_table(folder / f"{name}.parquet", ("split",)) for name in ("images", "captions")}
    counts = {name: Counter(table["split"].to_pylist()) for name, table in tables.items()}
    splits = [f"{split} {counts['images'][split]:,} images and {counts['captions'][split]:,} captions"
              for split in SPLITS]  # fmt: skip
    return f"`{source}`; {', '.join(splits)}"


def load_true_by_chance(folder: Path) -> float | None:
    """The number of `Study`, from the ground truth of a dataset of embedded scenes; None for other pictures."""
    scenes = folder / "scenes.parquet"
    return true_by_chance(scenes, SPLIT) if scenes.is_file() else None


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
