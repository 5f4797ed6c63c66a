"""Compares the recalls of trained models, with the intervals that the images, and several seeds, allow."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.contracts import read_object
from stages.errors import InputError
from stages.evaluation.bootstrap import MEASURES, ImageHits, paired_differences, read_hits
from stages.evaluation.recall_table import coarseness_note
from stages.tracking.restore import find_run
from stages.tracking.store import training_of
from stages.workspace import argument_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

QUERIES = "queries"
"""Folder of a run's artifacts with the ranks of each split, as the stage evaluate writes them."""


def compare_models(client: "MlflowClient", model: str, other: str, split: str) -> str:
    """Compare two models on the images of a split; return a table of their recalls and the differences.

    Args:
        model, other: MLflow runs (see `find_run`), or folders that the stage evaluate wrote; commas separate runs of
            one model with several seeds, and those of both models are paired in this order.

    Raises:
        InputError: there is no such run or file, it has no ranks of the split, the numbers of runs differ, two of
            one model are the same trained model, or they did not rank the same images and captions in the same way.
    """
    names = [[name.strip() for name in of_model.split(",")] for of_model in (model, other)]
    if len(names[0]) != len(names[1]):
        raise InputError(
            f"{model}: {len(names[0])} and {other}: {len(names[1])} runs; expected as many of both models, because "
            "seeds are compared in pairs"
        )
    sources = [[_source(client, name) for name in of_model] for of_model in names]
    for of_model, found in zip(names, sources, strict=True):
        seen: set[str] = set()
        for name, source in zip(of_model, found, strict=True):
            facts = _identity(client, source)
            if seen & facts:
                raise InputError(f"{name}: is named twice; expected runs of one model with different seeds")
            seen |= facts
    first, second = ([_hits(client, source, split) for source in found] for found in sources)
    for name, hits in zip([*names[0], *names[1]], [*first, *second], strict=True):
        if hits.queries != first[0].queries:
            raise InputError(
                f"{name}: {split}: other images or captions were ranked than in {names[0][0]}, or under another "
                "evaluate.protocol; expected the same"
            )
    return _text(first, second, split)


def _source(client: "MlflowClient", name: str) -> "Path | Run":
    """The folder or the run that has this name."""
    folder = argument_path(Path(name))
    return folder if name and folder.is_dir() else find_run(client, name)


def _identity(client: "MlflowClient", source: "Path | Run") -> set[str]:
    """What a folder or a run has in common with any other of the same seed: the place, and the model's sha256."""
    if isinstance(source, Path):
        record = source / "results.json"  # that the stage evaluate writes; older ones have none
        results = (
            read_object(record, "what a stage writes of its results").get("results", {}) if record.is_file() else {}
        )
        return {str(source.resolve()), str(results.get("model.safetensors", ""))} - {""}
    run = training_of(client, source)
    return {run.info.run_id, run.data.tags.get("camp.model", "")} - {""}


def _hits(client: "MlflowClient", source: "Path | Run", split: str) -> ImageHits:
    """The hits of a split's images, from a folder or a run."""
    if isinstance(source, Path):
        return read_hits(source / f"{split}.parquet")
    run = source.info
    recorded = [Path(file.path).stem for file in client.list_artifacts(run.run_id, QUERIES)]
    if split not in recorded:
        raise InputError(
            f"run {run.run_id} ({run.run_name}): recorded no ranks of {split}"
            + (f", but of {', '.join(recorded)}" if recorded else "; expected a run whose model this version evaluated")
        )
    with tempfile.TemporaryDirectory() as into:
        path = Path(client.download_artifacts(run.run_id, f"{QUERIES}/{split}.parquet", into))
        return read_hits(path, f"run {run.run_id}: ")


def _text(models: Sequence[ImageHits], others: Sequence[ImageHits], split: str) -> str:
    first, second = (
        np.mean([hits.measures(np.ones(len(hits.image))) for hits in of_model], axis=0) for of_model in (models, others)
    )
    images, captions, runs = len(models[0].image), int(models[0].count.sum()), len(models)
    lines = [
        f"{split}: {images:,} images, {captions:,} captions; of each model {runs} run{'s' if runs > 1 else ''}",
        f"{'':8}{'first':>8}{'second':>8}{'first minus second, 95 % interval':>37}",
    ]
    differences = paired_differences(models, others).values()
    for name, one, two, (mean, low, high) in zip(MEASURES, first, second, differences, strict=True):
        label = name.replace("_r", " R@")
        lines.append(f"{label:8}{one:8.1f}{two:8.1f}{mean:+9.1f}  [{low:+.1f}, {high:+.1f}]")
    covered = (
        "covers the choice of images only: compare several runs of each model, separated by commas, to cover seeds too"
        if runs == 1
        else "covers the choice of images and of seeds"
    )
    lines.append(
        f"The interval {covered}. If it contains 0, the difference is not significant.{coarseness_note(images)}"
    )
    return "\n".join(lines)
