"""Writes the outputs of a finished training: metrics, curves and the best checkpoint."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camp_model import gates as pair_gates
from camp_model.files import replacing_folder, write_csv, write_sealed
from stages.training.resume import Progress

PLOTS = ("train_loss", "val_recall", "val_gates")
RECALL_COLUMNS = ("rsum", "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
GATE_COLUMNS = ("gate_positive_mean", "gate_negative_mean", "gate_auc")
"""The first columns of gates; the rest of `pair_gates.NAMES` follows."""
PLOTTED_STEPS = 2000
"""Maximum number of rows of train_loss.csv; in longer trainings each row is a mean over several steps."""


def summary(progress: Progress, epoch_steps: int) -> dict[str, Any]:
    """The values of metrics/train.json, without the speed, which differs between runs.

    Values of val are of the whole split. If epochs were measured on a subset of its images, the values that the model
    was selected by are included.
    """
    chosen_by = {
        "selection_rsum": progress.epochs[progress.best_epoch - 1]["rsum"],
        "selection_images": progress.selection_images,
    }
    return {
        "best_epoch": progress.best_number,
        "epochs": progress.numbers[-1],
        "steps": progress.step,
        **{f"val_{name}": value for name, value in progress.best.items()},
        **(chosen_by if progress.whole else {}),
        **({"train_loss": _mean(progress.losses[-epoch_steps:])} if progress.losses else {}),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def write_plots(folder: Path, progress: Progress) -> None:
    """Write train_loss.csv, val_recall.csv and val_gates.csv."""
    losses = progress.losses
    size = max(1, -(-len(losses) // PLOTTED_STEPS))
    means = [_mean(losses[start : start + size]) for start in range(0, len(losses), size)]
    rows = [{"step": min((i + 1) * size, len(losses)), "loss": mean} for i, mean in enumerate(means)]
    write_csv(folder / "train_loss.csv", ("step", "loss"), rows)
    epochs = [{"epoch": i, **metrics} for i, metrics in zip(progress.numbers, progress.epochs, strict=True)]
    columns = ("epoch", *RECALL_COLUMNS, *GATE_COLUMNS, *pair_gates.NAMES)
    write_csv(folder / "val_recall.csv", tuple(dict.fromkeys(columns)), epochs)
    bins = [
        {"epoch": i, "gate": (at + 0.5) / pair_gates.BINS, **{name: counts[at] for name, counts in histograms.items()}}
        for i, histograms in zip(progress.numbers, progress.gates, strict=True)
        if histograms
        for at in range(pair_gates.BINS)
    ]
    write_csv(folder / "val_gates.csv", ("epoch", "gate", *pair_gates.COUNTS), bins)


def publish(best: Path, out: Path, fingerprint: Mapping[str, Any]) -> None:
    """Put the best checkpoint in place, whole."""
    with replacing_folder(out) as building:
        shutil.copytree(best, building, dirs_exist_ok=True)
        write_sealed(building / "fingerprint.json", fingerprint)
