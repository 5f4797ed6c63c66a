"""Tensors on their way to the device that computes."""

import torch
from torch import Tensor


def moved(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; what CUDA still has to do is not waited for.

    Elsewhere it is: MPS may read what it copies only after that has been released (pytorch issue 189690), and what
    comes to the CPU may be read before it is there.
    """
    return values.to(device, non_blocking=device.type == "cuda")
