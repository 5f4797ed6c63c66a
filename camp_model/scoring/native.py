"""Compiles and calls receive.c, the CPU kernel of factorised message passing.

The library is built with the machine's C compiler on first use (about a second) and kept in the user's cache folder.
Where there is no compiler, or CAMP_NATIVE=0 is set, `library()` is None and scoring takes its PyTorch path.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from camp_model.files import replacing

SOURCE = Path(__file__).with_name("receive.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")


class Tile(ctypes.Structure):
    """The argument of `camp_receive`; meaning: receive.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dim", "own_size", "other_size")),
        *((name, ctypes.c_void_p) for name in ("affinity", "product")),
        *((name, ctypes.c_int64) for name in ("row_stride", "column_stride", "own_step", "other_step")),
        *((name, ctypes.c_void_p) for name in ("own", "residual", "message", "bias", "score")),
        *((name, ctypes.c_void_p) for name in ("panels", "hidden", "hidden_bias", "last")),
        *((name, ctypes.c_int64) for name in ("panel_count", "heads")),
        *((name, ctypes.c_void_p) for name in ("own_count", "other_count", "pooled")),
        *((name, ctypes.c_int64) for name in ("own_items", "other_items", "pair_own", "pair_other")),
        *((name, ctypes.c_int64) for name in ("own_outer", "threads")),
        ("evidence", ctypes.c_void_p),
        ("gate_context", ctypes.c_float),
    )


def _cpu() -> str:
    """The CPU features that -march=native depends on: machines that share a cache folder may differ in them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _is_trusted(path: Path) -> bool:
    """Whether `path` is absolute, and is missing or belongs to this user or root and is not writable by everyone."""
    if not path.is_absolute():
        return False
    return not path.exists() or ((about := path.stat()).st_uid in (0, os.geteuid()) and not about.st_mode & 0o002)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None if it is not available."""
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if os.environ.get("CAMP_NATIVE") == "0" or compiler is None or platform.system() != "Linux":
        return None
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
        identity = (
            SOURCE.read_bytes(),
            version,
            " ".join(FLAGS).encode(),
            platform.machine().encode(),
            _cpu().encode(),
        )
        name = f"receive-{hashlib.sha256(b'|'.join(identity)).hexdigest()[:16]}.so"
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camp-retrieval"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / name
        with contextlib.ExitStack() as stack:
            if not all(map(_is_trusted, (folder, path))):  # others may have written it: build it again elsewhere
                path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
            if not path.exists():
                with replacing(path) as built:
                    command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
                    subprocess.run(command, capture_output=True, check=True, timeout=120)
                    built.chmod(0o700)
            loaded = ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(f"the CPU kernel cannot be built, so scoring is slower: {error}", stacklevel=2)
        return None
    loaded.camp_receive.argtypes = [ctypes.POINTER(Tile)]
    return loaded


def lanes() -> int:
    """The number that d must be a multiple of for the kernel; 0 if there is no kernel."""
    kernel = library()
    return 0 if kernel is None else int(kernel.camp_lanes())


def _address(values: Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()


@dataclass(frozen=True)
class HiddenLayer:
    """The weights of a pooling's Linear-ReLU-Linear, ordered for the kernel."""

    panels: Tensor
    """[K, d, width], the first layer's weights in K panels of `width` outputs, zero beyond the last output."""
    bias: Tensor
    """[K * width], the first layer's."""
    last: Tensor
    """[heads, K * width], the second layer's weights; its bias would not change a softmax."""

    @classmethod
    def of(cls, first: nn.Linear, last: nn.Linear) -> "HiddenLayer":
        kernel = library()
        assert kernel is not None
        width = int(kernel.camp_panel())
        missing = -first.out_features % width
        weights = pad(first.weight.detach(), (0, 0, 0, missing)).view(-1, width, first.in_features)
        panels = weights.transpose(1, 2).contiguous()
        bias, last_weight = (pad(values.detach(), (0, missing)) for values in (first.bias, last.weight))
        return cls(panels, bias.contiguous(), last_weight.contiguous())


def receive(
    affinity: Tensor,
    product: Tensor | None,
    own: Tensor,
    residual: Tensor | None,
    message: Tensor,
    bias: Tensor | None,
    pooling: Tensor | HiddenLayer | None,
    hidden: Tensor | None,
    counts: tuple[Tensor, Tensor],
    pooled: Tensor,
    gate_context: float = 0.0,
    evidence: Tensor | None = None,
) -> None:
    """Attend, gate, fuse and pool one side of all pairs of O own items, which receive, and X other items.

    All tensors are float32 on the CPU, but for `counts`.

    Args:
        affinity: [O, X, L, M], of any strides.
        product: inner products of the two sides' features, with the shape and strides of `affinity`; None: no gates.
        own: [O, L, d], contiguous, features times `Receiver.own_weight`.
        residual: [O, L, d], contiguous, or None.
        message: [X, M, d], contiguous, features times `Receiver.message_weight`.
        bias: [d] or None.
        pooling: weights [d] of attention pooling, or the layers of the released pooling; None: mean pooling.
        hidden: [O, L, K * width], contiguous, the hidden layer of `residual`, if there are both; else None.
        counts: int32 [O] and [X], numbers of real vectors, which come first.
        pooled: [O, X, d] with d contiguous; filled with the pooled vectors.
        gate_context: weight of the pair's mean gate logit in each of its gate logits.
        evidence: [O, X, L], added to the gate logits, or None.

    Raises:
        MemoryError: no memory for the kernel's buffers.
    """
    kernel = library()
    assert kernel is not None
    assert product is None or product.stride() == affinity.stride()
    assert (hidden is not None) == (residual is not None and isinstance(pooling, HiddenLayer))
    score = pooling if isinstance(pooling, Tensor) else None
    layer = pooling if isinstance(pooling, HiddenLayer) else None
    panels, hidden_bias, last = (layer.panels, layer.bias, layer.last) if layer else (None, None, None)
    evidence = None if evidence is None else evidence.contiguous()
    own_step, other_step, row_stride, column_stride = affinity.stride()
    tile = Tile(
        dim=own.shape[2], own_size=own.shape[1], other_size=message.shape[1],
        affinity=affinity.data_ptr(), product=_address(product), row_stride=row_stride, column_stride=column_stride,
        own_step=own_step, other_step=other_step, own=own.data_ptr(), residual=_address(residual),
        message=message.data_ptr(), bias=_address(bias), score=_address(score),
        panels=_address(panels), hidden=_address(hidden), hidden_bias=_address(hidden_bias), last=_address(last),
        panel_count=0 if panels is None else len(panels), heads=0 if last is None else len(last),
        own_count=counts[0].data_ptr(), other_count=counts[1].data_ptr(), pooled=pooled.data_ptr(),
        own_items=own.shape[0], other_items=message.shape[0],
        pair_own=pooled.stride(0) // own.shape[2], pair_other=pooled.stride(1) // own.shape[2],
        own_outer=layer is not None or pooled.stride(0) > pooled.stride(1), threads=torch.get_num_threads(),
        evidence=_address(evidence), gate_context=gate_context,
    )  # fmt: skip
    if kernel.camp_receive(ctypes.byref(tile)):
        raise MemoryError("no memory for the buffers of the CPU kernel")
