"""`python -m camp_model.import_released CHECKPOINT... --vocabulary FILE --out FOLDER`

Turns checkpoints of the authors' released code into this project's. Their files are pickles; nothing in them is ever
executed: weights are read by PyTorch's weights-only reader, which knows tensors and plain values, and the vocabulary by
one that knows plain values alone. `docs/scaling.md` says which of their models can be expressed.

A released checkpoint holds three state dicts: image encoder, text encoder, and the scoring module, which is one of
`GatedFusion` (here: the default switches), `GatedFusionNew` (`hops: 2`) and `CrossAttention` (`fusion: message`,
`matching: cosine`).
"""

import argparse
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camp_model.checkpoint import load_weights, save_checkpoint
from camp_model.config import CampConfig
from camp_model.files import write_sealed
from camp_model.model import CAMP
from camp_model.pickle_ops import check_ops
from camp_model.vocabulary import Vocabulary

Weights = dict[str, Tensor]

ENCODERS = {
    "image": {"fc.weight": "region_encoder.linear.weight", "fc.bias": "region_encoder.linear.bias"},
    "text": {"embed.weight": "caption_encoder.embedding.weight"}
    | {
        f"rnn.{name}_l0{way}": f"caption_encoder.gru.{name}_l0{way}"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for way in ("", "_reverse")
    },
}
KEYS = {
    "img_key_fc.weight": "messages.region_key.weight",
    "txt_key_fc.weight": "messages.word_key.weight",
}
HOP_KEYS = {
    "img_query_fc.weight": "messages.region_query.weight",
    "txt_query_fc.weight": "messages.word_query.weight",
    # Messages to regions are made of words, so theirs are named after the text.
    "weighted_txt_query_fc.weight": "messages.to_regions.hop_query.weight",
    "weighted_txt_key_fc.weight": "messages.to_regions.hop_key.weight",
    "weighted_img_query_fc.weight": "messages.to_words.hop_query.weight",
    "weighted_img_key_fc.weight": "messages.to_words.hop_key.weight",
}
FUSION = {
    "fc_1.0.weight": "messages.to_regions.fusion.weight",
    "fc_2.0.weight": "messages.to_words.fusion.weight",
}
FUSION_BIAS = {
    "fc_1.0.bias": "messages.to_regions.fusion.bias",
    "fc_2.0.bias": "messages.to_words.fusion.bias",
}
MATCHING = {
    "fc_out.0.weight": "matching.hidden.weight",
    "fc_out.0.bias": "matching.hidden.bias",
    "fc_out.3.weight": "matching.output.weight",
    "fc_out.3.bias": "matching.output.bias",
}


def _pooling(prefix: str) -> dict[str, str]:
    return {
        f"{prefix}_{i}.linear.{layer}.{kind}": f"{side}_pooling.score.{layer}.{kind}"
        for i, side in ((1, "region"), (2, "word"))
        for layer in (0, 2)
        for kind in ("weight", "bias")
    }


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
        type(np.dtype(np.float64)),
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing; expected a released checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, AttributeError) as error:
        # PyTorch's own message recommends to execute the file.
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {named[1]}" if named else f"it is damaged or no checkpoint ({type(error).__name__})"
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
        if bool(options.get(key, expected)) is not expected:
            raise ValueError(
                f"{path}: opt.{key}: {repr(options[key])[:80]}; only models with {expected} can be expressed"
            )


def convert(states: list[Mapping[str, Tensor]], source: str = "checkpoint") -> CAMP:
    """A model from the three state dicts of a released checkpoint.

    Args:
        states: image encoder, text encoder, scoring module; names may begin with `module.`.
        source: names the file in errors.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; the message names it.
    """
    image, text, scoring = (
        {name.removeprefix("module."): value.float() for name, value in state.items()} for state in states
    )
    for name, state in (("fc.weight", image), ("embed.weight", text)):
        if name not in state:
            raise ValueError(f"{source}: {name}: is missing")
    switches, names = _scoring_module(scoring, source)
    if switches["fusion"] == "sum":
        # W (v + t) = [W W] [v; t]: their matching layer of summed vectors is ours with its weights twice.
        scoring["fc_out.0.weight"] = scoring["fc_out.0.weight"].repeat(1, 2)
    config = CampConfig(
        vocab_size=text["embed.weight"].shape[0],
        word_dim=text["embed.weight"].shape[1],
        region_dim=image["fc.weight"].shape[1],
        dim=image["fc.weight"].shape[0],
        **switches,
    )
    weights: Weights = {}
    in_matcher = {theirs: f"matcher.{ours}" for theirs, ours in names.items()}
    for state, renamed in ((image, ENCODERS["image"]), (text, ENCODERS["text"]), (scoring, in_matcher)):
        unknown = sorted(state.keys() - renamed.keys())
        if unknown:
            raise ValueError(f"{source}: {unknown[0]}: this project's model has no such weight")
        weights |= {renamed[name]: value for name, value in state.items()}
    if config.matching == "cosine":
        weights |= {"matcher.matching.log_scale": torch.tensor(0.0), "matcher.matching.shift": torch.tensor(0.0)}
    model = CAMP(config)
    load_weights(model, weights, source)
    return model.eval()


def _scoring_module(scoring: Weights, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The switches of a released scoring module, and our names for its weights within the matcher."""
    pooling = "final_reduce" if "final_reduce_1.linear.2.weight" in scoring else "reduce_layer"
    heads = scoring.get(f"{pooling}_1.linear.2.weight")
    if heads is None:
        raise ValueError(
            f"{source}: {pooling}_1.linear.2.weight: is missing; a model that averages regions and words, as their "
            "CrossAttentionNew does over padding too, cannot be expressed"
        )
    switches: dict[str, Any] = {"pooling": "mlp", "pooling_heads": heads.shape[0]}
    if "fc_1.0.weight" not in scoring:
        switches |= {"fusion": "message", "gate": "none", "residual": False, "matching": "cosine"}
        return switches, KEYS | _pooling(pooling)
    own, joint = scoring["fc_1.0.weight"].shape
    switches |= {"fusion": "concat" if joint == 2 * own else "sum"}
    if "img_query_fc.weight" in scoring:
        return switches | {"hops": 2}, KEYS | HOP_KEYS | FUSION | MATCHING | _pooling(pooling)
    return switches, KEYS | FUSION | FUSION_BIAS | MATCHING | _pooling(pooling)


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
        raise ValueError(f"{path}: idx2word: {odd[0]!r:.80} is not text ({len(odd)} such); expected words")
    try:
        return Vocabulary(ordered, "treebank")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn checkpoints of the authors' released code into this project's.")
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="their .pth.tar files")
    parser.add_argument(
        "--vocabulary", type=Path, required=True, help="the words they were trained with: their .pkl, or a JSON"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; with several checkpoints, one folder below for each"
    )
    arguments = parser.parse_args()
    several = len(arguments.checkpoints) > 1
    folders: dict[Path, Path] = {}
    try:
        for path in arguments.checkpoints:
            folder = arguments.out / path.name.removesuffix(".tar").removesuffix(".pth") if several else arguments.out
            if folder in folders:
                raise ValueError(f"{path}: would become {folder}, as {folders[folder]}; expected files of other names")
            folders[folder] = path
        vocabulary = read_vocabulary(arguments.vocabulary)
        for folder, path in folders.items():
            content = read_checkpoint(path)
            model = convert(content["model"], str(path))
            save_checkpoint(folder, model, vocabulary, {"released": path.name, "epoch": content.get("epoch")})
            write_sealed(folder / "fingerprint.json", {"start_end": True})
            print(f"{folder}: {model.config}")
    except (ValueError, OSError) as error:
        message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    print(
        f"Their captions are cut by the tokenizer {vocabulary.tokenizer}, which vocabulary.json records: set "
        "captions.vocabulary to it."
    )
    print("Their captions carry <start> and <end>: set captions.start_end to true.")
    print("To evaluate one without training it, set train.start_from to its folder and train.epochs to 0.")


if __name__ == "__main__":
    main()
