"""`python -m camp_model.import_released CHECKPOINT... --vocabulary FILE --out FOLDER`

Turns checkpoints of the authors' released code into this project's. Nothing in them is executed
(`camp_model.released_files`). `docs/scaling.md` says which of their models can be expressed.

A released checkpoint holds three state dicts: image encoder, text encoder, and the scoring module, which is one of
`GatedFusion` (here: the default switches), `GatedFusionNew` (`hops: 2`) and `CrossAttention` (`fusion: message`,
`matching: cosine`).
"""

import argparse
import sys
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
from camp_model.released_files import read_checkpoint, read_vocabulary, shown_value

__all__ = ["convert", "read_checkpoint", "read_vocabulary"]
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


def convert(states: list[Mapping[str, Tensor]], source: str = "checkpoint") -> CAMP:
    """A model from the three state dicts of a released checkpoint.

    Args:
        states: image encoder, text encoder, scoring module; names may begin with `module.`.
        source: names the file in errors.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; the message names it.
    """
    keys: dict[str, str] = {}
    image, text, scoring = (_plain(state, source, keys) for state in states)
    dim, region_dim = _matrix(image, "fc.weight", source)
    vocab_size, word_dim = _matrix(text, "embed.weight", source)
    switches, names = _scoring_module(scoring, source)
    if switches["fusion"] == "sum":
        # W (v + t) = [W W] [v; t]: their matching layer of summed vectors is ours with its weights twice.
        if (shape := _matrix(scoring, "fc_out.0.weight", source)) != (dim, dim):
            raise ValueError(f"{source}: fc_out.0.weight: shape {list(shape)}; expected {[dim, dim]}, as of fc.weight")
        scoring["fc_out.0.weight"] = scoring["fc_out.0.weight"].repeat(1, 2)
    try:
        config = CampConfig(vocab_size=vocab_size, word_dim=word_dim, region_dim=region_dim, dim=dim, **switches)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    weights: Weights = {}
    called: dict[str, str] = {}
    in_matcher = {theirs: f"matcher.{ours}" for theirs, ours in names.items()}
    for state, renamed in ((image, ENCODERS["image"]), (text, ENCODERS["text"]), (scoring, in_matcher)):
        unknown = sorted(state.keys() - renamed.keys())
        if unknown:
            key = keys[unknown[0]]
            raise ValueError(f"{source}: {key[:100]}: this project's model has no such weight")
        weights |= {renamed[name]: value for name, value in state.items()}
        called |= {ours: f"{keys.get(theirs, theirs)}, here {ours}" for theirs, ours in renamed.items()}
    if config.matching == "cosine":
        weights |= {"matcher.matching.log_scale": torch.tensor(0.0), "matcher.matching.shift": torch.tensor(0.0)}
    model = CAMP(config)
    load_weights(model, weights, source, called)
    return model.eval()


def _plain(state: Mapping[str, Tensor], source: str, keys: dict[str, str]) -> Weights:
    """The weights of a state dict in float32, by their names without `module.`; adds name -> the file's key to `keys`.

    Raises:
        ValueError: a name is no text or stands there twice, or a weight is no plain array of floats.
    """
    weights: Weights = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"{source}: {shown_value(key)}: is no name of a weight; expected text")
        name = key.removeprefix("module.")
        if name in weights:
            raise ValueError(
                f"{source}: {key[:100]}: stands there both with and without `module.`; expected one of them"
            )
        dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
        # A small file can say that a few numbers, read again and again, are a vast array.
        if not dense or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"{source}: {key[:100]}: is sparse, or not all there; expected an array with every number")
        if not value.is_floating_point():
            raise ValueError(f"{source}: {key[:100]}: holds {value.dtype}; expected floats")
        weights[name], keys[name] = value.float(), key
    return weights


def _matrix(weights: Weights, name: str, source: str) -> tuple[int, int]:
    """Rows and columns of a weight; raises ValueError if it is missing or no matrix."""
    if name not in weights:
        raise ValueError(f"{source}: {name}: is missing")
    shape = list(weights[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{source}: {name}: shape {shape}; expected a matrix")
    return shape[0], shape[1]


def _scoring_module(scoring: Weights, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The switches of a released scoring module, and our names for its weights within the matcher."""
    pooling = "final_reduce" if "final_reduce_1.linear.2.weight" in scoring else "reduce_layer"
    last = f"{pooling}_1.linear.2.weight"
    if last not in scoring:
        raise ValueError(
            f"{source}: {last}: is missing; a model that averages regions and words, as their "
            "CrossAttentionNew does over padding too, cannot be expressed"
        )
    switches: dict[str, Any] = {"pooling": "mlp", "pooling_heads": _matrix(scoring, last, source)[0]}
    if "fc_1.0.weight" not in scoring:
        switches |= {"fusion": "message", "gate": "none", "residual": False, "matching": "cosine"}
        return switches, KEYS | _pooling(pooling)
    own, joint = _matrix(scoring, "fc_1.0.weight", source)
    if joint not in (own, 2 * own):
        raise ValueError(
            f"{source}: fc_1.0.weight: shape {[own, joint]}; expected twice as many columns as rows, or as many"
        )
    switches |= {"fusion": "concat" if joint == 2 * own else "sum"}
    if "img_query_fc.weight" in scoring:
        return switches | {"hops": 2}, KEYS | HOP_KEYS | FUSION | MATCHING | _pooling(pooling)
    return switches, KEYS | FUSION | FUSION_BIAS | MATCHING | _pooling(pooling)


def _epoch(content: Mapping[str, Any], path: Path) -> int | None:
    """The epoch that a file states; what is none is said, and not recorded."""
    epoch = content.get("epoch")
    if epoch is None or (isinstance(epoch, int | np.integer) and abs(int(epoch)) < 2**63):
        return None if epoch is None else int(epoch)
    print(f"{path}: epoch: {shown_value(epoch)} is not recorded; expected a whole number", file=sys.stderr)
    return None


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
            if len(vocabulary) != (rows := model.config.vocab_size):
                raise ValueError(
                    f"{path}: embed.weight: {rows} rows; expected {len(vocabulary)}, a row for each word of "
                    f"{arguments.vocabulary}"
                )
            save_checkpoint(folder, model, vocabulary, {"released": path.name, "epoch": _epoch(content, path)})
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
