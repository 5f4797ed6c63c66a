"""params.yaml as frozen dataclasses: one per section, read and checked once, where a stage starts.

`python -m stages.params presets/coco.yaml` lays a preset over params.yaml (comments stay) and checks the result.
"""

import argparse
import dataclasses
import math
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from camp_model.config import CampConfig


class InputError(Exception):
    """Something the user gave is wrong. The message names the file, the key and what was expected."""


def _choose(section: str, key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{section}.{key}: {value!r} is not one of {', '.join(allowed)}")


def _at_least(section: str, params: object, **bounds: float) -> None:
    for key, low in bounds.items():
        value = getattr(params, key)
        if value < low:
            raise InputError(f"{section}.{key}: {value!r} is below {low}")


def _share(section: str, params: object, *keys: str) -> None:
    for key in keys:
        if not 0 <= getattr(params, key) <= 1:
            raise InputError(f"{section}.{key}: {getattr(params, key)!r} is not between 0 and 1")


SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ScenesParams:
    """The embedded dataset: rendered scenes with captions and boxes."""

    train: int = 2400
    """Number of training images."""
    val: int = 320
    """Number of validation images."""
    test: int = 512
    """Number of test images."""
    image_size: int = 160
    """Side of the square images, in pixels."""
    twin_share: float = 0.4
    """Share of each split's scenes that are near twins of another scene of the split."""
    seed: int = 0
    """Which scenes are drawn: the same seed, the same pictures."""

    def __post_init__(self) -> None:
        _at_least("dataset.scenes", self, train=2, val=2, test=2, image_size=96, seed=0)
        _share("dataset.scenes", self, "twin_share")


@dataclass(frozen=True)
class KarpathyParams:
    """A split JSON in the form of dataset_flickr8k.json, dataset_flickr30k.json and dataset_coco.json."""

    annotations: str = "dataset.json"
    """The split JSON, below dataset.root."""
    images: str = "images"
    """Folder of the pictures, below dataset.root."""
    restval: str = "train"
    """Where the split `restval` goes: train, val, test or skip."""

    def __post_init__(self) -> None:
        _choose("dataset.karpathy", "restval", self.restval, (*SPLITS, "skip"))


@dataclass(frozen=True)
class CocoPart:
    """One COCO annotation file."""

    split: str
    """train, val or test."""
    images: str
    """Folder of the pictures, below dataset.root."""
    captions: str
    """The caption annotations, below dataset.root."""
    instances: str | None = None
    """The instance annotations that bring the boxes, below dataset.root."""

    def __post_init__(self) -> None:
        _choose("dataset.coco.parts", "split", self.split, SPLITS)


@dataclass(frozen=True)
class CocoParams:
    """COCO caption annotations and image folders."""

    parts: tuple[CocoPart, ...] = ()
    """The annotation files: split, images, captions and, where boxes are wanted, instances of each."""
    test_share: float = 0.5
    """Share of the val images that becomes the test split where no part is test; chosen by a hash of the id."""

    def __post_init__(self) -> None:
        _share("dataset.coco", self, "test_share")


@dataclass(frozen=True)
class TableParams:
    """A CSV or Parquet with the columns image, caption and split: a person's own pictures."""

    file: str = "captions.csv"
    """The table, below dataset.root."""
    images: str = "."
    """Folder that the column `image` starts from, below dataset.root."""


@dataclass(frozen=True)
class DatasetParams:
    """Where images and captions come from."""

    source: str = "scenes"
    """scenes, karpathy, coco or table."""
    root: str = "data/raw"
    """Folder that a source other than `scenes` reads, relative to the repository or absolute."""
    scenes: ScenesParams = field(default_factory=ScenesParams)
    karpathy: KarpathyParams = field(default_factory=KarpathyParams)
    coco: CocoParams = field(default_factory=CocoParams)
    table: TableParams = field(default_factory=TableParams)

    def __post_init__(self) -> None:
        from stages.sources import SOURCES

        _choose("dataset", "source", self.source, tuple(SOURCES))

    def image_root(self, dataset: Path) -> Path:
        """The folder that `path` in images.parquet starts from; `dataset` is the folder of images.parquet."""
        return dataset / "images" if self.source == "scenes" else Path(self.root)


@dataclass(frozen=True)
class DetectorTrainParams:
    """How the small detector of the embedded scenes is trained."""

    steps: int = 1500
    """Number of optimizer steps."""
    batch_size: int = 8
    """Images per optimizer step."""
    learning_rate: float = 0.002
    """Highest learning rate of its schedule."""
    seed: int = 0
    """Seed of the first weights and of the order of the images."""

    def __post_init__(self) -> None:
        _at_least("detector.train", self, steps=1, batch_size=1, learning_rate=0, seed=0)


@dataclass(frozen=True)
class DetectorParams:
    """Which detector finds the regions and where its weights come from."""

    backend: str = "torchvision"
    """torchvision, detectron2 or precomputed."""
    architecture: str = "scenes"
    """`scenes` (small, trained here), a builder of torchvision.models.detection, a detectron2 config (a name of
    its model zoo, `visual_genome`, or a file), or the form of precomputed features (scan, tsv, npz)."""
    weights: str = "train"
    """train (only `scenes`), default (what the architecture's own library publishes), random, a file or a URL;
    for `precomputed`, the folder or file that holds the features."""
    train: DetectorTrainParams = field(default_factory=DetectorTrainParams)

    def __post_init__(self) -> None:
        from stages.detectors import DETECTORS

        _choose("detector", "backend", self.backend, tuple(DETECTORS))
        if self.weights == "train" and (self.backend, self.architecture) != ("torchvision", "scenes"):
            raise InputError(
                "detector.weights: train is only for detector.architecture scenes with detector.backend "
                "torchvision; expected default, random, a file or a URL"
            )


@dataclass(frozen=True)
class RegionsParams:
    """Which regions are kept of an image, and how they are extracted."""

    per_image: int = 36
    """At most this many regions are kept of an image."""
    min_per_image: int = 36
    """At least this many; below per_image the number adapts to how many score min_score."""
    min_score: float = 0.2
    """Confidence from which a region beyond min_per_image is kept."""
    nms_iou: float = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""
    boxes: str = "detected"
    """detected, or given: the boxes that the dataset brings."""
    geometry: bool = False
    """Put the box (its corners and area as shares of the image) at the end of each feature: what a caption says of
    places is not in the pooled features."""
    dtype: str = "float16"
    """float16 or float32: how features are stored."""
    batch_size: int = 8
    """Images in one forward pass."""
    shard_size: int = 256
    """Images in one shard, the unit of resuming and of fan-out."""
    max_pixels: int = 50_000_000
    """An image that claims more pixels than this is rejected before it is decoded."""
    max_rejected_share: float = 0.01
    """Share of rejected images above which the stage stops."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        _choose("regions", "boxes", self.boxes, ("detected", "given"))
        _choose("regions", "dtype", self.dtype, ("float16", "float32"))
        _at_least("regions", self, per_image=1, min_per_image=1, batch_size=1, shard_size=1, max_pixels=1)
        _share("regions", self, "min_score", "nms_iou", "max_rejected_share")
        if self.min_per_image > self.per_image:
            raise InputError(
                f"regions.min_per_image: {self.min_per_image} is above regions.per_image, {self.per_image}"
            )


@dataclass(frozen=True)
class CaptionsParams:
    """How captions become word ids."""

    min_count: int = 1
    """Times a word must occur in the train split to be in the vocabulary."""
    max_words: int = 60
    """Words of a caption beyond this are dropped."""
    vocabulary: str | None = None
    """A SCAN vocabulary JSON to use instead of building one."""
    start_end: bool = False
    """Put <start> and <end> around every caption, as the released code does."""
    lexicon: str = "scenes"
    """Words that foils change and that count as content: scenes (with dataset.source scenes), photographs (COCO's
    objects, common colours and more) or a lexicon's JSON file (its form: stages/foils/lexicon.py)."""

    def __post_init__(self) -> None:
        _at_least("captions", self, min_count=1, max_words=1)


@dataclass(frozen=True)
class ModelParams:
    """The switches of CAMP; meaning and allowed values: camp_model.config.CampConfig."""

    word_dim: int = 300
    dim: int = 1024
    message_passing: str = "both"
    hops: int = 1
    gate: str = "scalar"
    gate_context: float = 3.0
    fusion: str = "concat"
    residual: bool = True
    pooling: str = "attention"
    pooling_heads: int = 8
    matching: str = "mlp"

    def __post_init__(self) -> None:
        self.config(vocab_size=4, region_dim=1)

    def config(self, vocab_size: int, region_dim: int) -> CampConfig:
        """The model's config, once the data has said its two sizes."""
        try:
            return CampConfig(vocab_size=vocab_size, region_dim=region_dim, **dataclasses.asdict(self))
        except ValueError as error:
            raise InputError(str(error)) from None


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
        _choose("train", "loss", self.loss, ("hardest_bce", "bce", "triplet"))
        _choose("train", "gate_target", self.gate_target, ("words", "pair"))
        _choose("train", "schedule", self.schedule, ("constant", "step", "cosine"))
        _choose("train", "precision", self.precision, ("fp32", "tf32", "bf16", "fp16"))
        _choose("train", "device", self.device, ("auto", "cpu", "cuda", "mps"))
        _at_least(
            "train", self, margin=0, gate_supervision=0, random_negative_steps=0, epochs=1, batch_size=2,
            micro_batch=0, learning_rate=0, warmup_steps=0, step_epochs=1, weight_decay=0, gradient_clip=0,
            patience=0, processes=1, machines=1, checkpoint_steps=1, seed=0, gate_temperature=1,
        )  # fmt: skip
        _share("train", self, "dropout")
        if self.batch_size % (self.processes * self.machines):
            raise InputError(
                f"train.batch_size: {self.batch_size} does not divide among train.processes, {self.processes}, on "
                f"train.machines, {self.machines}"
            )


@dataclass(frozen=True)
class EvaluateParams:
    """What is measured."""

    splits: tuple[str, ...] = ("test",)
    """Splits to evaluate: val, test."""
    protocol: str = "full"
    """full, coco_1k (mean of five folds of 1,000 images) or coco_5k (the first 5,000 images)."""
    ensemble: tuple[str, ...] = ()
    """Checkpoint folders whose scores are averaged with the trained model's."""
    gate_pairs: int = 2000
    """Pairs of each kind that the gate means are taken over."""
    foils: int = 3000
    """Foils scored at most, as many of each kind as can be; 0: none."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        for split in self.splits:
            _choose("evaluate", "splits", split, SPLITS)
        if not self.splits:
            raise InputError("evaluate.splits: is empty; expected some of train, val, test")
        _choose("evaluate", "protocol", self.protocol, ("full", "coco_1k", "coco_5k"))
        _at_least("evaluate", self, gate_pairs=1, foils=0)


@dataclass(frozen=True)
class ReportParams:
    """What the report page shows."""

    queries: int = 12
    """Queries shown in each direction."""
    top_k: int = 5
    """Results shown for a query."""
    foils: int = 2
    """Foils of each kind shown, and half as many of the worst; 0: none."""
    seed: int = 0
    """Seed of the choice of queries."""

    def __post_init__(self) -> None:
        _at_least("report", self, queries=1, top_k=1, foils=0)


@dataclass(frozen=True)
class Params:
    """All of params.yaml."""

    dataset: DatasetParams = field(default_factory=DatasetParams)
    detector: DetectorParams = field(default_factory=DetectorParams)
    regions: RegionsParams = field(default_factory=RegionsParams)
    captions: CaptionsParams = field(default_factory=CaptionsParams)
    model: ModelParams = field(default_factory=ModelParams)
    train: TrainParams = field(default_factory=TrainParams)
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)
    report: ReportParams = field(default_factory=ReportParams)

    def __post_init__(self) -> None:
        if self.train.gate_supervision and (self.model.gate == "none" or self.model.message_passing == "none"):
            # Ablations switch gates or messages off with one key; the term then has nothing to act on.
            object.__setattr__(self, "train", dataclasses.replace(self.train, gate_supervision=0.0))
        if self.captions.lexicon == "scenes" and self.dataset.source != "scenes":
            # The words of drawn scenes, and their ground truth, say nothing of other pictures.
            object.__setattr__(self, "captions", dataclasses.replace(self.captions, lexicon="photographs"))
        if self.regions.boxes == "given" and self.dataset.source not in ("scenes", "coco"):
            raise InputError(
                f"regions.boxes: given needs a dataset that brings boxes (scenes, coco), not dataset.source "
                f"{self.dataset.source}"
            )


T = TypeVar("T")


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the type `kind` of a dataclass field; `where` names its key in errors."""
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(value, kind, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: {value!r} is not a list")
        return tuple(_convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        name = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
        raise InputError(f"{where}: {value!r} is not {name}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{where}: {value!r} is not a finite number")
    return value


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `kind` from plain values.

    Raises:
        InputError: an unknown key, a key of another type, or a value that is not allowed.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where or 'params'}: {values!r} is not a mapping")
    hints = typing.get_type_hints(kind)
    unknown = [key for key in values if key not in hints]
    if unknown:
        prefix = f"{where}." if where else ""
        raise InputError(f"{prefix}{unknown[0]}: unknown key; allowed here: {', '.join(hints)}")
    prefix = f"{where}." if where else ""
    converted = {key: _convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()}
    try:
        return kind(**converted)
    except TypeError:
        missing = [
            item.name
            for item in dataclasses.fields(kind)  # type: ignore[arg-type]
            if item.name not in values
            and item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
        ]
        raise InputError(f"{prefix}{missing[0]}: is missing") from None


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing or no YAML, or holds a wrong key or value; the message names both.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected the pipeline's params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML: {error}") from None
    try:
        return from_dict(Params, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def stage_main(run: typing.Callable[[], None], arguments: bool = False) -> None:
    """Run a stage's entry point, alone on its outputs; an InputError becomes one line on stderr and exit code 2.

    Exit code 75 (try again later): another process holds the outputs. `arguments`: `run` reads the command line itself;
    otherwise nothing may stand there, so that a misplaced option does not start the stage without it.
    """
    from stages.locks import Held, hold_own_outputs

    if not arguments:
        parser = argparse.ArgumentParser(
            description=sys.modules["__main__"].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="Everything is set in params.yaml; a stage takes no options.",
        )
        parser.parse_args()
    try:
        with hold_own_outputs():
            run()
    except (InputError, Held) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 75) from None


def _merge(base: Any, overlay: Any) -> None:
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def apply_preset(preset: Path, path: Path = Path("params.yaml")) -> None:
    """Lay the keys of `preset` over params.yaml, keeping its comments; nothing is written if the result is wrong."""
    from ruamel.yaml import YAML

    if not preset.is_file():
        raise InputError(f"{preset}: no such preset file")
    round_trip = YAML()
    round_trip.width = 200
    merged = round_trip.load(path.read_text(encoding="utf-8"))
    _merge(merged, round_trip.load(preset.read_text(encoding="utf-8")))
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            round_trip.dump(merged, file)
        try:
            load_params(temporary)
        except InputError as error:
            raise InputError(f"{preset}: {str(error).removeprefix(f'{temporary}: ')}") from None
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Lay a preset over params.yaml, or check params.yaml alone.")
    parser.add_argument("preset", type=Path, nargs="?", help="a file of presets/")
    preset = parser.parse_args().preset
    if preset is not None:
        apply_preset(preset)
    load_params()
    print("params.yaml is valid" + (f", with {preset} laid over it" if preset else ""))


if __name__ == "__main__":
    stage_main(main, arguments=True)
