"""Reads arrays from pickles that are not trusted, without NumPy's own functions for pickles.

Detectron2's model zoo, and the Visual Genome weights converted from Caffe, are pickled dicts of NumPy arrays. A pickle
names the functions that rebuild its content, and may name any function of any module. Here every name is refused before
it is looked up, except the few that make up an array, so opening a file cannot run code from it. NumPy's own builders
are refused too, because they accept bytes for an array of objects and read pointers from them. The replacements here
build arrays of numbers from bytes of exactly the right length.
"""

import collections
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camp_model.pickle_ops import check_ops
from stages.errors import InputError, shown

State = dict[str, torch.Tensor]
NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
"""The types that a tensor can have, in NumPy's notation: kind and bytes."""


class _Builder:
    """A function that a pickle may call but not otherwise affect, for instance by setting its attributes."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _NumberType:
    """Stands for NumPy's dtype: a pickle states the kind and size, then the byte order."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str):
            raise pickle.UnpicklingError(f"it holds an array of {shown(name)}")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        _, order, subtype, names, fields, *_ = state
        if any(part is not None for part in (subtype, names, fields)):
            raise pickle.UnpicklingError(f"it holds an array of {self.name}, a type that has parts")
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds numbers in the byte order {shown(order)}")
        self.order = order

    def __str__(self) -> str:
        return "object" if self.name.startswith("O") else self.name

    def array(self, raw: Any) -> np.ndarray | None:
        """The numbers [n] in `raw`; None if this type is not numeric."""
        if self.name not in NUMBERS:
            return None
        content = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as texts
        if not isinstance(content, bytes | bytearray):
            raise pickle.UnpicklingError(f"it holds numbers in a {type(raw).__name__}; expected bytes")
        return np.frombuffer(content, np.dtype(self.order + self.name))


class _PickledArray:
    """An array or a number while its file is read; `values` is None if its type is not numeric."""

    __slots__ = ("kind", "values")

    def __init__(self) -> None:
        self.kind = "nothing"
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        *_, shape, kind, fortran, raw = state
        self.fill(kind, raw, shape, "F" if fortran else "C")

    def fill(self, kind: Any, raw: Any, shape: Any, order: str = "C") -> None:
        """Take the numbers in `raw`, exactly as many as the `shape` needs, in the order C or F.

        Raises:
            pickle.UnpicklingError: this is not an array.
        """
        if not isinstance(kind, _NumberType) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("it holds an array without a type or a shape")
        self.kind, values = str(kind), kind.array(raw)
        if values is None:
            return
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(values):
            raise pickle.UnpicklingError(f"it holds {len(values)} numbers for an array of the shape {shown(shape)}")
        self.values = values.reshape(shape, order="F" if order == "F" else "C")


def _not_called(*_: Any) -> None:
    raise pickle.UnpicklingError("it calls numpy.ndarray")


_NDARRAY = _Builder(_not_called)
"""Stands for numpy.ndarray, which a pickle names as the class of an array but never calls."""


def _empty_dict() -> dict[Any, Any]:
    return collections.OrderedDict()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Protocol 2 writes bytes as text, and a call to this function that turns it back."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} of bytes")
    return text.encode("latin1")


def _reconstruct(subtype: Any, shape: Any, kind: Any) -> _PickledArray:
    """An array that is still empty: the pickle sets its state next."""
    if subtype is not _NDARRAY:
        raise pickle.UnpicklingError("it holds an array of another class than numpy.ndarray")
    return _PickledArray()


def _scalar(kind: Any, raw: Any) -> _PickledArray:
    number = _PickledArray()
    number.fill(kind, raw, ())
    return number


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> _PickledArray:
    """An array of protocol 5: in the order C or F, or in the order K, which is C with permuted axes."""
    array = _PickledArray()
    array.fill(kind, raw, shape, order)
    if array.values is not None and axes is not None:
        array.values = array.values.transpose(axes)
    return array


_ALLOWED: dict[tuple[str, str], _Builder] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Builder(_NumberType),
    ("collections", "OrderedDict"): _Builder(_empty_dict),
    ("_codecs", "encode"): _Builder(_encode),
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Builder(_reconstruct)
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _Builder(_scalar)
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _Builder(_from_buffer)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_arrays(path: Path) -> State:
    """Read a pickled dict of names and values, arrays as tensors; only its part `model` or `blobs` if it has one.

    Raises:
        InputError: the file is not a pickle, or holds more than dicts, texts, numbers and numeric arrays.
    """
    try:
        with path.open("rb") as file:
            check_ops(file)
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
    # Solver state of Caffe2 and texts are not parameters.
    return isinstance(value, _PickledArray) and not str(name).endswith("_momentum")


def _tensor(path: Path, name: str, array: _PickledArray) -> torch.Tensor:
    if (values := array.values) is None:
        raise InputError(f"{path}: {name[:200]}: is of type {array.kind[:80]}; expected numbers of at most 8 bytes")
    return torch.from_numpy(np.array(values, order="C", dtype=values.dtype.newbyteorder("=")))
