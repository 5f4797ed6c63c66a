"""Grid cells over a picture: their boxes, and the mean of a network's map over each cell.

Jiang et al., In Defense of Grid Features for Visual Question Answering, CVPR 2020. A grid of n cells a side is pooled
like adaptive average pooling: if n does not divide the side of the map, places on a border count for both cells.
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
    """The weight of each place of a map [height, width] in the mean of each cell: float32 [cells, height * width].

    Multiplied by a flattened map, they give the means over the cells of all grids at once, on any device.
    """
    shares = [
        torch.einsum("ry,cx->rcyx", _windows(side, height), _windows(side, width)).reshape(side * side, -1)
        for side in grids
    ]
    return torch.cat(shares)


def _windows(cells: int, places: int) -> torch.Tensor:
    """The weights along one side, [cells, places]: each row averages the places that a cell touches."""
    shares = torch.zeros(cells, places)
    for cell in range(cells):
        start, stop = cell * places // cells, math.ceil((cell + 1) * places / cells)
        shares[cell, start:stop] = 1 / (stop - start)
    return shares
