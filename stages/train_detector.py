"""Stage train_detector: train the detector of the embedded scenes, or get a pretrained one and record its identity."""

import importlib
import math
from pathlib import Path
from typing import Any

from camp_model.files import replacing_folder, write_json
from stages.detectors import DETECTORS
from stages.detectors.base import Description, tell_changes
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.params.section import StageSections


class TrainDetectorSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()
    regions: RegionsParams = RegionsParams()
    """Only `max_pixels` counts here."""


def train_detector(params: TrainDetectorSections, dataset: Path, out: Path, metrics: Path) -> None:
    """Train or load the detector that the params name, write it to `out`, and write its metrics.

    Raises:
        InputError: the dataset or the weights cannot be used, or training diverges; `out` is left as it was.
    """
    values: dict[str, Any] = {"pretrained": params.detector.weights != "random"}
    with replacing_folder(out) as building:
        if params.detector.weights == "train":
            from stages.detectors.scenes_training import train_detector_of_scenes

            image_root, largest = params.dataset.image_root(dataset), params.regions.max_pixels
            values = train_detector_of_scenes(params.detector.train, image_root, dataset, building, largest)
            if not math.isfinite(values["train_loss"]):
                raise InputError(
                    "detector.train: the loss is not finite; a lower detector.train.learning_rate may help"
                )
        else:
            backend = importlib.import_module(DETECTORS[params.detector.backend])
            description: Description = backend.resolve(params.detector, building, dataset)
            description.save(building)
            print(f"{description.backend} {description.architecture}, weights {description.weights_source}")
        tell_changes(out, building)
    write_json(metrics, values)


def main() -> None:
    train_detector(
        read_params(TrainDetectorSections), Path("data/dataset"), Path("data/detector"), Path("metrics/detector.json")
    )


if __name__ == "__main__":
    stage_main(main)
