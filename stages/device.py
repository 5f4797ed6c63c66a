"""Where training computes, and in which numbers."""

from contextlib import AbstractContextManager, nullcontext

import torch

from stages.errors import InputError


def choose_device(name: str, key: str = "train.device") -> torch.device:
    """The device that a param names; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: the device named is not here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not here[name]:
        present = ", ".join(kind for kind in here if here[kind])
        raise InputError(f"{key}: {name} is not available here; expected auto or one of {present}")
    return torch.device(name)


class Precision:
    """fp32, tf32 (matrix products of CUDA), bf16 or fp16 (autocast; fp16 with a scaled loss).

    Raises:
        InputError: fp16 without CUDA.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "fp16" and device.type != "cuda":
            raise InputError(f"train.precision: fp16 needs a CUDA device, not {device.type}; expected fp32 or bf16")
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self.device = device
        self.scaler = torch.GradScaler(device.type, enabled=name == "fp16")
        if device.type == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
            torch.backends.cudnn.fp32_precision = "tf32" if name == "tf32" else "ieee"

    def autocast(self) -> AbstractContextManager[object]:
        """The context that a forward pass runs in."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
