"""Stage train: train CAMP on region features and captions; the weights with the best rsum on val are kept."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from camp_model.files import write_json
from stages.contracts import hashes_of
from stages.device import Precision
from stages.entry import lock_outputs, read_params, stage_main
from stages.errors import InputError
from stages.params.model import ModelParams
from stages.params.section import StageSections
from stages.params.train import TrainParams
from stages.tracking import track
from stages.training.data import load_splits
from stages.training.identity import data_hashes, training_key
from stages.training.loop import Trainer
from stages.training.outputs import PLOTS, publish, summary, write_plots
from stages.training.processes import Processes, in_processes
from stages.training.resume import Resume
from stages.training.start import facts_for_search, new_model, say_partly_read
from stages.training.task import task_hash
from stages.workspace import main_root


class TrainSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()


@dataclass(frozen=True)
class Paths:
    """What the stage reads and writes."""

    regions: Path = Path("data/regions")
    captions: Path = Path("data/captions")
    images: Path = Path("data/dataset/images.parquet")
    """Has the hashes of the pictures, used only for a tag: the model depends on their features."""
    model: Path = Path("models/camp")
    metrics: Path = Path("metrics/train.json")
    plots: Path = Path("plots")
    work: Path = field(default_factory=lambda: main_root() / ".work" / "train")
    """State of unfinished trainings; not an output, because DVC removes outputs before a stage runs."""


def train(
    params: TrainSections,
    paths: Paths,
    *,
    device: torch.device,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train CAMP and write the checkpoint, metrics/train.json, train_loss.csv, val_recall.csv and val_gates.csv.

    A killed training resumes at the exact step when it is called again with the same params, data and code.

    Raises:
        InputError: the data or the initial weights do not fit, or training cannot continue (TrainingError).
        Stopped: `stop` returned True; the state is saved.
        OutputsLocked: another process has been running the same training for too long.
    """
    precision = Precision(params.train.precision, device)
    splits, vocabulary = load_splits(paths.regions, paths.captions)
    info = splits["train"].store.info
    data = data_hashes(paths.regions, paths.captions, foils=params.train.foil_weight > 0)
    model = new_model(
        params.model, params.train, vocabulary, info.region_dim, info.geometry, info.detector,
        splits["train"].captions.has_start_end,
    ).to(device)  # fmt: skip
    if not processes.rank:
        say_partly_read(model, {name: split.captions for name, split in splits.items()})
    key, task = training_key(params.model, params.train, data, len(splits["train"]), processes.count, device)
    resume = Resume(paths.work, key, task)
    with contextlib.ExitStack() as locks:
        if not processes.rank:
            locks.enter_context(lock_outputs(f"train-{resume.folder.name}", paths.work.parent / "locks"))
            resume.remove_unused()
        processes.any(False, device)  # none reads the state before the first one holds the lock
        trainer = Trainer(
            model, params.train, splits["train"], splits["val"], vocabulary,
            precision=precision, resume=resume, processes=processes, stop=stop,
        )  # fmt: skip
        if not processes.agree(trainer.progress.step, device):
            raise InputError(f"{paths.work}: is not the same on all machines; expected one folder that they share")
        with track("train", params, run_id=trainer.progress.run_id) as run:
            for name in ("train", "val"):
                run.log_dataset(name, paths.captions / f"{name}.parquet", data[f"{name}.parquet"])
            run.log_dataset("regions", paths.regions, data["manifest.parquet"])
            progress = trainer.fit(run)
            if processes.rank:
                return
            rsum = progress.best["rsum"]
            write_plots(paths.plots, progress)
            write_json(paths.metrics, summary(progress, trainer.epoch_steps))
            numbers = (paths.metrics, *(paths.plots / f"{name}.csv" for name in PLOTS))
            # Nothing specific to this run, such as its id or speed: equal trainings write equal files.
            fingerprint = {
                "detector": info.detector, "dataset": task_hash(paths.captions / "val.parquet", paths.images),
                "val_rsum": rsum, "precision": params.train.precision, "results": hashes_of(numbers),
                "start_from": params.train.start_from, "start_end": splits["train"].captions.has_start_end,
                **facts_for_search(params.train, splits["train"].captions.max_words),
            }  # fmt: skip
            publish(resume.best(progress.best_epoch), paths.model, fingerprint)
            run.log_metrics({f"train/{name}": value for name, value in trainer.speed.metrics().items()}, progress.step)
            run.log_model(paths.model, rsum)
            for path in numbers:
                run.log_artifact(path)
        resume.clear()


def main() -> None:
    params = read_params(TrainSections)
    with in_processes(params.train, "stages.train") as (device, processes, stop):
        train(params, Paths(), device=device, processes=processes, stop=stop)


if __name__ == "__main__":
    stage_main(main)
