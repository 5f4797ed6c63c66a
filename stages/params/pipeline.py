"""All of params.yaml: the sections together."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from stages.errors import InputError
from stages.params import document
from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.evaluate import EvaluateParams, check_gates, check_sizes
from stages.params.index import IndexParams
from stages.params.model import ModelParams
from stages.params.regions import RegionsParams, check_backend
from stages.params.report import ReportParams
from stages.params.section import PARAMS, TRAINED_MODEL, Section, check_no_output
from stages.params.train import TrainParams

REMOVED_KEYS = {
    "regions.nms_iou": "is detector.torchvision.nms_iou and detector.detectron2.nms_iou now; expected it there",
    "train.gate_negatives": "was removed: pairs that do not match weigh as much as others; expected no such key",
}
"""Former keys, and what replaces each."""


class Params(Section):
    """All of params.yaml."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()
    regions: RegionsParams = RegionsParams()
    captions: CaptionsParams = CaptionsParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    index: IndexParams = IndexParams()
    evaluate: EvaluateParams = EvaluateParams()
    report: ReportParams = ReportParams()

    @model_validator(mode="before")
    @classmethod
    def _reject_removed_keys(cls, values: Any) -> Any:
        """Reject former keys; the message says what replaces them."""
        for key, now in REMOVED_KEYS.items():
            if _lookup(values, key):
                raise ValueError(f"{key}: {now}")
        if _lookup(values, "model.matching") == ["scan"]:
            raise ValueError("model.matching: scan is model.matcher: scan now; expected it there, mlp or cosine here")
        return values

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        """Check keys that depend on keys of other sections."""
        check_backend(self.regions, self.detector.backend)
        source, supervision, foils = self.dataset.source, self.train.gate_supervision, self.train.foil_weight
        if self.regions.boxes == "given" and source not in ("scenes", "coco"):
            raise ValueError(
                f"regions.boxes: given needs a dataset that brings boxes (scenes, coco), not dataset.source {source}"
            )
        parts = self.dataset.coco.parts
        if self.regions.boxes == "given" and source == "coco" and not any(part.instances for part in parts):
            raise ValueError(
                "regions.boxes: given needs boxes, but no part of dataset.coco.parts names its instances; expected an "
                "annotation file of them"
            )
        if self.regions.geometry and (self.detector.backend, self.detector.architecture) == ("precomputed", "scan"):
            raise ValueError("regions.geometry: true needs boxes, but detector.architecture scan has none")
        if self.captions.lexicon == "scenes" and source != "scenes":
            raise ValueError(
                f"captions.lexicon: scenes says nothing of the pictures of dataset.source {source}; expected "
                "photographs or a lexicon's JSON file"
            )
        config = self.model.config(vocab_size=4, region_dim=1)
        check_gates(self.evaluate.gates, config)
        if supervision and (why := config.no_gates_reason()):
            raise ValueError(f"train.gate_supervision: {supervision:g} acts on gates, but {why}; expected 0")
        self._check_precision()
        if self.train.word_vectors is not None and self.model.text == "transformer":
            raise ValueError(
                f"train.word_vectors: {self.train.word_vectors}, but model.text transformer has no table of word "
                "embeddings; expected null"
            )
        if source == "scenes":
            check_sizes(self.evaluate, self.dataset.scenes.to_dict())
        if self.evaluate.eccv and source not in ("karpathy", "coco"):
            raise ValueError(
                f"evaluate.eccv: true needs captions that bear COCO's own ids, not those of dataset.source {source}; "
                "expected karpathy, coco, or false"
            )
        if foils and not self.captions.train_foils:
            raise ValueError(
                f"train.foil_weight: {foils:g} needs foils of the captions that are trained on, but "
                "captions.train_foils is false; expected true, or 0"
            )
        if self.model.gate_evidence and not self.regions.geometry:
            raise ValueError(
                "model.gate_evidence: true reads where regions lie, but regions.geometry is false; expected true"
            )
        return self

    @model_validator(mode="after")
    def _check_outputs(self) -> Self:
        """Check that no stage reads, or stores, what DVC removes before the stage runs."""
        captions = ("data/captions", TRAINED_MODEL)  # a training that stops would leave the model's vocabulary nowhere
        for key, path, outputs in (
            ("dataset.root", None if self.dataset.source == "scenes" else self.dataset.root, ("data/dataset",)),
            ("captions.vocabulary", self.captions.vocabulary, captions),
            ("captions.lexicon", self.captions.lexicon, captions),
            ("train.word_vectors", self.train.word_vectors, (TRAINED_MODEL,)),
            ("index.engine", self.index.engine, ("data/index",)),
        ):
            if path is not None:
                check_no_output(key, path, *outputs)
        return self

    def _check_precision(self) -> None:
        trained, evaluated = self.train.precision, self.evaluate.precision
        for key, precision, device in (
            ("train", trained, self.train.device),
            ("evaluate", f"trained ({trained})" if evaluated == "trained" else evaluated, self.evaluate.device),
        ):
            if precision in ("fp16", "trained (fp16)") and device in ("cpu", "mps"):
                raise ValueError(
                    f"{key}.precision: {precision} needs a CUDA device, but {key}.device is {device}; expected fp32 or "
                    "bf16"
                )


def check_dvc_keys(path: Path = PARAMS, pipeline: Path = Path("dvc.yaml")) -> None:
    """Check that params.yaml has every key that dvc.yaml names: each has a default here, but DVC refuses a stage whose
    key is missing, possibly hours after the first stage began.

    Raises:
        InputError: a key is missing, as in a params.yaml from before an update.
    """
    if not pipeline.is_file():
        return
    values, defaults = document.read(path), Params().to_dict()
    stages = (document.read(pipeline).get("stages") or {}).values()
    keys = dict.fromkeys(key for stage in stages for key in (stage or {}).get("params") or () if isinstance(key, str))
    lacking = [key for key in keys if _lookup(defaults, key) and not _lookup(values, key)]
    if lacking:
        expected = ", ".join(f"{key}: {json.dumps(_lookup(defaults, key)[0])}" for key in lacking)
        raise InputError(
            f"{path}: lacks {', '.join(lacking)}, without which DVC runs no stage that reads it; expected, such as the "
            f"defaults, {expected}"
        )


def _lookup(values: Any, dotted: str) -> list[Any]:
    """The value at a dotted key, in a list; an empty one where there is none."""
    for key in dotted.split("."):
        if not isinstance(values, dict) or key not in values:
            return []
        values = values[key]
    return [values]
