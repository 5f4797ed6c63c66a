"""Reading arrays out of pickles that are not trusted: nothing but NumPy's own builders can be called.

Detectron2's model zoo, and the Visual Genome weights converted from Caffe, are pickled dicts of NumPy arrays. A pickle
names the functions that rebuild its content, any function of any module; here every name but the few that make up an
array is refused before it is looked up, so opening a file cannot run what somebody put into it.
"""

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric

from stages.errors import InputError

State = dict[str, torch.Tensor]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Protocol 2 writes bytes as text and the call that turns it back."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} of bytes")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = multiarray._reconstruct
    _ALLOWED[_module, "scalar"] = multiarray.scalar
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _ALLOWED[_module, "_frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_arrays(path: Path) -> State:
    """The dict of names and values in a pickle, arrays as tensors; the part `model` or `blobs` where there is one.

    Raises:
        InputError: the file is no pickle, or holds more than dicts, texts, numbers and numeric arrays.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(
            f"{path}: is no pickle of arrays ({str(error)[:200]}); nothing of it was run. Expected a dict of parameters"
        ) from None
    for key in ("model", "blobs"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected a dict of parameters")
    return {str(name): _tensor(path, str(name), value) for name, value in content.items() if _is_parameter(name, value)}


def _is_parameter(name: Any, value: Any) -> bool:
    # Solver state of Caffe2 and texts are no parameters.
    return isinstance(value, np.ndarray | np.generic) and not str(name).endswith("_momentum")


def _tensor(path: Path, name: str, value: Any) -> torch.Tensor:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {name[:200]}: is of type {str(array.dtype)[:80]}; expected numbers")
    return torch.from_numpy(np.array(array, order="C", dtype=array.dtype.newbyteorder("=")))
