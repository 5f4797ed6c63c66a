"""Turns a two-stage detector of any library into a region extractor.

Faster R-CNN computes features of its proposals, classifies them and moves them to their final boxes; common code then
returns the features of the proposals. Here features are pooled again at the final boxes, and the class, attribute and
score of a region are predicted from the stored feature, so that box, feature and label belong together.

Shapes: B images of a batch, P proposals of an image, k regions of an image, n regions of the batch, D region_dim, C
classes, A attributes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image

from camp_model.regions import ImageRegions
from stages.detectors.base import Description, NetworkInput
from stages.detectors.selection import select
from stages.params.regions import RegionsParams

Sizes = list[tuple[int, int]]


class TwoStageExtractor(ABC):
    """A RegionExtractor that uses a two-stage network; subclasses implement each library's own part."""

    size_divisor = 1
    """Height and width of a batch are padded to a multiple of this."""

    def __init__(self, description: Description, params: RegionsParams, device: str, nms_iou: float) -> None:
        self.fingerprint = description.fingerprint
        self.region_dim = description.region_dim
        self.categories = description.categories
        self.attributes = description.attributes
        self.params = params
        self.nms_iou = nms_iou
        self.candidates = params.replace(
            per_image=2 * params.per_image,
            min_per_image=2 * params.min_per_image,
            min_score=params.min_score / 2,
        )
        self.device = torch.device(device)

    @abstractmethod
    def resize(self, image: np.ndarray) -> torch.Tensor:
        """uint8 RGB [H, W, 3] -> uint8 RGB [3, h, w] at the network's input size."""

    @abstractmethod
    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 RGB [3, h, w] on the device -> float32 as the network expects it."""

    @abstractmethod
    def maps(self, images: torch.Tensor) -> Any:
        """[B, 3, H, W] -> the backbone's feature maps."""

    @abstractmethod
    def proposals(self, images: torch.Tensor, maps: Any, sizes: Sizes) -> list[torch.Tensor]:
        """The first stage's boxes [P, 4] of each image."""

    @abstractmethod
    def pool(self, maps: Any, boxes: list[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        """The features of all boxes, as the box predictor reads them: [n, D]."""

    @abstractmethod
    def predict(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The predictor's raw class logits [n, classes with background] and box deltas."""

    @abstractmethod
    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability of each class without the background: [n, C]."""

    @abstractmethod
    def decode(self, deltas: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """The boxes [n, 4] moved by the deltas of their classes [n]."""

    def attribute_probabilities(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor | None:
        """[n, A], or None for a network without attributes."""
        return None

    def prepare(self, image: np.ndarray) -> NetworkInput:
        pixels = self.resize(image)
        height, width = (-(-side // self.size_divisor) * self.size_divisor for side in pixels.shape[1:])
        return NetworkInput(pixels, width=image.shape[1], height=image.shape[0], group=(height, width))

    @torch.inference_mode()
    def forward(
        self, batch: Sequence[NetworkInput], image_boxes: Sequence[np.ndarray] | None = None
    ) -> list[ImageRegions]:
        sizes: Sizes = [(item.pixels.shape[1], item.pixels.shape[2]) for item in batch]
        images = self.stack(batch)
        maps = self.maps(images)
        if image_boxes is None:
            boxes = self._detect(images, maps, sizes)
        else:
            boxes = [self._scale(item, own) for item, own in zip(batch, image_boxes, strict=True)]
        return self._describe(batch, boxes, self.pool(maps, boxes, sizes), detected=image_boxes is None)

    def stack(self, batch: Sequence[NetworkInput]) -> torch.Tensor:
        """The network's input [B, 3, H, W]: normalised, then padded with zeros to the size of the group."""
        images = torch.zeros((len(batch), 3, *batch[0].group), device=self.device)
        for i, item in enumerate(batch):
            _, height, width = item.pixels.shape
            images[i, :, :height, :width] = self.normalise(item.pixels.to(self.device, non_blocking=True))
        return images

    def _scale(self, item: NetworkInput, boxes: np.ndarray) -> torch.Tensor:
        """Boxes in pixels of the original image -> in pixels of the network's input, clipped to it."""
        height, width = item.pixels.shape[1:]
        scale = torch.tensor([width / item.width, height / item.height] * 2, device=self.device)
        scaled = torch.as_tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4), device=self.device) * scale
        clipped: torch.Tensor = clip_boxes_to_image(scaled, (height, width))
        return clipped

    def _detect(self, images: torch.Tensor, maps: Any, sizes: Sizes) -> list[torch.Tensor]:
        """Detect the final boxes of each image, in pixels of the network's input: twice as many as will be kept, since
        the features at the final boxes may show that two boxes are of the same object."""
        # An image without detections gets one region: all of it.
        whole = [torch.tensor([[0, 0, width, height]], device=self.device).float() for height, width in sizes]
        proposed = self.proposals(images, maps, sizes)
        proposals = [boxes if len(boxes) else all_of_it for boxes, all_of_it in zip(proposed, whole, strict=True)]
        logits, deltas = self.predict(self.pool(maps, proposals, sizes))
        scores, classes = self.probabilities(logits).max(dim=1)
        final = self.decode(deltas, torch.cat(proposals), classes)
        counts = [len(boxes) for boxes in proposals]
        final_boxes = []
        per_image = (torch.split(values, counts) for values in (final, scores, classes))
        for boxes, score, label, size, all_of_it in zip(*per_image, sizes, whole, strict=True):
            clipped = clip_boxes_to_image(boxes, size)
            solid = ((clipped[:, 2:] - clipped[:, :2]) >= 1).all(dim=1) & torch.isfinite(score)
            clipped = clipped[solid]
            best = clipped[select(clipped, score[solid], label[solid], self.candidates, self.nms_iou)]
            final_boxes.append(best if len(best) else all_of_it)
        return final_boxes

    def _describe(
        self, batch: Sequence[NetworkInput], boxes: list[torch.Tensor], features: torch.Tensor, detected: bool
    ) -> list[ImageRegions]:
        """Label the pooled features [n, D]; if boxes were detected, select again by the final labels."""
        logits, _ = self.predict(features)
        scores, classes = self.probabilities(logits).max(dim=1)
        attributes = self.attribute_probabilities(features, classes)
        if attributes is None:
            attribute_scores, attribute_ids = torch.zeros_like(scores), torch.full_like(classes, -1)
        else:
            attribute_scores, attribute_ids = attributes.max(dim=1)
        described, start = [], 0
        for item, own in zip(batch, boxes, strict=True):
            here = slice(start, start + len(own))
            start += len(own)
            order = torch.arange(len(own), device=self.device)
            if detected:
                order = select(own, scores[here], classes[here], self.params, self.nms_iou)
            height, width = item.pixels.shape[1:]
            back = own.new_tensor([item.width / width, item.height / height] * 2)
            limit = np.array([item.width, item.height] * 2, dtype=np.float32)
            described.append(
                ImageRegions(
                    features=features[here][order].float().cpu().numpy(),
                    boxes=np.minimum((own[order] * back).float().cpu().numpy(), limit),
                    scores=scores[here][order].float().cpu().numpy(),
                    classes=classes[here][order].cpu().numpy().astype(np.int32),
                    attributes=attribute_ids[here][order].cpu().numpy().astype(np.int32),
                    attribute_scores=attribute_scores[here][order].float().cpu().numpy(),
                    width=item.width,
                    height=item.height,
                )
            )
        return described

    @torch.inference_mode()
    def box_logits(self, features: np.ndarray) -> np.ndarray:
        logits, _ = self.predict(torch.as_tensor(features, dtype=torch.float32, device=self.device))
        return logits.float().cpu().numpy()
