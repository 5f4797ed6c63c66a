"""The state from which a killed training resumes at the exact step: one file, replaced atomically.

All random numbers of a step, and the order of samples, depend only on the seed and the step's number. The state
therefore holds weights and their average, optimizer, loss scale, the step, and the measurements so far; the best
weights so far are beside it. Only a training with the same key, a hash of params, data and code, reads it.

States are in the main workspace, because an experiment's own workspace is removed with it. The next training removes
states that were not written for `UNUSED_DAYS`.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.files import replacing
from camp_model.model import CAMP
from camp_model.seal import BLANK, check_seal, seal
from camp_model.vocabulary import Vocabulary
from stages.training.averaging import WeightAverage

UNUSED_DAYS = 14


@dataclass
class Progress:
    """The progress of a training."""

    step: int = 0
    """Optimizer steps done."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics after each epoch."""
    gates: list[dict[str, list[int]]] = field(default_factory=list)
    """Histograms of the gates after each epoch; see `pair_gates.histograms`."""
    best_epoch: int = 0
    """Position in `epochs` of the one with the highest rsum on val, from 1; 0: none yet."""
    run_id: str | None = None
    """Key of the tracking run of this training."""
    selection_images: int = 0
    """Number of val images that epochs were measured on, if not all."""
    whole: dict[str, float] = field(default_factory=dict)
    """In that case, the metrics of the best epoch on all of val."""

    @property
    def numbers(self) -> range:
        """Numbers of the measured epochs, from 1; 0 stands for a model that is not trained (`train.epochs: 0`)."""
        first = 1 if self.step else 0
        return range(first, first + len(self.epochs))

    @property
    def best_number(self) -> int:
        """The number of the best epoch."""
        return self.numbers[self.best_epoch - 1]

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch on the whole val split."""
        return self.whole or self.epochs[self.best_epoch - 1]


class Resume:
    """Stores the state of one training in `folder`/<key>; states of other keys are not touched.

    `task` is a hash of all that the key covers except the code; a state of the same task with another key is reported.
    """

    def __init__(self, folder: Path, key: str, task: str = "") -> None:
        self.folder = folder / key[:16]
        self.key = key
        self.task = task
        self.state = self.folder / "state.safetensors"

    def save(
        self,
        progress: Progress,
        model: CAMP,
        optimizer: torch.optim.Optimizer,
        scaler: torch.GradScaler,
        average: WeightAverage | None = None,
    ) -> None:
        """Replace the state; a kill at any moment leaves the old one or the new one."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
        if average is not None:
            tensors |= {f"average.{name}": value for name, value in average.weights.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        facts = asdict(progress)
        tensors["losses"] = torch.tensor(facts.pop("losses"), dtype=torch.float64)
        metadata = {
            "key": self.key,
            "task": self.task,
            "progress": json.dumps(facts),
            "scaler": json.dumps(scaler.state_dict()),
        }
        with replacing(self.state) as temporary:
            save_file(tensors, temporary, metadata=metadata | BLANK)
            seal(temporary)
        for old in self.folder.glob("best-*"):
            if old != self.best(progress.best_epoch):
                shutil.rmtree(old, ignore_errors=True)

    def load(
        self,
        model: CAMP,
        optimizer: torch.optim.Optimizer,
        scaler: torch.GradScaler,
        average: WeightAverage | None = None,
    ) -> Progress | None:
        """Load a saved state into model, optimizer, scaler and average; None if this training has none."""
        if not self.state.is_file():
            self._report_other_code()
            return None
        try:
            check_seal(self.state)
            with safe_open(self.state, framework="pt") as file:
                metadata = file.metadata()
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, SafetensorError) as error:
            print(f"{self.state}: cannot be read ({error}); training starts over")
            return None
        progress = Progress(losses=tensors.pop("losses").tolist(), **json.loads(metadata["progress"]))
        if metadata["key"] != self.key:
            return None
        if progress.best_epoch and (reason := self._unreadable(self.best(progress.best_epoch))):
            print(f"{reason}, which {self.state} needs; training starts over")
            return None
        model.load_state_dict(
            {name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, kind = name.split(".")
                state.setdefault(int(i), {})[kind] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        scaler.load_state_dict(json.loads(metadata["scaler"]))
        if average is not None:
            for name, value in average.weights.items():
                value.copy_(tensors[f"average.{name}"])
        return progress

    @staticmethod
    def _unreadable(best: Path) -> str | None:
        """Why weights cannot be published when training ends; None: they can."""
        if not best.is_dir():
            return f"{best}: is not there"
        try:
            load_checkpoint(best)
        except ValueError as error:
            return str(error)
        return None

    def _report_other_code(self) -> None:
        """Report that this training was begun by other code or libraries and now starts over."""
        if not self.task:
            return
        for state in self.folder.parent.glob("*/state.safetensors"):
            try:
                with safe_open(state, framework="pt") as file:
                    metadata = file.metadata() or {}
                step = json.loads(metadata["progress"])["step"]
            except (OSError, ValueError, KeyError, TypeError, SafetensorError):
                continue  # damaged, or just replaced or removed by its own training
            if metadata.get("task") == self.task:
                print(
                    f"{state.parent}: this training reached step {step:,} with other code or another torch; it starts "
                    "over, and that state is kept for the other code"
                )

    def best(self, epoch: int) -> Path:
        """The folder with the weights of an epoch that was the best so far."""
        return self.folder / f"best-{epoch}"

    def save_best(self, epoch: int, model: CAMP, vocabulary: Vocabulary) -> None:
        """Write the weights of `epoch`; `save` then makes them the best and removes the previous best."""
        shutil.rmtree(self.best(epoch), ignore_errors=True)
        save_checkpoint(self.best(epoch), model, vocabulary, {"epoch": epoch})

    def remove_unused(self) -> None:
        """Remove the states of other trainings that were not written for UNUSED_DAYS."""
        oldest = time.time() - UNUSED_DAYS * 24 * 3600
        for folder in self.folder.parent.glob("*/"):
            try:
                newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            except FileNotFoundError:  # another training has just replaced a file of it, or ended
                continue
            if folder != self.folder and newest < oldest:
                print(f"{folder}: removed: an unfinished training that was not used for {UNUSED_DAYS} days")
                shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove the state after a successful training."""
        shutil.rmtree(self.folder, ignore_errors=True)
