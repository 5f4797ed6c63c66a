"""Pickles of arrays: those of Python 2 and of every NumPy are read, and no crafted one reaches NumPy's own builders."""

import collections
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct, scalar

from stages.detectors.weights import load_state
from stages.errors import InputError

POINTER = b"\x10" + b"\0" * 7
"""Where NumPy believes it, the address of an object: 16."""


class Call:
    """Pickled as the call of a function with arguments, and the state that its result is given."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], *state: Any) -> None:
        self.parts = (function, arguments, *state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def objects_of_a_buffer() -> Any:
    return Call(np.ndarray, ((1,), np.dtype("O"), POINTER))


def objects_of_a_state() -> Any:
    return Call(_reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, POINTER))


def fields_that_deny_their_objects() -> Any:
    field = np.dtype("O")
    fields = {"a": (field, 0), "b": (field, 8)}
    kind = Call(np.dtype, ("V16", False, True), (3, "|", None, ("a", "b"), fields, 16, 1, 0))
    return Call(_reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), kind, False, POINTER * 2))


def objects_of_a_scalar() -> Any:
    return Call(scalar, (np.dtype("O"), POINTER))


def test_bytes_never_become_objects(tmp_path: Path) -> None:
    crafted = [objects_of_a_buffer(), objects_of_a_state(), fields_that_deny_their_objects(), objects_of_a_scalar()]
    paths = [tmp_path / f"{number}.pkl" for number in range(8)]
    for path, value in zip(
        paths, [*crafted, *(Call(collections.OrderedDict, (each,)) for each in crafted)], strict=True
    ):
        path.write_bytes(pickle.dumps({"x": value}, protocol=2))
    # In a process of its own: where such a file is believed, it ends by a signal.
    code = (
        "import pathlib, sys\nfrom stages.detectors.pickled_arrays import read_arrays\n"
        "from stages.errors import InputError\nfor path in sys.argv[1:]:\n"
        " try: print(read_arrays(pathlib.Path(path)))\n except InputError as error: print(error)"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda: Call(np.ndarray, ((1,),)), r"it calls numpy\.ndarray"),
        (lambda: Call(collections.OrderedDict, ([("a", 1)],)), "is no pickle of arrays"),
        (lambda: Call(_reconstruct, (np.dtype("f4"), (0,), b"b")), "an array of another class"),
        (lambda: Call(_reconstruct, (np.ndarray, (0,), b"b"), (1, (3,), np.dtype("f4"), False, bytes(8))),
         r"2 numbers for an array of the shape \(3,\)"),
        (lambda: Call(_reconstruct, (np.ndarray, (0,), b"b"), (1, (-1,), np.dtype("f4"), False, bytes(8))),
         r"2 numbers for an array of the shape \(-1,\)"),
        (lambda: Call(np.dtype, ("f4", False, True), (3, "<", None, ("a",), {}, 4, 1, 0)), "a type that has parts"),
        (lambda: np.zeros(2, dtype="f4,f4"), "a type that has parts"),
        (lambda: np.zeros(2, dtype=complex), r"x: is of type c16; expected numbers"),
        (lambda: np.array(["a"]), r"x: is of type U1; expected numbers"),
        (lambda: np.zeros(2, dtype=np.longdouble), r"x: is of type f16; expected numbers of at most 8 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused(tmp_path: Path, value: Callable[[], Any], reason: str) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"x": value()}, protocol=2))
    with pytest.raises(InputError, match=rf"weights\.pkl: .*{reason}"):
        load_state(path)


def test_no_function_that_a_pickle_may_call_can_be_changed_by_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.")  # encode.a = 1
    with pytest.raises(InputError, match="it changes a function"):
        load_state(path)


@pytest.mark.parametrize("order", ["C", "F", "K"])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_order_of_axes_are_read(tmp_path: Path, order: str, protocol: int) -> None:
    plain = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array = {"C": plain, "F": np.asfortranarray(plain), "K": plain.transpose(1, 0, 2)}[order]
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"a": array, "yes": np.array([True, False])}, protocol))
    state = load_state(path)
    np.testing.assert_array_equal(state["a"].numpy(), array)
    assert state["yes"].tolist() == [True, False]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_pickle_of_python_2_is_read(tmp_path: Path, module: str) -> None:
    """As Caffe2's files are: {"blobs": {"conv1_w": [[1, -2]] as float32, "lr": 0.5}}, bytes written as texts."""
    name = module.encode()
    float32 = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"c" + name + b"\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86" + float32 + b"\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0tb"
    )
    number = b"c" + name + b"\nscalar\n" + float32 + b"U\x04\x00\x00\x00?\x86R"
    path = tmp_path / "model_final.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobs}(U\x07conv1_w" + array + b"U\x02lr" + number + b"us.")
    state = load_state(path)
    assert state["conv1_w"].tolist() == [[1.0, -2.0]] and float(state["lr"]) == 0.5
