"""The inputs of the report."""

from dataclasses import dataclass
from pathlib import Path

from stages.params.dataset import DatasetParams
from stages.params.regions import RegionsParams
from stages.params.report import ReportParams
from stages.params.section import StageSections


class ReportSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    dataset: DatasetParams = DatasetParams()
    regions: RegionsParams = RegionsParams()
    report: ReportParams = ReportParams()


@dataclass(frozen=True)
class Inputs:
    """Folders that the report reads."""

    dataset: Path = Path("data/dataset")
    regions: Path = Path("data/regions")
    captions: Path = Path("data/captions")
    evaluation: Path = Path("data/evaluation")
    model: Path = Path("models/camp")
    metrics: Path = Path("metrics")
    plots: Path = Path("plots")
