"""The small Faster R-CNN of the embedded scenes: torchvision's parts on a backbone of seven convolutions."""

from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

FEATURE_DIM = 256
POOLED = 7
FINE, COARSE = "fine", "coarse"
FINE_CHANNELS, COARSE_CHANNELS = 64, 96
# The sides of objects in the scenes, in pixels at the network's input size.
ANCHOR_SIDES = ((26, 40, 58),)
ANCHOR_RATIOS = ((1.0,),)


def _conv(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    layers = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)


class Backbone(nn.Module):
    """Images [B, 3, H, W] -> a coarse map [B, 96, H / 8, W / 8], in which objects are searched, and a fine one [B, 64,
    H / 4, W / 4], from which they are described because textures are a few pixels wide.

    The last three channels of the fine map are mean colours, without batch normalisation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = COARSE_CHANNELS
        self.early = nn.Sequential(_conv(3, 32, 2), _conv(32, FINE_CHANNELS, 2), _conv(FINE_CHANNELS, FINE_CHANNELS))
        self.late = nn.Sequential(
            _conv(FINE_CHANNELS, 96, 2), _conv(96, COARSE_CHANNELS), _conv(COARSE_CHANNELS, COARSE_CHANNELS)
        )
        self.lateral = nn.Conv2d(COARSE_CHANNELS, FINE_CHANNELS, 1)
        self.merge = _conv(FINE_CHANNELS, FINE_CHANNELS - 3)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        early = self.early(images)
        coarse = self.late(early)
        above = nn.functional.interpolate(self.lateral(coarse), size=early.shape[2:], mode="nearest")
        fine = torch.cat([self.merge(early + above), nn.functional.avg_pool2d(images, 4)], dim=1)
        return {FINE: fine, COARSE: coarse}


class BoxHead(nn.Module):
    """Pooled regions [n, 64, 7, 7] -> features [n, 256].

    The 7 x 7 places are concatenated with their mean and maximum: colour and texture, unlike shape, are the same
    everywhere on an object.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv(FINE_CHANNELS, FINE_CHANNELS)
        self.fc = nn.Linear(FINE_CHANNELS * (POOLED**2 + 2), FEATURE_DIM)
        self.out = nn.Linear(FEATURE_DIM, FEATURE_DIM)

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        places = self.conv(regions)
        seen = torch.cat([places.flatten(1), 4 * places.mean(dim=(2, 3)), places.amax(dim=(2, 3))], dim=1)
        return nn.functional.relu(self.out(nn.functional.relu(self.fc(seen))))


class AttributePredictor(nn.Module):
    """Class logits, box deltas and attribute logits, all linear in the region's feature.

    A region has several attributes (a colour, a texture, a size), so each has its own logit.
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
    return FasterRCNN(
        Backbone(),
        min_size=config["image_size"],
        max_size=config["image_size"],
        image_mean=config["mean"],
        image_std=config["std"],
        rpn_anchor_generator=AnchorGenerator(ANCHOR_SIDES, ANCHOR_RATIOS),
        rpn_pre_nms_top_n_train=250,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=250,
        rpn_post_nms_top_n_test=80,
        rpn_fg_iou_thresh=0.6,
        rpn_batch_size_per_image=96,
        box_roi_pool=MultiScaleRoIAlign(featmap_names=[FINE], output_size=POOLED, sampling_ratio=1),
        box_head=BoxHead(),
        box_predictor=AttributePredictor(FEATURE_DIM, num_categories + 1, num_attributes),
        box_batch_size_per_image=24,
        box_positive_fraction=0.6,
    )
