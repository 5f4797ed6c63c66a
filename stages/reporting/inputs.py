"""What the report is drawn from."""

from dataclasses import dataclass
from pathlib import Path

from stages.params.dataset import DatasetParams
from stages.params.regions import RegionsParams
from stages.params.report import ReportParams
from stages.params.section import StageSections


class ReportSections(StageSections):
    """What the stage reads of params.yaml."""

    dataset: DatasetParams = DatasetParams()
    regions: RegionsParams = RegionsParams()
    report: ReportParams = ReportParams()


@dataclass(frozen=True)
class Inputs:
    """Folders that the report is drawn from."""

    dataset: Path = Path("data/dataset")
    regions: Path = Path("data/regions")
    captions: Path = Path("data/captions")
    evaluation: Path = Path("data/evaluation")
    model: Path = Path("models/camp")
    metrics: Path = Path("metrics")
    plots: Path = Path("plots")
