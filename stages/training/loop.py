"""The training loop."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from camp_model.checkpoint import load_checkpoint
from camp_model.encoding import cache_captions, captions_as_read
from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from stages.contracts import input_errors
from stages.device import Precision
from stages.errors import InputError
from stages.params.train import TrainParams
from stages.tracking import Run
from stages.training.averaging import WeightAverage
from stages.training.data import Batch, Split, epoch_batches, prefetch, steps_per_epoch
from stages.training.foils import TrainingFoils
from stages.training.groups import parameter_groups
from stages.training.loss import batch_loss
from stages.training.processes import Processes
from stages.training.resume import Progress, Resume
from stages.training.schedule import learning_rate, schedule_warnings
from stages.training.speed import TrainingSpeed
from stages.training.validation import images_for, validate

ASK_SECONDS = 1.0
"""Seconds between two questions whether to stop while the model is validated."""
RECORDED_STEPS = 5000
"""Above this many steps, the tracking server gets means over several steps."""
PRINTED = ("gate_positive_mean", "gate_negative_mean", "gate_auc")
"""The gate metrics that are printed at the end of an epoch."""


class TrainingError(InputError):
    """Training cannot continue."""


class Stopped(SystemExit):
    """Training was asked to stop and has saved its state. The exit code is that of a process ended by SIGTERM."""

    def __init__(self) -> None:
        super().__init__(143)


class Trainer:
    """Trains a model in place. `fit`, called again in any process, resumes where the last one ended."""

    def __init__(
        self,
        model: CAMP,
        params: TrainParams,
        train: Split,
        val: Split,
        vocabulary: Vocabulary,
        *,
        precision: Precision,
        resume: Resume,
        processes: Processes = Processes(),  # noqa: B008 (frozen)
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.params, self.train, self.val, self.vocabulary = model, params, train, val, vocabulary
        self.precision, self.resume, self.processes, self.stop = precision, resume, processes, stop
        self.device = precision.device
        if len(train) < processes.count:
            raise TrainingError(
                f"train.processes: {processes.count} in all, but {train.captions.path} holds {len(train)} captions; "
                "expected one for each process or more"
            )
        groups = parameter_groups(model, params.learning_rates)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=params.weight_decay)
        self.epoch_steps = steps_per_epoch(len(train), params.batch_size, processes.count)
        self.average = WeightAverage(model, params.ema_decay) if params.ema_decay else None
        self.progress = resume.load(model, self.optimizer, precision.scaler, self.average) or Progress()
        # Training captions keep <unk>, so that it is learnt; validation treats it as evaluation does.
        val.captions = captions_as_read([model], vocabulary, val.captions)
        foils = train.captions.path.with_name("foils_train.parquet")
        with_foils = params.foil_weight and params.epochs
        self.foils = TrainingFoils(foils, train.captions, params.foil_kinds) if with_foils else None
        with tqdm(desc="encode captions once", unit="caption", delay=2, disable=processes.rank > 0) as bar:
            for split in (train, val) if params.epochs else (val,):
                cache_captions(model, split.captions, progress=bar.update)
            if self.foils is not None:
                cache_captions(model, self.foils.captions, self.foils.eligible, bar.update)
        self.speed = self.reported_speed = TrainingSpeed()
        self.pending: list[tuple[int, float, Tensor, Tensor]] = []
        """Step, learning rate, loss and norm of the gradient of the steps whose losses are not read yet."""
        # Reading a loss waits for the device, so on a GPU it is done only now and then.
        self.read_every = 1 if self.device.type == "cpu" else 20
        self.record_every = max(self.read_every, math.ceil(params.epochs * self.epoch_steps / RECORDED_STEPS))

    def fit(self, run: Run) -> Progress:
        """Train until the last epoch, or until rsum has not improved for `patience` epochs; `run` records it.

        With `epochs: 0` the model is only measured.

        Raises:
            TrainingError: a loss or a gradient is not finite; the last saved state is kept.
            Stopped: `stop` returned True; the state is saved.
        """
        self.run, progress = run, self.progress
        progress.run_id = run.run_id
        total = self.params.epochs * self.epoch_steps
        if total and not self.processes.rank:
            for line in schedule_warnings(self.params, self.epoch_steps):
                print(line, flush=True)
            if progress.step:
                print(f"continuing after step {progress.step} of {total}", flush=True)
        self.bar = tqdm(
            total=total, initial=progress.step, desc="train", unit="step",
            disable=self.processes.rank > 0 or not total,
        )  # fmt: skip
        with self.bar:
            while len(progress.epochs) < self.params.epochs and not self._out_of_patience():
                self._epoch()
                self._end_epoch()
            if not progress.epochs:
                self._end_epoch()
        if self.params.validation_share < 1:
            self._validate_all()
        return progress

    def _out_of_patience(self) -> bool:
        patience, done = self.params.patience, len(self.progress.epochs)
        return patience > 0 and done - self.progress.best_epoch >= patience

    def _epoch(self) -> None:
        epoch = len(self.progress.epochs)
        before = time.perf_counter()
        for batch in prefetch(self._batches(epoch, self.progress.step - epoch * self.epoch_steps)):
            arrived = time.perf_counter()
            self._step(batch)
            done = time.perf_counter()
            self.speed = self.speed.after(done - before, len(batch.lengths) * self.processes.count, arrived - before)
            before = done
            stopped = self._asked_to_stop()
            wants_saving = self.progress.step % self.params.checkpoint_steps == 0
            if stopped or wants_saving or len(self.pending) >= self.record_every:
                self._read_losses()
            if stopped or (wants_saving and self.progress.step < (epoch + 1) * self.epoch_steps):
                self._save()
            if stopped:
                raise Stopped

    def _asked_to_stop(self) -> bool:
        """All processes end after the same step: the others would wait for one that left earlier."""
        if self.processes.count > 1 and self.progress.step % self.read_every:
            return False
        return self.processes.any(self.stop(), self.device)

    def _batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        params = self.params
        batches = epoch_batches(len(self.train), params.batch_size, params.seed, epoch, self.processes.count)
        for captions in batches[skip:]:
            own = captions[self.processes.share(len(captions))]
            batch = self.train.batch(own)
            if self.foils is not None:
                batch = replace(batch, foils=self.foils.draw(own, (params.seed, epoch)))
            yield batch.pinned() if self.device.type == "cuda" else batch

    def _step(self, batch: Batch) -> None:
        step, scaler = self.progress.step, self.precision.scaler
        rate = learning_rate(self.params, step, self.epoch_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        # The dropout of a step depends only on the seed, the step and the process.
        torch.manual_seed(hash((self.params.seed, step, self.processes.rank)))
        loss = batch_loss(self.model, batch.to(self.device), self.params, step, self.epoch_steps, self.precision)
        torch.autograd.backward(scaler.scale(loss))
        loss = self.processes.average_gradients(self.parameters, loss)
        scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.params.gradient_clip or math.inf)
        scaler.step(self.optimizer)
        scaler.update()
        if self.average is not None:
            self.average.update(self.model, step)
        self.progress.step += 1
        self.pending.append((self.progress.step, rate, loss, norm))
        self.bar.update()

    def _read_losses(self) -> None:
        """Read the measurements of the last steps, check and record them."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        losses = torch.stack([loss.float() for _, _, loss, _ in pending]).tolist()
        norms = torch.stack([norm.float() for _, _, _, norm in pending]).tolist()
        scaler = self.precision.scaler
        scaled = scaler.is_enabled() and scaler.get_scale() >= 1
        for (step, *_), loss, norm in zip(pending, losses, norms, strict=True):
            # A scaled fp16 loss may overflow: its scaler then leaves the step out and halves the scale. Once that does
            # not even enlarge the loss any more, it is not the scale.
            overflow = scaled and math.isfinite(loss)
            if not math.isfinite(loss) or not (math.isfinite(norm) or overflow):
                what = "gradient" if math.isfinite(loss) else "loss"
                state = f"; the state before it is in {self.resume.folder}" if self.resume.state.is_file() else ""
                hint = "a lower train.learning_rate or a smaller train.gradient_clip may help"
                if step == 1:
                    hint = (
                        "no weight has changed yet; expected features, initial weights, and numbers of the sections "
                        f"model and train that train.precision {self.params.precision} can compute with"
                    )
                raise TrainingError(f"train: the {what} of step {step} is not finite; {hint}{state}")
        self.progress.losses += losses
        self.bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        speed, self.reported_speed = self.speed.since(self.reported_speed), self.speed
        values = {
            "train/loss": sum(losses) / len(losses),
            "train/gradient_norm": sum(norms) / len(norms),
            "train/learning_rate": pending[-1][1],
        }
        self.run.log_metrics(values | {f"train/{name}": v for name, v in speed.metrics().items()}, step=pending[-1][0])

    def _end_epoch(self) -> None:
        """Measure the model, or the average of its weights; keep it if it is the best so far, and save the state."""
        self._read_losses()
        try:
            self._measure_epoch()
        except Stopped:  # the epoch's steps are done; it is measured when training resumes
            self._save()
            raise

    def _measure_epoch(self) -> None:
        progress = self.progress
        with self.average.apply_to(self.model) if self.average is not None else contextlib.nullcontext():
            metrics, gates = self._validate(self.params.validation_share)
            best = progress.epochs[progress.best_epoch - 1]["rsum"] if progress.best_epoch else -math.inf
            progress.epochs.append(metrics)
            progress.gates.append(gates)
            epoch = len(progress.epochs)
            if metrics["rsum"] > best:
                progress.best_epoch = epoch
                if self.processes.rank == 0:
                    try:
                        self.resume.save_best(epoch, self.model, self.vocabulary)
                    except ValueError as error:
                        raise TrainingError(f"train: after step {progress.step}: {error}") from None
        # Before the state is saved: if killed in between, the epoch is recorded twice, not never.
        self.run.log_metrics({f"val/{name}": value for name, value in metrics.items()}, step=progress.step)
        self._save()
        if self.processes.rank:
            return
        losses = progress.losses[-self.epoch_steps :]
        loss = f"loss {sum(losses) / len(losses):.3f}, " if losses else ""
        means = "".join(f", {n.replace('_', ' ')} {v:.3f}" for n, v in metrics.items() if n in PRINTED)
        images = len(images_for(self.val, self.params.validation_share))
        some = f" on {images} of {len(self.val.images)} images" if images < len(self.val.images) else ""
        self.bar.write(f"epoch {progress.numbers[-1]}: {loss}val rsum {metrics['rsum']:.1f}{some}{means}")

    def _validate(self, share: float) -> tuple[dict[str, float], dict[str, list[int]]]:
        self.asked = time.monotonic()
        try:
            return validate(self.model, self.val, self.precision, self.processes, share, self._stop_if_alone)
        except ValueError as error:
            raise TrainingError(f"train: validation after step {self.progress.step}: {error}") from None

    def _stop_if_alone(self) -> None:
        """End within a validation; several processes end after their next step, because each would wait for others."""
        if self.processes.count == 1 and time.monotonic() >= self.asked + ASK_SECONDS:
            self.asked = time.monotonic()
            if self.stop():
                raise Stopped

    def _validate_all(self) -> None:
        """Measure the kept model on the whole val split, if epochs were measured on a subset of its images."""
        progress, share = self.progress, self.params.validation_share
        self.processes.any(False, self.device)  # wait until its weights are on disk
        with input_errors():
            kept, _, _ = load_checkpoint(self.resume.best(progress.best_epoch), self.device)
        self.model.load_state_dict(kept.state_dict())  # this model caches encoded captions
        progress.selection_images, progress.whole = len(images_for(self.val, share)), self._validate(1.0)[0]
        self.run.log_metrics({f"val_whole/{name}": value for name, value in progress.whole.items()}, step=progress.step)
        if not self.processes.rank:
            print(
                f"kept: epoch {progress.best_number}, by its rsum on {progress.selection_images} images of val; "
                f"val rsum {progress.whole['rsum']:.1f} on all {len(self.val.images)}",
                flush=True,
            )

    def _save(self) -> None:
        if self.processes.rank == 0:
            self.resume.save(self.progress, self.model, self.optimizer, self.precision.scaler, self.average)
