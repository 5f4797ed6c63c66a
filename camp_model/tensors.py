"""What PyTorch's own indexing and copies do slower, or not each time in the same way."""

import torch
from torch import Tensor
from torch.nn.functional import embedding


def take_rows(values: Tensor, rows: Tensor | slice) -> Tensor:
    """`values[rows]`, [B, ...] at int [...] -> [..., ...], with a gradient that is the same each time.

    Several threads add up that of `values[rows]` in whatever order they come, and take longer.
    """
    if isinstance(rows, slice) or not values.requires_grad:
        return values[rows]
    return embedding(rows, values[:, None].flatten(1)).view(rows.shape + values.shape[1:])


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; what CUDA still has to do is not waited for.

    Elsewhere it is: MPS may read what it copies only after that has been released (pytorch issue 189690), and what
    comes to the CPU may be read before it is there.
    """
    return values.to(device, non_blocking=device.type == "cuda")
