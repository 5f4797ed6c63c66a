"""Trains the scenes detector, and measures how well it finds objects."""

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from camp_model.regions import ImageRegions
from stages.detectors.base import Description, extract
from stages.detectors.scenes import COARSE, build_network
from stages.detectors.scenes_dataset import TrainingScene, read_names, read_scenes
from stages.detectors.torchvision import TorchvisionExtractor
from stages.detectors.weights import save_state
from stages.params.detector import DetectorTrainParams, TorchvisionParams
from stages.params.regions import RegionsParams

ATTRIBUTE_WEIGHT = 12.0
BOX_WEIGHT = 2.0
REPORT_SECONDS = 5.0
MEASURED = RegionsParams(per_image=40, min_per_image=1, min_score=0.05)
"""The selection of boxes that mAP is measured on: all in which the detector has any confidence."""
NMS_IOU = TorchvisionParams().nms_iou
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _batch(scenes: Sequence[TrainingScene], flip: bool) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Images [B, 3, H, W] in 0..1 and their targets; `flip` mirrors both."""
    images = torch.stack([scene.pixels for scene in scenes]).float() / 255
    width = images.shape[3]
    targets = []
    for scene in scenes:
        boxes = scene.boxes
        if flip:
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        targets.append({"boxes": boxes, "labels": scene.labels, "attributes": scene.attributes})
    return images.flip(3) if flip else images, targets


def losses(
    network: FasterRCNN, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Faster R-CNN's four losses and the binary cross-entropy of the attributes of the matched proposals."""
    sizes = [(images.shape[2], images.shape[3])] * len(images)
    maps = network.backbone(images)
    proposals, proposal_losses = network.rpn(ImageList(images, sizes), {COARSE: maps[COARSE]}, targets)
    heads = network.roi_heads
    proposals, matched, labels, regression = heads.select_training_samples(proposals, targets)
    features = heads.box_head(heads.box_roi_pool(maps, proposals, sizes))
    logits, deltas = heads.box_predictor(features)
    classification, box = fastrcnn_loss(logits, deltas, labels, regression)
    wanted = torch.cat([target["attributes"][rows] for target, rows in zip(targets, matched, strict=True)])
    real = torch.cat(labels) > 0
    said = heads.box_predictor.attributes(features[real])
    # Boxes of COCO have no attributes, and the mean of nothing would be nan.
    attributes = functional.binary_cross_entropy_with_logits(said, wanted[real]) if said.numel() else said.sum()
    own = {
        "classification": classification,
        "box": BOX_WEIGHT * box,
        "attributes": ATTRIBUTE_WEIGHT * attributes,
    }
    return {**proposal_losses, **own}


def train_network(network: FasterRCNN, scenes: Sequence[TrainingScene], params: DetectorTrainParams) -> float:
    """Train in place, deterministically on CPU for one seed; return the mean loss of the last tenth of the steps."""
    generator = torch.Generator().manual_seed(params.seed)
    torch.manual_seed(params.seed)  # the samplers inside torchvision draw from the global generator
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (network.transform.image_mean, network.transform.image_std)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=params.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=params.learning_rate, total_steps=params.steps + 1, pct_start=0.1
    )
    network.train().to(memory_format=torch.channels_last)
    history: list[float] = []
    order: list[int] = []
    started = reported = time.monotonic()
    for step in range(1, params.steps + 1):
        while len(order) < params.batch_size:
            order += torch.randperm(len(scenes), generator=generator).tolist()
        picked, order = order[: params.batch_size], order[params.batch_size :]
        flip = bool(torch.randint(2, (1,), generator=generator))
        images, targets = _batch([scenes[i] for i in picked], flip)
        terms = losses(network, (images - mean) / std, targets)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
        if time.monotonic() - reported > REPORT_SECONDS or step == params.steps:
            reported = time.monotonic()
            summary = ", ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in terms.items())
            print(
                f"step {step}/{params.steps}, {reported - started:.0f} s: loss {history[-1]:.3f} ({summary})",
                flush=True,
            )
    network.eval()
    return float(np.mean(history[-max(params.steps // 10, 1) :]))


def map50(detected: Sequence[ImageRegions], scenes: Sequence[TrainingScene], num_categories: int) -> float:
    """Mean average precision at IoU 0.5 over the categories that occur, as COCO computes it (0 to 1)."""
    truth = COCO()
    annotations = [
        {
            "bbox": _xywh(box),
            "category_id": int(label),
            "image_id": i,
            "area": float(np.prod(_xywh(box)[2:])),
            "iscrowd": 0,
        }
        for i, scene in enumerate(scenes)
        for box, label in zip(scene.boxes.tolist(), scene.labels, strict=True)
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(scenes))],
        "categories": [{"id": label} for label in range(1, num_categories + 1)],
        "annotations": [{"id": i + 1, **annotation} for i, annotation in enumerate(annotations)],
    }
    results = [
        {"image_id": i, "category_id": int(label) + 1, "bbox": _xywh(box), "score": float(score)}
        for i, regions in enumerate(detected)
        for box, label, score in zip(regions.boxes.tolist(), regions.classes, regions.scores, strict=True)
    ]
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    # precision is [IoU thresholds, recalls, categories, areas, detections]; -1 where a category does not occur
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def _xywh(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def measure(extractor: TorchvisionExtractor, scenes: Sequence[TrainingScene], batch_size: int) -> float:
    """mAP@0.5 on scenes, 0 to 1."""
    detected = extract(extractor, [scene.pixels.permute(1, 2, 0).numpy() for scene in scenes], batch_size=batch_size)
    return map50(detected, scenes, len(extractor.categories))


def train_detector_of_scenes(
    settings: DetectorTrainParams, image_root: Path, dataset: Path, out: Path, max_pixels: int
) -> dict[str, float]:
    """Train the scenes detector, write it to `out`, and return its metrics.

    Pictures of more than `max_pixels` are not decoded.

    Raises:
        InputError: the dataset has no boxes, or a picture cannot be read.
    """
    scenes, held_out = (read_scenes(image_root, dataset, split, max_pixels) for split in ("train", "val"))
    categories, attributes = read_names(dataset)
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
    return {"val_map50": score, "train_loss": loss}
