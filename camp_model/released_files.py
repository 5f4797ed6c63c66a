"""Reads the files of the authors' released code: checkpoints and vocabularies, which are pickles, without running them.

Weights are read by PyTorch's weights-only reader, which knows tensors and plain values, and the vocabulary by a reader
that knows plain values alone. Whatever stands in a file, it is read, or a ValueError names the file and what is wrong.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camp_model.pickle_ops import check_ops, refused_name
from camp_model.vocabulary import Vocabulary


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read the content of a released checkpoint without executing any of it.

    Raises:
        ValueError: the file is missing, is no checkpoint, or holds an object that is neither tensor nor plain value.
    """
    numpy_scalar = np.float64(0).__reduce__()[0]
    stand_ins: list[Any] = [
        # The options object; a plain dictionary stands in for its class.
        (OrderedDict, "easydict.EasyDict"),
        (OrderedDict, "argparse.Namespace"),
        (numpy_scalar, "numpy.core.multiarray.scalar"),
        (numpy_scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in f"?{np.typecodes['AllInteger']}{np.typecodes['Float']}"),
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing; expected a released checkpoint") from None
    except Exception as error:  # a damaged file can raise almost anything
        named = refused_name(error)
        reason = f"it holds {named}" if named else f"it is damaged or no checkpoint ({type(error).__name__})"
        raise ValueError(f"{path}: cannot be read as weights and plain values: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), list | tuple):
        raise ValueError(f"{path}: model: is missing; expected a list of three state dicts")
    if len(content["model"]) != 3:
        raise ValueError(f"{path}: model: {len(content['model'])} state dicts; expected image, text and scoring")
    for number, state in enumerate(content["model"]):
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(
                f"{path}: model[{number}]: is not a state dict; expected names of weights with a tensor each"
            )
    _check_options(path, content.get("opt"))
    return content


def _check_options(path: Path, options: object) -> None:
    """Refuse encoders that this project does not build, as far as the file says."""
    if not isinstance(options, dict):
        return
    options = {**options, **vars(options)} if isinstance(options, OrderedDict) else options
    for key, expected in (("no_imgnorm", True), ("no_txtnorm", True), ("bi_gru", True), ("self_attention", False)):
        value = options.get(key, expected)
        plain = value is None or isinstance(value, bool | int | np.bool_ | np.integer)
        if not plain or bool(value) is not expected:
            raise ValueError(f"{path}: opt.{key}: {shown_value(value)}; only models with {expected} can be expressed")


def shown_value(value: object) -> str:
    """A plain value of a file, shortened; of others, which may be vast or hold themselves, only the type."""
    if isinstance(value, str | bytes):
        return repr(value[:80])[:80]
    if value is None or isinstance(value, float | np.generic) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)[:80]
    return f"<{type(value).__name__}>"


class _VocabularyPickle(pickle.Unpickler):
    """Reads plain values, and replaces the released code's `Vocabulary` by an object that can do nothing."""

    class Vocabulary:
        """An object whose attributes the file sets."""

        def __init__(self, *_: object) -> None:
            """Accept the arguments with which protocols 0 and 1 call `_reconstructor`, too."""

    def find_class(self, module: str, name: str) -> type:
        if name not in ("Vocabulary", "_reconstructor", "object"):
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return self.Vocabulary


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary JSON, or a vocabulary pickle of the released code without executing any of it.

    Raises:
        ValueError: the file is neither.
    """
    if path.suffix != ".pkl":
        return Vocabulary.load(path, "treebank")
    try:
        with path.open("rb") as file:
            check_ops(file)
            words = getattr(_VocabularyPickle(file, encoding="utf-8").load(), "idx2word", None)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a vocabulary") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(
            f"{path}: is not a pickle of a vocabulary: {str(error)[:200]}; nothing of it was run"
        ) from None
    if not isinstance(words, dict) or not words or set(words) != set(range(len(words))):
        raise ValueError(f"{path}: idx2word: no words 0, 1, 2, ... found; expected a released vocabulary, or a JSON")
    ordered = [words[number] for number in range(len(words))]
    if odd := [word for word in ordered if not isinstance(word, str)]:
        raise ValueError(f"{path}: idx2word: {shown_value(odd[0])} is not text ({len(odd)} such); expected words")
    try:
        return Vocabulary(ordered, "treebank")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
