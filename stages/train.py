"""Stage train: CAMP on region features and captions; the weights with the best rsum on val are the result."""

import os
import shutil
import signal
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import model_validator

import camp_model
from camp_model import gates as pair_gates
from camp_model.files import replacing_folder, write_csv, write_json
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.contracts import input_errors
from stages.device import Precision, choose_device
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.foils.words import CONTENT_KINDS, load_words, word_ids
from stages.params.model import ModelParams
from stages.params.section import StageSections
from stages.params.train import TrainParams, check_gates
from stages.tracking import track
from stages.training.data import Split
from stages.training.loop import Trainer
from stages.training.processes import Processes, launch
from stages.training.resume import Progress, Resume, run_key, sha256_of
from stages.training.start import new_model
from stages.training.task import task_hash
from stages.workspace import named_path

RECALL_COLUMNS = ("rsum", "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
GATE_COLUMNS = ("gate_positive_mean", "gate_negative_mean", "gate_auc")
"""The first columns about gates; the others of `pair_gates.NAMES` follow."""
PLOTTED_STEPS = 2000
"""Rows of train_loss.csv at most; beyond, each is a mean over several steps."""


class TrainSections(StageSections):
    """What the stage reads of params.yaml."""

    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        check_gates(self.train, self.model)
        return self


@dataclass(frozen=True)
class Paths:
    """What the stage reads and writes."""

    regions: Path = Path("data/regions")
    captions: Path = Path("data/captions")
    images: Path = Path("data/dataset/images.parquet")
    """Hashes of the pictures, for a tag alone: the model depends on features of them."""
    model: Path = Path("models/camp")
    metrics: Path = Path("metrics/train.json")
    plots: Path = Path("plots")
    work: Path = Path(".work/train")
    """State of unfinished trainings; not an output, for DVC removes outputs before a stage runs."""


def train(
    params: TrainSections,
    paths: Paths,
    *,
    device: torch.device,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train CAMP and write the checkpoint, metrics/train.json, train_loss.csv, val_recall.csv and val_gates.csv.

    A training that was killed goes on at the exact step when it is called again with the same params, data and code.

    Raises:
        InputError: the data, or what training starts from, does not fit; or training cannot go on (TrainingError).
        Stopped: `stop` said so; the state is saved.
    """
    precision = Precision(params.train.precision, device)
    with input_errors():
        store = RegionStore(paths.regions)
        vocabulary = Vocabulary.load(paths.captions / "vocabulary.json")
    content = word_ids(load_words(paths.captions / "lexicon.json"), vocabulary, CONTENT_KINDS)
    splits = {name: Split(store, paths.captions / f"{name}.parquet", vocabulary, content) for name in ("train", "val")}
    if len(splits["train"].images) < 2:
        raise InputError(f"{paths.captions / 'train.parquet'}: image_id: one image only; expected 2 or more")
    data = {file.name: sha256_of([file]) for file in _data_files(paths)}
    model = new_model(params.model, params.train, vocabulary, store.region_dim).to(device)
    key = run_key(_identity(params, data, device))
    trainer = Trainer(
        model, params.train, splits["train"], splits["val"], vocabulary,
        precision=precision, resume=Resume(paths.work, key), processes=processes, stop=stop,
    )  # fmt: skip
    if not processes.agree(trainer.progress.step, device):
        raise InputError(f"{paths.work}: is not the same on all machines; expected one folder that they share")
    with track("train", params, run_id=trainer.progress.run_id) as run:
        run.log_dataset("train", paths.captions / "train.parquet", data["train.parquet"])
        run.log_dataset("val", paths.captions / "val.parquet", data["val.parquet"])
        run.log_dataset("regions", paths.regions, data["manifest.parquet"])
        progress = trainer.fit(run)
        if processes.rank:
            return
        best = progress.epochs[progress.best_epoch - 1]
        summary = {
            "best_epoch": progress.best_epoch,
            "epochs": len(progress.epochs),
            "steps": progress.step,
            **{f"val_{name}": value for name, value in best.items()},
            "train_loss": _mean(progress.losses[-trainer.epoch_steps :]),
            **trainer.pace.metrics(),
        }
        fingerprint = {
            "detector": store.detector,
            "dataset": task_hash(paths.captions / "val.parquet", paths.images),
            "val_rsum": best["rsum"],
            "precision": params.train.precision,
            "mlflow_run_id": run.run_id,
        }
        _write_plots(paths.plots, progress)
        write_json(paths.metrics, summary)
        _publish(trainer.resume.best(progress.best_epoch), paths.model, fingerprint)
        run.log_model(paths.model, best["rsum"])
        for path in (
            paths.metrics,
            *(paths.plots / f"{name}.csv" for name in ("train_loss", "val_recall", "val_gates")),
        ):
            run.log_artifact(path)
    trainer.resume.clear()


def _data_files(paths: Paths) -> list[Path]:
    """Files that stand for all the data: a shard's name in the manifest is a hash of its content."""
    captions = [paths.captions / name for name in ("train.parquet", "val.parquet", "vocabulary.json", "lexicon.json")]
    return [paths.regions / "manifest.parquet", *captions]


def _identity(params: TrainSections, data: Mapping[str, str], device: torch.device) -> dict[str, Any]:
    """Everything that decides the result of a training: params, data, code and where it computes."""
    code = [
        *Path(camp_model.__file__).parent.rglob("*.py"),
        *Path(camp_model.__file__).parent.rglob("*.c"),
        *Path(__file__).parent.glob("training/*.py"),
        Path(__file__),
    ]
    settings = params.train.to_dict()
    del settings["checkpoint_steps"]
    start = [named_path(name) for name in (params.train.word_vectors,) if name is not None]
    if params.train.start_from is not None:
        start += sorted(path for path in named_path(params.train.start_from).iterdir() if path.is_file())
    return {
        "model": params.model.to_dict(),
        "train": settings,
        "data": dict(data),
        "start": sha256_of(start),
        "code": sha256_of(sorted(code)),
        "torch": torch.__version__,
        "device": device.type,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_plots(folder: Path, progress: Progress) -> None:
    losses = progress.losses
    size = -(-len(losses) // PLOTTED_STEPS)
    parts = [losses[start : start + size] for start in range(0, len(losses), size)]
    rows = [{"step": min((i + 1) * size, len(losses)), "loss": _mean(part)} for i, part in enumerate(parts)]
    write_csv(folder / "train_loss.csv", ("step", "loss"), rows)
    epochs = [{"epoch": i, **metrics} for i, metrics in enumerate(progress.epochs, start=1)]
    columns = ("epoch", *RECALL_COLUMNS, *GATE_COLUMNS, *pair_gates.NAMES)
    write_csv(folder / "val_recall.csv", tuple(dict.fromkeys(columns)), epochs)
    bins = [
        {"epoch": i, "gate": (at + 0.5) / pair_gates.BINS, **{name: counts[at] for name, counts in histograms.items()}}
        for i, histograms in enumerate(progress.gates, start=1)
        if histograms
        for at in range(pair_gates.BINS)
    ]
    write_csv(folder / "val_gates.csv", ("epoch", "gate", *pair_gates.COUNTS), bins)


def _publish(best: Path, out: Path, fingerprint: Mapping[str, Any]) -> None:
    """Put the best checkpoint in place, whole."""
    with replacing_folder(out) as building:
        shutil.copytree(best, building, dirs_exist_ok=True)
        write_json(building / "fingerprint.json", fingerprint)


def main() -> None:
    params, paths = read_params(TrainSections), Paths()
    device = choose_device(params.train.device)
    launch(params.train, device, "stages.train")
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    stopped = False

    def stop(number: int, frame: types.FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    processes = Processes.join(device)
    try:
        train(params, paths, device=device, processes=processes, stop=lambda: stopped)
    finally:
        processes.leave()


if __name__ == "__main__":
    stage_main(main)
