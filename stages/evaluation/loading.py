"""Loads what evaluation reads besides the splits: checkpoints, and what tokenize_captions wrote beside the captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from camp_model.checkpoint import load_checkpoint
from camp_model.encoding import captions_as_read
from camp_model.files import sha256_of
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.contracts import check_trained_on, input_errors, read_fingerprint
from stages.errors import InputError, shown
from stages.evaluation.folds import Fold
from stages.foils.table import Foils, read_foils
from stages.foils.words import CONTENT_KINDS, ids_of_kinds, load_words
from stages.params.evaluate import EvaluateParams

K = TypeVar("K", bound=str)
T = TypeVar("T", Fold, Foils)


def load_models(
    folders: Sequence[Path], store: RegionStore, vocabulary: Vocabulary, device: torch.device
) -> list[CAMP]:
    """Load checkpoints, and check that they fit these regions and the captions' vocabulary.

    Raises:
        InputError: a checkpoint is damaged, has another vocabulary, feature width or detector, or is there twice.
    """
    check_distinct(folders)
    with input_errors():
        models = [load_checkpoint(folder, device, vocabulary)[0] for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        check_trained_on(folder, model.config, store)
    return models


def check_distinct(folders: Sequence[Path]) -> None:
    """Raise InputError if two of several checkpoints have the same weights: an ensemble with a copy is no larger."""
    known: dict[str, Path] = {}
    for weights in [folder / "model.safetensors" for folder in folders if len(folders) > 1]:
        if weights.is_file() and (first := known.setdefault(sha256_of(weights), weights)) != weights:
            raise InputError(f"{weights}: holds the same weights as {first}; expected each model of an ensemble once")


def check_start_end(folders: Sequence[Path], captions: Path, has_start_end: bool) -> None:
    """Check that models were trained on captions with <start> and <end> if those in the folder `captions` have them.

    Raises:
        InputError: one was trained on others; a model that does not record it is accepted.
    """
    for folder in folders:
        trained = read_fingerprint(folder).get("start_end")
        if trained not in (None, has_start_end):
            raise InputError(
                f"{folder / 'fingerprint.json'}: start_end: {shown(trained)}, but the captions of {captions} are "
                f"tokenized with {shown(has_start_end)}; expected models trained with the same captions.start_end"
            )


@dataclass(frozen=True)
class LexiconIds:
    """Ids of the words that are in both lexicon and vocabulary, and the foils made with the lexicon."""

    words: list[int]
    content: list[int]
    foils: dict[str, Foils]
    """By split."""


def read_lexicon(params: EvaluateParams, captions: Path, vocabulary: Vocabulary) -> LexiconIds:
    """Read the lexicon and the foils that tokenize_captions wrote; the train split has no foils here.

    Raises:
        InputError: a file cannot be read or is of another format.
    """
    words = load_words(captions / "lexicon.json")
    names = [name for name in params.splits if params.foils and name != "train"]
    foils: dict[str, Foils] = {name: read_foils(captions / f"foils_{name}.parquet") for name in names}
    return LexiconIds(ids_of_kinds(words, vocabulary), ids_of_kinds(words, vocabulary, CONTENT_KINDS), foils)


def read_with_oov_words(
    models: Sequence[CAMP], vocabulary: Vocabulary, splits: Mapping[K, Fold], lexicon: LexiconIds
) -> tuple[dict[K, Fold], LexiconIds]:
    """Return splits and foils with their words as models of a vocabulary read them (`captions_as_read`)."""

    def read(owner: T) -> T:
        with input_errors():
            return replace(owner, captions=captions_as_read(models, vocabulary, owner.captions))

    return (
        {name: read(split) for name, split in splits.items()},
        replace(lexicon, foils={name: read(foils) for name, foils in lexicon.foils.items()}),
    )
