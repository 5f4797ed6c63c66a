"""All of params.yaml: the sections together."""

from typing import Self

from pydantic import model_validator

from stages.params.captions import CaptionsParams, check_lexicon
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.evaluate import EvaluateParams
from stages.params.index import IndexParams
from stages.params.model import ModelParams
from stages.params.regions import RegionsParams, check_boxes
from stages.params.report import ReportParams
from stages.params.section import Section
from stages.params.train import TrainParams, check_foils, check_gates


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
        check_boxes(self.regions, self.dataset, self.detector)
        check_lexicon(self.captions, self.dataset)
        check_gates(self.train, self.model)
        check_foils(self.train, self.captions)
        if self.model.gate_evidence and not self.regions.geometry:
            raise ValueError(
                "model.gate_evidence: true reads where regions lie, but regions.geometry is false; expected true"
            )
        return self
