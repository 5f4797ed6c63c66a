"""Stage train_detector: the detector of the embedded scenes is trained; a pretrained one is fetched and identified."""

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from camp_model.files import replacing_folder, write_json
from stages.contracts import read_table
from stages.detectors import DETECTORS
from stages.detectors.base import Description, extract, tell_changes
from stages.detectors.images import RejectedImage, read_image
from stages.detectors.scenes import build_network
from stages.detectors.scenes_training import Scene, map50, train_network
from stages.detectors.torchvision import TorchvisionExtractor
from stages.detectors.weights import save_state
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams, TorchvisionParams
from stages.params.regions import RegionsParams
from stages.params.section import StageSections


class TrainDetectorSections(StageSections):
    """What the stage reads of params.yaml."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()


# Selection under which mAP is measured: all that the detector is at all confident of.
MEASURED = RegionsParams(per_image=40, min_per_image=1, min_score=0.05)
NMS_IOU = TorchvisionParams().nms_iou
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _names(table: pa.Table, path: Path) -> tuple[list[str], list[str]]:
    """Categories and attributes that occur, sorted."""
    categories = sorted(set(table["category"].to_pylist()))
    if not categories:
        raise InputError(f"{path}: is empty; detector.weights: train needs a dataset with boxes")
    return categories, sorted({name for row in table["attributes"].to_pylist() for name in row or ()})


def read_scenes(params: TrainDetectorSections, dataset: Path, split: str) -> list[Scene]:
    """The images of a split with their objects, all of one size, in memory.

    Raises:
        InputError: an image or table cannot be read, or the images differ in size.
    """
    path = dataset / "boxes.parquet"
    table = read_table(path, ("image_id", "x0", "y0", "x1", "y1", "category", "attributes"))
    categories, attributes = _names(table, path)
    objects: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        objects.setdefault(row["image_id"], []).append(row)
    root = params.dataset.image_root(dataset)
    images = read_table(dataset / "images.parquet", ("image_id", "path", "split", "sha256"))
    scenes = []
    for image in images.to_pylist():
        if image["split"] != split or image["image_id"] not in objects:
            continue
        try:
            pixels = read_image(root / image["path"], image["sha256"], MEASURED.max_pixels)
        except RejectedImage as error:
            raise InputError(f"{root / image['path']}: {error}") from None
        rows = objects[image["image_id"]]
        scenes.append(
            Scene(
                pixels=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
                boxes=torch.tensor([[row[side] for side in ("x0", "y0", "x1", "y1")] for row in rows]),
                labels=torch.tensor([categories.index(row["category"]) + 1 for row in rows]),
                attributes=torch.tensor(
                    [[float(name in (row["attributes"] or ())) for name in attributes] for row in rows]
                ),
            )
        )
    if not scenes:
        raise InputError(f"{path}: holds no box of the split {split}")
    if len({scene.pixels.shape for scene in scenes}) > 1:
        raise InputError(f"{dataset / 'images.parquet'}: images differ in size; detector.weights: train needs one size")
    return scenes


def measure(extractor: TorchvisionExtractor, scenes: Sequence[Scene], batch_size: int) -> float:
    """mAP@0.5 on scenes, 0 to 1."""
    found = extract(extractor, [scene.pixels.permute(1, 2, 0).numpy() for scene in scenes], batch_size=batch_size)
    return map50(found, scenes, len(extractor.categories))


def train(params: TrainDetectorSections, dataset: Path, out: Path) -> dict[str, float]:
    """Train the scenes detector into `out`; its metrics."""
    settings = params.detector.train
    scenes, held_out = (read_scenes(params, dataset, split) for split in ("train", "val"))
    table = read_table(dataset / "boxes.parquet", ("category", "attributes"))
    categories, attributes = _names(table, dataset / "boxes.parquet")
    config = {"image_size": scenes[0].pixels.shape[1], "mean": MEAN, "std": STD}
    torch.manual_seed(settings.seed)
    network = build_network(config, len(categories), len(attributes))
    started = time.monotonic()
    loss = train_network(network, scenes, settings)
    description = Description(
        backend="torchvision",
        architecture="scenes",
        weights_source="trained on data/dataset",
        weights_sha256=save_state(network.state_dict(), out),
        region_dim=network.roi_heads.box_predictor.cls_score.in_features,
        categories=categories,
        attributes=attributes,
        config=config,
    )
    description.save(out)
    seconds = time.monotonic() - started
    score = measure(TorchvisionExtractor(network, description, MEASURED, "cpu", NMS_IOU), held_out, settings.batch_size)
    print(f"mAP@0.5 on val: {score:.3f} after {settings.steps} steps in {seconds:.0f} s")
    return {"val_map50": score, "train_loss": loss, "seconds": round(seconds, 1)}


def train_detector(params: TrainDetectorSections, dataset: Path, out: Path, metrics: Path) -> None:
    """Bring the detector that the params name into `out`, trained or fetched, and write its metrics.

    Raises:
        InputError: the dataset or the weights cannot be used; `out` is left as it was.
    """
    values: dict[str, Any] = {"pretrained": params.detector.weights != "random"}
    with replacing_folder(out) as building:
        if params.detector.weights == "train":
            values = train(params, dataset, building)
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
