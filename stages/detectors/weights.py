"""Where a detector's weights come from: a file, a URL, or a library's own download; never a pickle that runs code."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from camp_model.files import replacing
from stages.detectors.pickled_arrays import read_arrays
from stages.errors import InputError
from stages.workspace import named_path

State = dict[str, torch.Tensor]
CHUNK = 1 << 20
CACHE = Path.home() / ".cache" / "camp-retrieval"
"""Where downloaded weights are kept."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, folder: Path) -> Path:
    """The file behind `url` in `folder`, fetched unless it is there already.

    Raises:
        InputError: it cannot be fetched.
    """
    path = folder / url.split("?", maxsplit=1)[0].rstrip("/").rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, replacing(path) as temporary:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with (
                temporary.open("wb") as file,
                tqdm(total=total, unit="B", unit_scale=True, desc=path.name, mininterval=2) as bar,
            ):
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            if total and temporary.stat().st_size != total:
                raise OSError(f"{temporary.stat().st_size} of {total} bytes came")
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise InputError(
            f"params.yaml: detector.weights: {url} cannot be fetched ({error}); where there is no network, give "
            "the path of a file that holds these weights"
        ) from None
    return path


def locate(source: str, cache: Path) -> Path:
    """The file that `detector.weights` names: a path, or a URL that is downloaded into `cache`."""
    if "://" in source:
        return download(source, cache)
    path = named_path(source)
    if not path.is_file():
        raise InputError(
            f"params.yaml: detector.weights: {source!r} is no file; expected default, random, a file or a URL"
        )
    return path


def load_state(path: Path) -> State:
    """A state dict from .safetensors, .pth, .pt or a .pkl of arrays, without running any code of theirs.

    Raises:
        InputError: the file cannot be read that way.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            return read_arrays(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as weights ({str(error).splitlines()[0]})") from None
    except InputError:
        raise
    except Exception as error:  # torch.load lets pickle.UnpicklingError and others through
        raise InputError(
            f"{path}: holds more than tensors ({str(error).splitlines()[0]}); such a file could run code and is "
            "not opened. Expected .safetensors, or .pth that torch.load(weights_only=True) reads"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: is no state dict; expected names of parameters with a tensor each")
    return state


def save_state(state: State, folder: Path) -> str:
    """Write weights.safetensors; its sha256."""
    path = folder / "weights.safetensors"
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
    return sha256_of(path)


def load_saved(folder: Path, expected: str) -> State:
    """weights.safetensors of data/detector, checked against detector.json.

    Raises:
        InputError: missing, damaged, or other weights than described.
    """
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: is missing; train_detector writes it")
    if sha256_of(path) != expected:
        raise InputError(f"{path}: is not the file that {folder / 'detector.json'} describes (its sha256 differs)")
    return load_state(path)


def calm(network: torch.nn.Module) -> None:
    """Make an untrained residual network usable: without trained normalisation each block would add its full input
    once more, and after a hundred layers the features would not fit into float16."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("bn3.weight", "conv3.norm.weight")):
            tensor.mul_(0.2)


def fit(network: torch.nn.Module, state: State, source: str) -> None:
    """Load `state` into the network.

    Raises:
        InputError: a parameter is missing, unknown or of another shape; the message names it.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    for names, what in ((missing, "is missing"), (unknown, "is unknown to the architecture")):
        if names:
            raise InputError(f"{source}: {names[0]}: {what} ({len(names)} such); expected weights of the architecture")
    if shapes:
        name = shapes[0]
        raise InputError(
            f"{source}: {name}: has shape {list(state[name].shape)}; the architecture has {list(own[name].shape)}"
        )
    network.load_state_dict(state, strict=False)
