"""The Faster R-CNN of bottom-up attention (Anderson et al., CVPR 2018) as a detectron2 model: ResNet-101, C4 head,
trained on Visual Genome's 1,600 classes and 400 attributes in Caffe.

It differs from detectron2's own C4 models as the original network's definition does: the stem's max pooling pads only
at the far side; res5 keeps its input's resolution and dilates its 3 x 3 convolutions; regions are pooled by RoIPool;
the RPN has 512 channels and four anchor sizes; and an attribute head reads the feature concatenated with an embedding
of the class. Parameters have the names of the published conversion (faster_rcnn_from_caffe_attr.pkl), which loads
unchanged.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

NAME = "visual_genome"
"""Its name in detector.architecture."""
NUM_CLASSES, NUM_ATTRIBUTES = 1600, 400
PUBLISHED = "https://nlp.cs.unc.edu/models/faster_rcnn_from_caffe_attr.pkl"

OPTIONS: list[Any] = [
    *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
    *("MODEL.MASK_ON", False),
    *("MODEL.RESNETS.DEPTH", 101),
    *("MODEL.PIXEL_MEAN", [102.9801, 115.9465, 122.7717]),  # BGR
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[64, 128, 256, 512]]),
    *("MODEL.RPN.CONV_DIMS", [512]),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 6000),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 300),
    *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
    *("INPUT.MIN_SIZE_TEST", 600),
    *("INPUT.MAX_SIZE_TEST", 1000),
]


class CaffeStem(nn.Module):
    """The stem with Caffe's max pooling: [B, 3, H, W] -> [B, 64, H / 4, W / 4]."""

    def __init__(self, stem: Any) -> None:
        super().__init__()
        self.conv1: nn.Module = stem.conv1
        self.out_channels, self.stride = stem.out_channels, stem.stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = functional.relu(self.conv1(images))
        return functional.max_pool2d(pixels, kernel_size=3, stride=2, padding=0, ceil_mode=True)


def adapt(model: Any) -> Any:
    """Change a model built from OPTIONS, in place, where no config key allows it."""
    model.backbone.stem = CaffeStem(model.backbone.stem)
    res5 = model.roi_heads.res5
    res5[0].conv1.stride = res5[0].shortcut.stride = (1, 1)
    for block in res5:
        block.conv2.padding = block.conv2.dilation = (2, 2)
    predictor = model.roi_heads.box_predictor
    width = predictor.cls_score.in_features
    predictor.cls_embedding = nn.Embedding(NUM_CLASSES + 1, width // 8)
    predictor.fc_attr = nn.Linear(width + width // 8, width // 4)
    predictor.attr_score = nn.Linear(width // 4, NUM_ATTRIBUTES + 1)
    return model


def attribute_probabilities(predictor: Any, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Features [n, 2048] and classes [n] -> softmax over the attributes [n, 400] without `none`, the last."""
    seen = torch.cat([features, predictor.cls_embedding(classes)], dim=1)
    logits = predictor.attr_score(functional.relu(predictor.fc_attr(seen)))
    probabilities: torch.Tensor = logits[:, :-1].softmax(dim=1)
    return probabilities
