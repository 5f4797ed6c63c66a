"""A GPU that nobody has: tensors that say they are on one, and compute on the CPU, to the bit.

An operator that meets a tensor of each kind is an error, as on CUDA, and so is one that gives float64, as on MPS; for
what a real GPU would have to be waited for, `WAITS` has the operator and the line of the project that asked.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
WAITS: Counter[tuple[str, str]] = Counter()
READING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal")
"""Operators whose result the CPU has to know."""
PACKING = ("_pack_padded_sequence", "_pad_packed_sequence", "_pack_padded_sequence_backward")
"""Operators that take lengths on the CPU beside values on a GPU."""
ROOT = Path(__file__).resolve().parents[2]
_inside: list[str] = []
"""Functions of PyTorch that now run on tensors of the GPU; what these make themselves is on it, too."""


def _waits(what: str) -> None:
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
    lines = [f"{Path(f.filename).relative_to(ROOT)}:{f.lineno}" for f in frames if f.filename != __file__]
    WAITS[what, lines[-1] if lines else ""] += 1


class Elsewhere(Tensor):
    """A tensor on the GPU; `here` has its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            layout=here.layout, device=here.device,
        )  # fmt: skip
        made.here = here.detach()
        return made

    @property
    def device(self) -> torch.device:
        return GPU

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        if function in (Tensor.numpy, Tensor.__array__):
            raise TypeError("a tensor on a GPU is no array")
        if function in (Tensor.cpu, Tensor.tolist) or (function is Tensor.to and "cpu" in map(str, args[1:])):
            _waits("cpu")
            return args[0].here.tolist() if function is Tensor.tolist else args[0].here.clone()
        _inside.append(getattr(function, "__name__", ""))
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(keywords or {}))
        finally:
            _inside.pop()

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        return _run(operator, args, keywords or {})


def _run(operator: Any, args: Any, keywords: dict[str, Any]) -> Any:
    name = operator._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
    on_gpu = [isinstance(tensor, Elsewhere) for tensor in tensors]
    if name in ("_to_copy", "copy_") and len(set(on_gpu)) < 2 and keywords.get("device", GPU) == GPU:
        if not all(on_gpu) and not keywords.get("non_blocking"):
            _waits("to the GPU")
    elif not all(on_gpu[i] or not tensor.ndim for i, tensor in enumerate(tensors)) and name not in PACKING:
        raise RuntimeError(f"{name}: of {[list(tensor.shape) for tensor in tensors]} on the GPU: {on_gpu}")
    indices = args[1] if name in ("index", "index_put_", "_index_put_impl_") else []
    if name in READING or any(index is not None and index.dtype == torch.bool for index in indices):
        _waits(name)
    keywords = {key: value for key, value in keywords.items() if key not in ("device", "pin_memory", "non_blocking")}
    here = tree_map(lambda value: value.here if isinstance(value, Elsewhere) else value, (args, keywords))
    result = operator(*here[0], **here[1])
    if any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
        raise TypeError(f"{name}: gives float64, which MPS lacks")
    if name == "_pack_padded_sequence":
        return Elsewhere(result[0]), result[1]
    there = tree_map(lambda value: Elsewhere(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(operator, args, keywords, there) if any(on_gpu) else there


class _Making(TorchDispatchMode):
    """What is made on the GPU, or moved to it."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # CUDA is not asked whether it is there

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        leaves = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
        if any(isinstance(leaf, Elsewhere) for leaf in leaves) or str(keywords.get("device")).startswith("cuda"):
            return _run(operator, args, keywords)
        result = operator(*args, **keywords)
        own = isinstance(result, Tensor) and _inside and not leaves
        counts = own and "_pad_packed" in _inside[-1] and not result.is_floating_point()  # these stay on the CPU
        return Elsewhere(result) if own and not counts else result


@contextlib.contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within, tensors may be made on and moved to the device that it gives."""
    WAITS.clear()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Making():
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
