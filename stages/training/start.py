"""The model that training starts from."""

from pathlib import Path

import torch

from camp_model.checkpoint import current_name, load_checkpoint
from camp_model.model import CAMP
from camp_model.vocabulary import SPECIALS, Vocabulary
from stages.contracts import input_errors, read_fingerprint
from stages.errors import InputError
from stages.params.model import ModelParams
from stages.params.train import TrainParams
from stages.training.word_vectors import load_word_vectors
from stages.workspace import named_path


def new_model(
    model: ModelParams,
    train: TrainParams,
    vocabulary: Vocabulary,
    region_dim: int,
    geometry: float = 0.0,
    detector: str | None = None,
) -> CAMP:
    """A model with random weights from `train.seed`, then word vectors, then those of `train.start_from`.

    `geometry` is what the boxes that features end with are multiplied by; 0: features without boxes. `detector` is the
    fingerprint of what made the features.

    Raises:
        InputError: the word vectors, the checkpoint or the names in `train.freeze` do not fit.
    """
    torch.manual_seed(train.seed)
    switches = model.replace(transformer=str(named_path(model.transformer)))  # a folder may be in the main workspace
    with input_errors():
        camp = CAMP(
            switches.config(vocab_size=len(vocabulary), region_dim=region_dim, geometry=geometry),
            dropout=train.dropout,
            region_dropout=train.region_dropout,
        )
        camp.caption_encoder.read_vocabulary(vocabulary)
    if train.word_vectors is not None:
        _set_word_vectors(camp, train.word_vectors, vocabulary)
    if train.start_from is not None:
        _take_weights(camp, named_path(train.start_from), vocabulary, detector)
    _freeze(camp, train.freeze)
    return camp


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


def _take_weights(camp: CAMP, folder: Path, vocabulary: Vocabulary, detector: str | None) -> None:
    """Copy the weights that have the same name and shape in the checkpoint `folder`; say which stay random, and whether
    it was trained on features of another `detector`.

    The words may be others where none of its weights belongs to a word: a transformer reads how they are spelt.
    """
    try:
        source, its_vocabulary, _ = load_checkpoint(folder)
        its_detector = read_fingerprint(folder).get("detector")
    except ValueError as error:
        raise InputError(f"train.start_from: {error}") from None
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
    if source.config.matcher == "joint":  # its scale and shift of a cosine are those that a joint score begins with
        prefix, joint = "matcher.matching.", "matcher.joint."
        weights |= {name.replace(prefix, joint): value for name, value in weights.items() if name.startswith(prefix)}
    taken = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not taken:
        raise InputError(f"train.start_from: {folder}: none of its weights has the name and shape of one here")
    camp.load_state_dict(taken, strict=False)
    fresh = [name for name in own if name not in taken]
    print(f"{folder}: {len(taken)} of {len(own)} weights taken; new: {', '.join(fresh) or 'none'}")
    if None not in (detector, its_detector) and detector != its_detector:
        print(f"{folder}: was trained on features of another detector, or of other settings of it")


def _freeze(camp: CAMP, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in camp.named_parameters()]
    prefixes = tuple(map(current_name, prefixes))
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise InputError(f"train.freeze: no parameter begins with {prefix!r}; there are {', '.join(names)}")
    for name, parameter in camp.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))
    if not any(parameter.requires_grad for parameter in camp.parameters()):
        raise InputError("train.freeze: holds every parameter; expected some left to train")
