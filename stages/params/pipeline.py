"""All of params.yaml: the sections together, and how the file is read."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stages.errors import InputError
from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.evaluate import EvaluateParams
from stages.params.model import ModelParams
from stages.params.regions import RegionsParams
from stages.params.report import ReportParams
from stages.params.train import TrainParams


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
        if self.train.gate_supervision and self.model.config(vocab_size=4, region_dim=1).why_no_gates():
            # Ablations switch gates, messages or the matcher with one key; the term then has nothing to act on.
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
