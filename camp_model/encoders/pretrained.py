"""Pretrained transformers of Hugging Face (`model.transformer`): their weights and their tokenizers.

The package transformers is imported here, when it is needed. Weights are read from safetensors alone, and no code that
comes with them is run.
"""

import getpass
import hashlib
import importlib
import json
import os
import string
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from camp_model.files import sha256_of
from camp_model.packages import PREFIX, names_folder, package_folder
from camp_model.vocabulary import SPECIALS, UNK

LONGEST_WORD = 16
"""Largest number of pieces of a word; further ones are dropped."""
UNLIMITED = 512
"""Largest number of input pieces of a network that states no limit."""
NOT_ARCHITECTURE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Keys of a config that do not describe the network's architecture."""
_TOKENIZER_LOCK = threading.Lock()
"""Tokenizers are not thread-safe."""

PROBED = "the of and in on with is two man woman people dog The Dog"
PROBES = (*PROBED.split(), *string.ascii_lowercase)
"""Words whose pieces identify a tokenizer."""

T = TypeVar("T")


def weights_location(source: str) -> str:
    """The location of the weights of `source`: the folder in a package, or the folder or hub name itself.

    Raises:
        ValueError: the package is not installed, or holds no transformer.
    """
    if not source.startswith(PREFIX):
        return source
    root = package_folder(source)
    folders = sorted({path.parent for path in root.rglob("config.json") if any(path.parent.glob("*.safetensors"))})
    if len(folders) != 1:
        raise ValueError(f"{source}: {len(folders)} folders with config.json and safetensors; expected one")
    return str(folders[0])


def sha256_of_weights(location: str) -> str:
    """Hex sha256 of the files in the folder `location` that decide what its network computes."""
    digest = hashlib.sha256()
    for path in (Path(location, "config.json"), *sorted(Path(location).glob("*.safetensors"))):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def load_text_network(source: str) -> nn.Module:
    """The pretrained network that `source` (as `CampConfig.transformer`) names, in float32 on the CPU.

    Raises:
        ValueError: it cannot be loaded, or is no encoder of text; the message names `source`.
    """
    location = weights_location(source)
    if names_folder(location) and not Path(location).is_dir():
        raise ValueError(
            f"model.transformer: {source:.200}: is not a folder; expected one, a name of the hub, or {PREFIX}NAME"
        )

    def load(library: Any) -> Any:
        config = library.AutoConfig.from_pretrained(location, trust_remote_code=False).get_text_config()
        return _model_class(library, config).from_pretrained(
            location, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip

    with torch.device("cpu"):
        pretrained, weights = _load_quietly(source, "a transformer with safetensors", load)
        network = _encoder(source, pretrained)
        # The library makes random ones in their place.
        wrong = dict.fromkeys(weights["missing_keys"], "is missing")
        wrong |= {name: f"is {list(there)}, not {list(here)}" for name, there, here in weights["mismatched_keys"]}
        random = [name for name in pretrained.state_dict() if name in wrong and not name.startswith("pooler.")]
        if random:
            name, why = random[0], wrong[random[0]]
            raise ValueError(
                f"model.transformer: {source:.200}: {name} {why} ({len(random)} such); expected all weights of the "
                "network that its config.json says"
            )
        for name, value in network.state_dict().items():
            if not value.isfinite().all():
                raise ValueError(
                    f"model.transformer: {source:.200}: {name}: holds numbers that are not finite; expected trained "
                    "weights"
                )
        _check_states(source, network)
    return network


def network_of(architecture: dict[str, Any]) -> nn.Module:
    """A network of an architecture, as `architecture_of` gives it, with random weights.

    Raises:
        ValueError: no such architecture.
    """

    def make(library: Any) -> Any:
        config = library.AutoConfig.for_model(**architecture)
        return _model_class(library, config)._from_config(config)

    return _encoder("architecture", _load_quietly("architecture", "what transformers knows", make))


def _model_class(library: Any, config: Any) -> Any:
    """The class of the text encoder that a config describes."""
    for known in (library.MODEL_FOR_TEXT_ENCODING_MAPPING, library.MODEL_MAPPING):  # the first: of T5 the encoder alone
        if type(config) in known:
            kind = known[type(config)]
            return kind[0] if isinstance(kind, tuple) else kind
    name = type(config).__name__.replace("Config", "Model")  # the side of a two-sided model, as SiglipTextModel
    if not hasattr(library, name):
        raise ValueError(f"no encoder of a {config.model_type} alone is known")
    return getattr(library, name)


def architecture_of(network: Any) -> dict[str, Any]:
    """The shape of a network as plain values."""
    values: dict[str, Any] = json.loads(network.config.to_json_string())
    return {name: value for name, value in values.items() if name not in NOT_ARCHITECTURE}


def longest_input(network: Any) -> int:
    """Number of pieces that a network can read at once."""
    positions = getattr(network.config, "max_position_embeddings", None) or 0
    tables = [module for name, module in network.named_modules() if name.endswith("position_embeddings")]
    # RoBERTa and its kin count positions from padding_idx + 1.
    padding = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return (int(positions) if positions > 0 else UNLIMITED) - max(padding, default=-1) - 1


def pieces_of_words(source: str, words: Sequence[str]) -> list[list[int]]:
    """The pieces of each word of a vocabulary, as `PieceTokenizer` splits them; <pad> has none.

    Raises:
        ValueError: there is no tokenizer; the message names `source`.
    """
    tokenizer = PieceTokenizer(source)
    return [*tokenizer.specials, *tokenizer.tokenize(words[len(SPECIALS) :])]


class PieceTokenizer:
    """The tokenizer of `source` (as `CampConfig.transformer`), which splits words into pieces (subwords).

    A word has the same pieces everywhere: those that it has after another word in a sentence.

    Raises:
        ValueError: there is no tokenizer; the message names `source`.
    """

    specials: list[list[int]]
    """Pieces of <pad> (none), <start> and <end> (put before and after a sentence), and <unk> (the unknown piece)."""

    def __init__(self, source: str) -> None:
        location = weights_location(source)
        known = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
        if Path(location).is_dir() and not any(next(Path(location).glob(name), None) for name in known):
            raise ValueError(
                f"model.transformer: {source:.200}: holds no tokenizer; expected one of {', '.join(known)}"
            )
        self.source = source
        _load_quietly(source, "a tokenizer", lambda library: self._load(library, location))

    def _load(self, library: Any, location: str) -> None:
        self._tokenizer = tokenizer = library.AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        ids = (tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id, 0)
        (before,), (sentence,) = self._pieces(["a"]), self._pieces(["a"], whole=True)
        if not before or before[0] == tokenizer.unk_token_id:  # the library makes an empty tokenizer of a config
            raise ValueError("does not know the word a")
        begin = next(i for i in range(len(sentence)) if sentence[i : i + len(before)] == before)
        unknown = [number for number in ids if number is not None][:1]
        self._before = before
        self.specials = [[], sentence[:begin], sentence[begin + len(before) :], unknown]

    def _pieces(self, texts: list[str], whole: bool = False) -> list[list[int]]:
        with _TOKENIZER_LOCK:
            pieces: list[list[int]] = self._tokenizer(texts, add_special_tokens=whole, truncation=False)["input_ids"]
        return pieces

    def tokenize(self, words: Sequence[str]) -> list[list[int]]:
        """Split words into pieces; a word of which the tokenizer leaves nothing becomes the unknown piece.

        Raises:
            ValueError: the tokenizer fails; the message names `source`.
        """
        if not words:
            return []
        try:
            # After another word, because many tokenizers split the first word of a text differently.
            inside, alone = self._pieces([f"a {word}" for word in words]), self._pieces(list(words))
        except Exception as error:  # a damaged or foreign folder may raise any error in the library
            raise ValueError(
                f"model.transformer: {self.source:.200}: its tokenizer fails ({' '.join(str(error).split()):.300})"
            ) from None
        size = len(self._before)
        chosen = [
            following[size:] if following[:size] == self._before else own
            for following, own in zip(inside, alone, strict=True)
        ]
        return [pieces[:LONGEST_WORD] or self.specials[UNK] for pieces in chosen]

    def tokenize_or_unknown(self, words: Sequence[str]) -> list[list[int]]:
        """As `tokenize`, with the unknown piece for a word on which the tokenizer fails."""
        try:
            return self.tokenize(words)
        except ValueError:
            alone = [self.tokenize_or_unknown([word]) for word in words] if len(words) > 1 else []
            return [pieces for (pieces,) in alone] or [self.specials[UNK]]


def _encoder(source: str, network: Any) -> nn.Module:
    sizes = all(hasattr(network.config, name) for name in ("hidden_size", "vocab_size"))
    decodes = getattr(network.config, "is_encoder_decoder", False) and hasattr(network, "decoder")
    if decodes or not sizes:
        raise _not_an_encoder(source, network, "")
    if hasattr(network, "shared"):  # T5's, a table of pieces that its encoder holds, too
        network = network.encoder
    if hasattr(network, "pooler"):
        network.pooler = nn.Identity()  # of words' states nothing is pooled
    module: nn.Module = network.float().eval()
    return module


def _check_states(source: str, network: Any) -> None:
    """Raise ValueError if a network reads too few pieces, or gives pieces no states, or states that depend on the
    padding behind them."""
    pieces = torch.arange(8) % network.config.vocab_size
    padded = torch.nn.functional.pad(pieces, (0, 8))
    if (longest := longest_input(network)) < len(padded):
        why = f", which reads {longest} pieces of words (max_position_embeddings in config.json), not 16 or more"
        raise _not_an_encoder(source, network, why)
    try:
        with torch.inference_mode():
            alone, beside = (
                network(input_ids=ids[None], attention_mask=mask[None].long()).last_hidden_state[0, :8]
                for ids, mask in ((pieces, pieces >= 0), (padded, torch.arange(16) < 8))
            )
        fits = alone.shape == beside.shape == (8, network.config.hidden_size)
    except Exception as error:  # a network may need other inputs
        raise _not_an_encoder(source, network, f" ({' '.join(str(error).split()):.300})") from None
    if not fits:
        raise _not_an_encoder(source, network, f" (gives {list(alone.shape)} for 8 pieces)")
    if not (alone - beside).norm() <= 1e-4 * alone.norm():
        raise _not_an_encoder(source, network, ", in which what a word is changes with the padding behind a caption")


def _not_an_encoder(source: str, network: Any, why: str) -> ValueError:
    return ValueError(
        f"model.transformer: {source:.200}: is a {network.config.model_type}{why}; expected an encoder of text"
    )


def _name_user() -> None:
    """Name a user id without a name (`docker run --user`) by its number: torch asks for a name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())


def _load_quietly(source: str, expected: str, load: Callable[[Any], T]) -> T:
    """Call `load` with the library transformers, its messages suppressed; any error becomes a ValueError."""
    _name_user()
    try:
        library = importlib.import_module("transformers")
        messages = importlib.import_module("transformers.utils.logging")
    except ImportError:
        raise ValueError(
            "model.text: transformer needs the package transformers; expected it after pip install -e '.[transformer]'"
        ) from None
    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        return load(library)
    except Exception as error:  # a damaged or foreign folder may raise any error in the library
        why = " ".join(str(error).split())
        raise ValueError(
            f"model.transformer: {source:.200}: cannot be loaded ({why:.300}); expected {expected}"
        ) from None
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()
