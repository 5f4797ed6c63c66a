"""The cells of grids over a picture: their boxes, and the mean of a network's map over each.

Jiang et al., In Defense of Grid Features for Visual Question Answering, CVPR 2020. A grid of n cells a side is pooled
as adaptive average pooling does it: where n does not divide the map, the places on a border count for both cells.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


def cell_boxes(grids: Sequence[int], width: int, height: int) -> np.ndarray:
    """float32 [cells, 4], XYXY in pixels of a picture of this size: grid after grid, row by row."""
    boxes = []
    for side in grids:
        x, y = np.arange(side + 1) * width / side, np.arange(side + 1) * height / side
        boxes += [(x[column], y[row], x[column + 1], y[row + 1]) for row in range(side) for column in range(side)]
    return np.array(boxes, dtype=np.float32)


def cell_shares(grids: Sequence[int], height: int, width: int) -> torch.Tensor:
    """How much each place of a map [height, width] counts for each cell: float32 [cells, height * width].

    The product with a map is the mean over each cell of every grid at once, on every device.
    """
    shares = [
        torch.einsum("ry,cx->rcyx", _windows(side, height), _windows(side, width)).reshape(side * side, -1)
        for side in grids
    ]
    return torch.cat(shares)


def _windows(cells: int, places: int) -> torch.Tensor:
    """Along one side: [cells, places], each row the shares of the places that a cell touches."""
    shares = torch.zeros(cells, places)
    for cell in range(cells):
        start, stop = cell * places // cells, math.ceil((cell + 1) * places / cells)
        shares[cell, start:stop] = 1 / (stop - start)
    return shares
