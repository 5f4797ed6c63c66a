"""Which of a detector's boxes become regions: a fixed number or as many as are confident, after per-class NMS.

The rule of the bottom-up-attention features (Anderson et al., CVPR 2018): a box counts with its most probable class;
boxes of a class suppress each other; those above a confidence that knows no class stay, but never fewer or more than
the two bounds. With equal bounds it is the fixed 36 of SCAN and CAMP.
"""

import torch
from torchvision.ops import batched_nms

from stages.params.regions import RegionsParams


def select(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, params: RegionsParams, nms_iou: float
) -> torch.Tensor:
    """Indices of the boxes that are kept, most confident first.

    Args:
        boxes: [P, 4], XYXY.
        scores: [P], probability of each box's most probable class.
        classes: int64 [P], that class.
        nms_iou: overlap above which boxes of a class suppress each other.

    Where NMS leaves fewer than `min_per_image`, the suppressed boxes fill up, most confident first.
    """
    # float32 in a stable order: equal scores must not change places with the batch size or the device.
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
