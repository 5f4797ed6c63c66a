"""All of params.yaml: the sections together."""

from typing import Self

from pydantic import model_validator

from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.evaluate import EvaluateParams
from stages.params.index import IndexParams
from stages.params.model import ModelParams
from stages.params.regions import RegionsParams, check_backend
from stages.params.report import ReportParams
from stages.params.section import Section
from stages.params.train import TrainParams


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

    @model_validator(mode="after")
    def _fit(self) -> Self:
        """What the keys of several sections must be together."""
        check_backend(self.regions, self.detector.backend)
        source, supervision, foils = self.dataset.source, self.train.gate_supervision, self.train.foil_weight
        if self.regions.boxes == "given" and source not in ("scenes", "coco"):
            raise ValueError(
                f"regions.boxes: given needs a dataset that brings boxes (scenes, coco), not dataset.source {source}"
            )
        if self.captions.lexicon == "scenes" and source != "scenes":
            raise ValueError(
                f"captions.lexicon: scenes says nothing of the pictures of dataset.source {source}; expected "
                "photographs or a lexicon's JSON file"
            )
        if supervision and (why := self.model.config(vocab_size=4, region_dim=1).why_no_gates()):
            raise ValueError(f"train.gate_supervision: {supervision:g} acts on gates, but {why}; expected 0")
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
