"""The device and the precision that stages compute with, for training, validation, evaluation and extraction alike."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from stages.errors import InputError


def choose_device(name: str, key: str = "train.device") -> torch.device:
    """The device that a param names; `auto` is CUDA, else MPS, else the CPU; `cuda:N` is one of several GPUs.

    Raises:
        InputError: the device is not available here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if here["cuda"] else []
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if name not in gpus and not here.get(name, False):
        present = ", ".join(kind for kind in here if here[kind])
        numbered = f" (cuda:0 to {gpus[-1]})" if gpus else ""
        raise InputError(f"{key}: {name[:40]} is not available here; expected auto or one of {present}{numbered}")
    return torch.device(name)


def check_precision(name: str, device: torch.device, key: str = "train.precision") -> None:
    """Raise an InputError if a device cannot compute with the precision `name`, which the param `key` names."""
    if name == "fp16" and device.type != "cuda":
        raise InputError(f"{key}: fp16 needs a CUDA device, not {device.type}; expected fp32 or bf16")


class Precision:
    """fp32, tf32 (for CUDA's matrix products, convolutions and GRUs), bf16 or fp16 (autocast; fp16 with a scaled loss).

    Creating one sets how this process computes in float32 from then on: exactly, unless the name is `tf32`.

    Args:
        name: one of the four.
        device: the device that computes.
        key: the param that names it, for errors.

    Raises:
        InputError: fp16 without CUDA.
    """

    def __init__(self, name: str, device: torch.device, key: str = "train.precision") -> None:
        check_precision(name, device, key)
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self.device = device
        self.scaler = torch.GradScaler(device.type, enabled=name == "fp16")
        float32 = "tf32" if name == "tf32" else "ieee"
        # Set one by one: a setting for cuDNN as a whole leaves its convolutions and GRUs at TF32, their default.
        backends: Any = torch.backends
        for operator in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
            operator.fp32_precision = float32

    def autocast(self) -> AbstractContextManager[object]:
        """The context that a forward pass runs in."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
