"""Indexing, copying and unit vectors, each in a better way than PyTorch's own, and a GPU's free memory."""

import torch
from torch import Tensor
from torch.nn.functional import embedding


def take_rows(values: Tensor, rows: Tensor | slice) -> Tensor:
    """`values[rows]` with a reproducible gradient: [B, ...], int64 of any shape or a slice -> [*rows.shape, ...].

    The gradient of plain indexing is slower, and threads sum it in any order.
    """
    if isinstance(rows, slice) or not values.requires_grad:
        return values[rows]
    return embedding(rows, values[:, None].flatten(1)).view(rows.shape + values.shape[1:])


def unit(values: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors along `dim` to length 1, as `torch.nn.functional.normalize`; those shorter than 1e-12 become zero.

    These get no gradient: they have no direction, and that of `normalize` is 10^12 times what it gets. Two of them in
    a row, on an image whose features are all zero, would overflow float32.
    """
    norm: Tensor = values.norm(dim=dim, keepdim=True)
    least = max(1e-12, torch.finfo(values.dtype).tiny)  # in float16, 1e-12 would be 0
    return values / norm.masked_fill(norm < least, torch.inf)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` to `device`, without waiting for CUDA.

    On other devices it waits: MPS may read the source after its memory was freed (pytorch issue 189690), and a copy to
    the CPU could be read before it is complete.
    """
    return values.to(device, non_blocking=device.type == "cuda")


def free_gpu_bytes(device: torch.device) -> int:
    """Free memory of a GPU, including what PyTorch has reserved but does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
