"""A trained model on disk: safetensors and JSON, never pickle.

model.safetensors   the weights, sealed; its metadata hold format, version, extra, and hashes of config and vocabulary
config.json         CampConfig, key by key
vocabulary.json     the words, in the form of SCAN
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from camp_model.config import CampConfig
from camp_model.files import read_object, replacing, write_json
from camp_model.model import CAMP
from camp_model.registry import TEXT_ENCODERS
from camp_model.seal import BLANK, check_seal, digest_of_values, seal
from camp_model.vocabulary import Vocabulary

FORMAT, VERSION = "camp.model", "1"
OLD_MODULES = ("messages", "region_pooling", "word_pooling", "matching")
"""Modules of older checkpoints, from before there were several matchers, that are now parts of `matcher`."""
NO_NAMES: Mapping[str, str] = MappingProxyType({})


def current_name(name: str) -> str:
    """The current name of a weight, or of a prefix of weights, of any checkpoint."""
    return f"matcher.{name}" if name.split(".", maxsplit=1)[0] in OLD_MODULES else name


def _current_config(values: dict[str, Any]) -> dict[str, Any]:
    """The current form of a config; before there were several matchers, SCAN was a value of `matching`."""
    if "matcher" not in values and values.get("matching") == "scan":
        return {name: value for name, value in values.items() if name != "matching"} | {"matcher": "scan"}
    return values


def save_checkpoint(
    folder: Path | str, model: CAMP, vocabulary: Vocabulary, extra: dict[str, Any] | None = None
) -> None:
    """Write a model into a folder. Files of an older model are replaced, other files stay.

    Args:
        folder: created if needed.
        model: its `vocab_size` must be that of the vocabulary.
        vocabulary: the words whose ids the model reads.
        extra: further facts to store with the model, as JSON.

    Raises:
        ValueError: the vocabulary has another size, or a weight is not finite.
    """
    folder = Path(folder)
    if len(vocabulary) != model.config.vocab_size:
        raise ValueError(f"vocabulary: {len(vocabulary)} words, but the model reads {model.config.vocab_size}")
    metadata = {
        "camp.format": FORMAT,
        "camp.version": VERSION,
        "config_sha256": digest_of_values(model.config.to_dict()),
        "vocabulary_sha256": vocabulary.sha256,
        "tokenizer": vocabulary.tokenizer,
        "extra": json.dumps(extra or {}),
        **BLANK,
    }
    if facts := model.caption_encoder.facts():
        metadata["text"] = json.dumps(facts)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _check_finite(weights, str(folder / "model.safetensors"))
    # All files are written before the first is renamed. A crash during the renaming, the last first, leaves a mixture
    # of two models, which loading detects by hashes and shapes.
    with (
        replacing(folder / "config.json") as config,
        replacing(folder / "model.safetensors") as tensors,
        replacing(folder / "vocabulary.json") as words,
    ):
        write_json(config, model.config.to_dict())
        save_file(weights, tensors, metadata)
        seal(tensors)
        vocabulary.save(words)


def load_checkpoint(
    folder: Path | str, device: torch.device | str = "cpu", vocabulary: Vocabulary | None = None
) -> tuple[CAMP, Vocabulary, dict[str, Any]]:
    """Read a model, in evaluation mode.

    Args:
        folder: a folder that `save_checkpoint` wrote.
        device: the device of the weights.
        vocabulary: the one that captions were tokenized with; an error if the model has another. None: no check.

    Returns:
        The model, its vocabulary and `extra`.

    Raises:
        ValueError: a file is missing or damaged, the weights do not fit the config, or the vocabulary differs; the
            message names the file and the key.
    """
    config_path, words_path, weights_path = (
        Path(folder) / name for name in ("config.json", "vocabulary.json", "model.safetensors")
    )
    stated = read_object(config_path, "a model's config")
    config = _config(stated, config_path)
    words = Vocabulary.load(words_path)
    weights, metadata = _read_weights(weights_path, str(device))
    _check_words(words, words_path, config, metadata, weights_path)
    if vocabulary is not None and vocabulary != words:
        raise ValueError(
            f"{words_path}: word2idx: {len(words)} words ({words.tokenizer}), is another vocabulary than the captions' "
            f"({len(vocabulary)} words, {vocabulary.tokenizer})"
        )
    try:
        facts, extra = (_facts(metadata, key) for key in ("text", "extra"))
        with torch.device(device):
            encoder = TEXT_ENCODERS[config.text].load().from_facts(config, facts)
    except ValueError as error:
        raise ValueError(f"{weights_path}: {error}") from None
    try:
        with torch.device(device):
            model = CAMP(config, caption_encoder=encoder)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from None
    load_weights(model, {current_name(name): value for name, value in weights.items()}, str(weights_path))
    # Last, because earlier checks have more exact messages. Older checkpoints have neither this hash nor a seal.
    if metadata.get("config_sha256") not in (None, digest_of_values(stated)):
        raise ValueError(
            f"{config_path}: is another config than the one that {weights_path} was trained with (its config_sha256)"
        )
    check_seal(weights_path)
    return model.eval(), words, extra


def _facts(metadata: dict[str, str], key: str) -> dict[str, Any]:
    """An entry of a file's metadata; raises ValueError if it is not a JSON object."""
    try:
        facts = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{key}: is not a JSON object")
    return facts


def load_weights(
    model: CAMP, weights: dict[str, torch.Tensor], source: str, called: Mapping[str, str] = NO_NAMES
) -> None:
    """Load weights into a model after checking every name, shape and number.

    Args:
        source: names the weights in error messages.
        called: what error messages call a weight, by its name; others by their names.

    Raises:
        ValueError: a missing or unknown name, another shape, or a number that is not finite.
    """
    own = model.state_dict()
    for name, value in own.items():
        where = f"{source}: {called.get(name, name)}"
        if name not in weights:
            raise ValueError(f"{where}: is missing; expected shape {list(value.shape)}")
        if weights[name].shape != value.shape:
            raise ValueError(f"{where}: shape {list(weights[name].shape)}; expected {list(value.shape)}")
    unknown = sorted(weights.keys() - own.keys())
    if unknown:
        raise ValueError(f"{source}: {unknown[0]}: the model of config.json has no such weight")
    _check_finite(weights, source, called)
    model.load_state_dict(weights)


def _check_finite(weights: dict[str, torch.Tensor], source: str, called: Mapping[str, str] = NO_NAMES) -> None:
    for name, value in weights.items():
        if not value.isfinite().all():
            where = f"{source}: {called.get(name, name)}"
            raise ValueError(f"{where}: holds numbers that are not finite; expected trained weights")


def _read_weights(path: Path, device: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing; expected the model's weights") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from None
    if (metadata.get("camp.format"), metadata.get("camp.version")) != (FORMAT, VERSION):
        raise ValueError(f"{path}: camp.format, camp.version: expected {FORMAT}, {VERSION} in the metadata")
    return weights, metadata


def _config(stated: dict[str, Any], path: Path) -> CampConfig:
    """The config that a file states, in its current form; raises ValueError if it is none, or too old to be used."""
    values, known = _current_config(stated), fields(CampConfig)
    if unknown := values.keys() - {field.name for field in known}:
        raise ValueError(
            f"{path}: {min(unknown)}: unknown key; expected those that this version knows: "
            f"{', '.join(field.name for field in known)}"
        )
    if "vocab_size" not in values:  # all others have defaults
        raise ValueError(f"{path}: vocab_size: is missing; expected the number of words in vocabulary.json")
    try:
        config = CampConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if config.gate_evidence and "geometry" not in stated:
        raise ValueError(
            f"{path}: geometry: is missing: this gate_evidence was trained before features ended with boxes; "
            "expected a model that is trained again"
        )
    return config


def _check_words(
    words: Vocabulary, words_path: Path, config: CampConfig, metadata: dict[str, str], weights_path: Path
) -> None:
    """Raise ValueError if a vocabulary is not the one that the weights were trained with."""
    if len(words) != config.vocab_size or words.sha256 != metadata.get("vocabulary_sha256"):
        raise ValueError(f"{words_path}: word2idx: is another vocabulary than the one of {weights_path}")
    if metadata.get("tokenizer") not in (None, words.tokenizer):
        raise ValueError(f"{words_path}: tokenizer: is {words.tokenizer}, another than that of {weights_path}")
