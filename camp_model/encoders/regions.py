"""Regions into the joint space."""

from torch import Tensor, nn


class RegionEncoder(nn.Module):
    """One linear layer."""

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
