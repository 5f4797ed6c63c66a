"""The model that training starts from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from camp_model.captions import CaptionTable
from camp_model.checkpoint import current_name, load_checkpoint
from camp_model.encoders.pretrained import longest_input
from camp_model.encoding import device_of
from camp_model.model import CAMP
from camp_model.vocabulary import SPECIALS, Vocabulary
from stages.contracts import input_errors, read_fingerprint
from stages.errors import InputError, shown
from stages.params.model import ModelParams
from stages.params.train import TrainParams
from stages.training.word_vectors import load_word_vectors
from stages.workspace import named_path

AT_ONCE = 8192
"""Captions looked at together by `say_partly_read`."""
TRANSFORMER = "caption_encoder.transformer."
"""Prefix of the names of a transformer's weights in checkpoints that hold them."""


def new_model(
    model: ModelParams,
    train: TrainParams,
    vocabulary: Vocabulary,
    region_dim: int,
    geometry: float = 0.0,
    detector: str | None = None,
    start_end: bool = False,
) -> CAMP:
    """Build a model with random weights from `train.seed`, then load word vectors, then `train.start_from`.

    Args:
        model: the switches of the model.
        train: how it is trained.
        vocabulary: the words of the captions.
        region_dim: width of the features.
        geometry: scale of the boxes appended to features; 0: features without boxes.
        detector: fingerprint of the detector that extracted the features.
        start_end: whether captions stand between <start> and <end>.

    Raises:
        InputError: the word vectors, the checkpoint or the names in `train.freeze` do not fit; or `train.epochs` is 0
            and the checkpoint is of a model with other switches or was trained on captions of the other kind.
    """
    torch.manual_seed(train.seed)
    switches = model.replace(transformer=str(named_path(model.transformer)))  # the folder may be in the main workspace
    with input_errors():
        camp = CAMP(
            switches.config(vocab_size=len(vocabulary), region_dim=region_dim, geometry=geometry),
            dropout=train.dropout,
            region_dropout=train.region_dropout,
        )
        camp.caption_encoder.read_vocabulary(vocabulary)
    _say_unread(camp, vocabulary)
    if train.word_vectors is not None:
        _set_word_vectors(camp, train.word_vectors, vocabulary)
    if train.start_from is not None:
        checkpoint = named_path(train.start_from)
        taken, differences = _copy_matching_weights(camp, checkpoint, vocabulary, detector, start_end)
        if differences and not train.epochs:
            raise InputError(
                f"train.epochs: 0 keeps {checkpoint} as it is, but it was trained with {', '.join(differences)}; "
                "expected the same in params.yaml"
            )
        table = camp.caption_encoder.word_embeddings()
        if train.word_vectors is not None and any(value is table for value in map(camp.get_parameter, taken)):
            raise InputError(
                f"train.word_vectors: {train.word_vectors}, but train.start_from, {train.start_from}, brings the "
                "embeddings of all words; expected one of the two"
            )
    freeze(camp, train.freeze)
    return camp


def facts_for_search(train: TrainParams, max_words: int | None) -> dict[str, Any]:
    """What decides how search ranks and reads: the loss and the weight of the contrastive term that a model is trained
    with, and the number of words after which its captions are cut.

    With `train.epochs: 0` they are those that the checkpoint records, if any.
    """
    stated = {"loss": train.loss, "joint_weight": train.joint_weight, "max_words": max_words}
    if train.epochs or train.start_from is None:
        return stated
    recorded = read_fingerprint(named_path(train.start_from))
    return {name: recorded[name] for name in stated if name in recorded}


def _say_unread(camp: CAMP, vocabulary: Vocabulary) -> None:
    """Print how many words of the vocabulary the text encoder takes for <unk>, as one of English does of Chinese."""
    unread = camp.caption_encoder.unread(range(len(SPECIALS), len(vocabulary)))
    words = [word for word, is_unread in zip(vocabulary.words[len(SPECIALS) :], unread, strict=True) if is_unread]
    if words:
        print(
            f"model.transformer: {camp.config.transformer}: {len(words)} of the vocabulary's {len(unread)} words, such "
            f"as {', '.join(map(shown, words[:3]))}, are all <unk> to it: no piece of its tokenizer spells them"
        )


def say_partly_read(camp: CAMP, captions: Mapping[str, CaptionTable]) -> None:
    """Print how many captions of each split have words that no longer fit into the text encoder's input."""
    for split, table in captions.items():
        cut = 0
        for start in range(0, len(table), AT_ONCE):
            tokens, lengths = table.batch(range(start, min(start + AT_ONCE, len(table))))
            read = camp.caption_encoder.words_read(tokens.to(device_of(camp)), lengths).cpu()
            cut += int((read < lengths).sum())
        if cut:
            print(
                f"model.transformer: {camp.config.transformer}: {cut} of {len(table)} {split} captions are longer than "
                f"its input of {longest_input(camp.caption_encoder.network)} pieces of words; their last words have no "
                "state of their own (captions.max_words cuts them instead)"
            )


def _set_word_vectors(camp: CAMP, source: str, vocabulary: Vocabulary) -> None:
    table = camp.caption_encoder.word_embeddings()
    if table is None:
        raise InputError(f"train.word_vectors: model.text {camp.config.text} has no table of word embeddings")
    vectors = load_word_vectors(source, vocabulary, table.shape[1])
    with torch.no_grad():
        for i, vector in vectors.items():
            table[i] = vector
    words = len(vocabulary) - len(SPECIALS)
    print(f"{source}: vectors for {len(vectors)} of {words} words; the others start random")


def _copy_matching_weights(
    camp: CAMP, folder: Path, vocabulary: Vocabulary, detector: str | None, start_end: bool
) -> tuple[list[str], list[str]]:
    """Copy the weights that have the same name and shape in the checkpoint `folder`.

    Prints which weights are new here, which are not copied, which settings differ, and whether the checkpoint was
    trained on features of another `detector`. The vocabulary may differ if no weights belong to single words: a
    transformer reads their spelling.

    Returns:
        The names of the copied weights, and the settings that differ.
    """
    with input_errors("train.start_from: "):
        source, its_vocabulary, _ = load_checkpoint(folder)
    fingerprint = read_fingerprint(folder)
    if its_vocabulary != vocabulary and source.caption_encoder.word_embeddings() is not None:
        raise InputError(
            f"train.start_from: {folder}: is a checkpoint of another vocabulary ({len(its_vocabulary)} words, "
            f"here {len(vocabulary)}); set captions.vocabulary to {folder / 'vocabulary.json'}"
        )
    if source.config.region_dim != camp.config.region_dim:
        raise InputError(
            f"train.start_from: {folder}: region_dim {source.config.region_dim}; these features have "
            f"{camp.config.region_dim}"
        )
    weights, own = source.state_dict(), camp.state_dict()
    renamed: dict[str, str] = {}
    if source.config.matcher == "joint":  # a joint score begins with the checkpoint's scale and shift
        prefix, joint = "matcher.matching.", "matcher.joint."
        renamed = {name: name.replace(prefix, joint) for name in weights if name.startswith(prefix)}
        weights |= {new: weights[name] for name, new in renamed.items()}
    taken = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not taken:
        raise InputError(f"train.start_from: {folder}: none of its weights has the name and shape of one here")
    left = [name for name in source.state_dict() if not {name, renamed.get(name)} & taken.keys()]
    if camp.config.text == "transformer" and any(name.startswith(TRANSFORMER) for name in left):
        raise InputError(
            f"train.start_from: {folder}: has its own weights for its transformer, {source.config.transformer}, "
            f"which the frozen {camp.config.transformer} would replace; expected model.transformer_frozen: false"
        )
    camp.load_state_dict(taken, strict=False)
    fresh = [name for name in own if name not in taken]
    print(f"{folder}: {len(taken)} of {len(own)} weights copied; new here: {', '.join(fresh) or 'none'}")
    if left:
        print(f"{folder}: not copied: {', '.join(left)}")
    differences = list(_other_switches(source.config.to_dict(), camp.config.to_dict()))
    if (framed := fingerprint.get("start_end", start_end)) != start_end:
        differences.append(f"captions.start_end {str(framed).lower()}, here {str(start_end).lower()}")
    if differences:
        print(f"{folder}: was trained with {', '.join(differences)}")
    if camp.config.joint_score and renamed and source.config.pooling != "mean":
        print(f"{folder}: pools by {source.config.pooling}, model.joint_score by the mean: other scores at first")
    if None not in (detector, fingerprint.get("detector")) and detector != fingerprint["detector"]:
        print(f"{folder}: was trained on features of another detector, or of the same with other settings")
    return list(taken), differences


def _other_switches(there: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    for name, value in here.items():
        if name in ("vocab_size", "region_dim", "geometry") or there[name] == value:
            continue
        # An experiment's own workspace names a folder of the main one by its whole path.
        if name == "transformer" and named_path(there[name]).resolve() == Path(value).resolve():
            continue
        yield f"model.{name} {there[name]}, here {value}"


def freeze(camp: CAMP, prefixes: tuple[str, ...]) -> None:
    """Freeze the parameters whose names begin with one of `prefixes`; InputError if none does, or all do."""
    names = [name for name, _ in camp.named_parameters()]
    prefixes = tuple(map(current_name, prefixes))
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise InputError(f"train.freeze: no parameter begins with {prefix!r}; there are {', '.join(names)}")
    for name, parameter in camp.named_parameters():
        if name.startswith(prefixes):  # others stay as they are: a frozen transformer of a folder is not trained
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in camp.parameters()):
        raise InputError("train.freeze: holds every parameter; expected some left to train")
