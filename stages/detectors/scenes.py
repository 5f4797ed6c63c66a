"""The small Faster R-CNN of the embedded scenes: torchvision's parts on a backbone of seven convolutions."""

from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

FEATURE_DIM = 256
POOLED = 7
# The sides of objects in the scenes, in pixels at the network's input size.
ANCHOR_SIDES = ((16, 24, 36, 56),)
ANCHOR_RATIOS = ((1.0,),)


class Backbone(nn.Module):
    """Images [B, 3, H, W] -> one map [B, out_channels, H / 8, W / 8]: six convolutions, and the colours as they are.

    The three mean colours of each cell spare the convolutions carrying them past six normalisations.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in ((32, 2), (48, 2), (48, 1), (96, 2), (128, 1), (125, 1)):
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.out_channels = channels + 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layers(images), nn.functional.avg_pool2d(images, 8)], dim=1)


class AttributePredictor(nn.Module):
    """Class logits, box deltas and attribute logits, all linear in the region's feature.

    Several attributes hold of one region (a colour, a texture, a size), so each has a logit of its own.
    """

    def __init__(self, in_features: int, num_classes: int, num_attributes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes)
        self.bbox_pred = nn.Linear(in_features, num_classes * 4)
        self.attributes = nn.Linear(in_features, num_attributes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


def build_network(config: dict[str, Any], num_categories: int, num_attributes: int) -> FasterRCNN:
    """The network without weights; `config` is the description's: image_size, mean, std."""
    backbone = Backbone()
    num_classes = num_categories + 1
    return FasterRCNN(
        backbone,
        min_size=config["image_size"],
        max_size=config["image_size"],
        image_mean=config["mean"],
        image_std=config["std"],
        rpn_anchor_generator=AnchorGenerator(ANCHOR_SIDES, ANCHOR_RATIOS),
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=120,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        rpn_fg_iou_thresh=0.6,
        rpn_batch_size_per_image=96,
        box_roi_pool=MultiScaleRoIAlign(featmap_names=["0"], output_size=POOLED, sampling_ratio=2),
        box_head=TwoMLPHead(backbone.out_channels * POOLED**2, FEATURE_DIM),
        box_predictor=AttributePredictor(FEATURE_DIM, num_classes, num_attributes),
        box_batch_size_per_image=24,
        box_positive_fraction=0.5,
    )
