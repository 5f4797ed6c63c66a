"""The section `train`: how the model is trained."""

from dataclasses import dataclass

from stages.errors import InputError
from stages.params.checks import at_least, choose, share


@dataclass(frozen=True)
class TrainParams:
    """How CAMP is trained."""

    loss: str = "hardest_bce"
    """hardest_bce (paper eq. 13), bce (all in-batch negatives) or triplet (hinge on the hardest negatives)."""
    margin: float = 0.2
    """Margin of the triplet loss."""
    gate_supervision: float = 1.0
    """Weight of what makes gates open on matching pairs and close on others; 0: as published."""
    gate_target: str = "words"
    """What it acts on. words: each word's gate, against random negatives; pair: the mean gate logit of a pair's words,
    against the negatives of the loss."""
    gate_temperature: float = 1.0
    """For `words`: gate logits are divided by it in that term. Above 1, gates get sharper and less exact."""
    random_negative_steps: int = 0
    """Optimizer steps on random negatives before the hardest ones."""
    epochs: int = 30
    """Passes over the training captions at most."""
    batch_size: int = 128
    """Image-caption pairs per optimizer step, over all processes."""
    micro_batch: int = 0
    """Pairs in one forward and backward pass; 0: all at once. The gradient is the same."""
    learning_rate: float = 2e-4
    """Learning rate of AdamW at the start, after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0."""
    schedule: str = "step"
    """constant, step (a tenth every step_epochs) or cosine (to 0 at the last step)."""
    step_epochs: int = 15
    """Epochs between two falls of the learning rate; for schedule step."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer; 0: none."""
    gradient_clip: float = 2.0
    """Largest norm of the gradient; 0: no clipping."""
    dropout: float = 0.0
    """Dropout of region features and word embeddings."""
    patience: int = 10
    """Epochs without a better validation rsum after which training stops; 0: never."""
    precision: str = "fp32"
    """fp32, tf32, bf16 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    processes: int = 1
    """Processes (one per device) on each machine, started through torchrun when above 1."""
    machines: int = 1
    """Machines that train together over one shared folder. Each runs the stage with torchrun's PET_NODE_RANK,
    PET_MASTER_ADDR and PET_MASTER_PORT in its environment."""
    checkpoint_steps: int = 500
    """Optimizer steps between two checkpoints for resuming."""
    word_vectors: str | None = None
    """A GloVe or word2vec text file that the word embeddings start from."""
    freeze: tuple[str, ...] = ()
    """Parameter name prefixes that are held fixed."""
    start_from: str | None = None
    """A checkpoint folder whose weights to start from."""
    seed: int = 0
    """Seed of the first weights, the order of the pairs and dropout."""

    def __post_init__(self) -> None:
        choose("train", "loss", self.loss, ("hardest_bce", "bce", "triplet"))
        choose("train", "gate_target", self.gate_target, ("words", "pair"))
        choose("train", "schedule", self.schedule, ("constant", "step", "cosine"))
        choose("train", "precision", self.precision, ("fp32", "tf32", "bf16", "fp16"))
        choose("train", "device", self.device, ("auto", "cpu", "cuda", "mps"))
        at_least(
            "train", self, margin=0, gate_supervision=0, random_negative_steps=0, epochs=1, batch_size=2,
            micro_batch=0, learning_rate=0, warmup_steps=0, step_epochs=1, weight_decay=0, gradient_clip=0,
            patience=0, processes=1, machines=1, checkpoint_steps=1, seed=0, gate_temperature=1,
        )  # fmt: skip
        share("train", self, "dropout")
        if self.batch_size % (self.processes * self.machines):
            raise InputError(
                f"train.batch_size: {self.batch_size} does not divide among train.processes, {self.processes}, on "
                f"train.machines, {self.machines}"
            )
