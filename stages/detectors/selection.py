"""Selects which boxes of a detector become regions: a fixed number or as many as are confident, after per-class NMS.

The rule of the bottom-up-attention features (Anderson et al., CVPR 2018): each box has its most probable class; boxes
of one class suppress each other; boxes above a confidence, the same for all classes, are kept, within a minimum and a
maximum number. If both are 36, these are the fixed 36 regions of SCAN and CAMP.
"""

import torch
from torchvision.ops import batched_nms

from stages.params.regions import RegionsParams


def select(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, params: RegionsParams, nms_iou: float
) -> torch.Tensor:
    """Return the indices of the boxes that are kept, most confident first.

    If NMS leaves fewer than `min_per_image`, the most confident suppressed boxes are added.

    Args:
        boxes: [P, 4], XYXY.
        scores: [P], probability of each box's most probable class.
        classes: int64 [P], that class.
        nms_iou: overlap above which boxes of a class suppress each other.
    """
    # A stable order of float32: that of equal scores must not depend on the batch size or the device.
    order = torch.sort(scores, descending=True, stable=True).indices
    places = batched_nms(boxes[order], scores[order], classes[order], nms_iou)
    keep = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    keep[places] = True
    survivors, suppressed = order[keep], order[~keep]
    confident = int((scores[survivors] >= params.min_score).sum())
    count = min(max(confident, params.min_per_image), params.per_image)
    if len(survivors) < count:
        survivors = torch.cat([survivors, suppressed])
        survivors = survivors[torch.sort(scores[survivors[:count]], descending=True, stable=True).indices]
    return survivors[:count]
