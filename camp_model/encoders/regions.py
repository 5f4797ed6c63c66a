"""The encoder of regions (paper section 3.1), and the locations of regions."""

import torch
from torch import Tensor, nn

LOCATION_DIM = 4
"""Length of a location: the box's centre (horizontal, vertical), its area as a share of the image, and its lower edge.

Coordinates run from -1 (left, top) to 1.
"""


def region_locations(features: Tensor, geometry: float) -> Tensor:
    """Read the locations of regions from their features: [..., region_dim] -> [..., LOCATION_DIM].

    Args:
        features: the last five are left, top, right and bottom of the box, from -1 to 1, and its area, all times
            `geometry`.
        geometry: `CampConfig.geometry`, not 0.
    """
    left, top, right, bottom, area = (features[..., -5:] / geometry).unbind(-1)
    return torch.stack([(left + right) / 2, (top + bottom) / 2, area, bottom], dim=-1)


class RegionEncoder(nn.Module):
    """One linear layer from region_dim to d."""

    def __init__(self, region_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(region_dim, dim)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode regions; padding becomes zero.

        Args:
            features: [I, R, region_dim], any floating dtype.
            mask: bool [I, R], True at real regions.

        Returns:
            [I, R, d] in the dtype of the weights.
        """
        encoded: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return encoded.masked_fill(~mask[..., None], 0.0)
