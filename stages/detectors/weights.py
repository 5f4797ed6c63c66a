"""Gets a detector's weights from a file, a URL or an installed package, and never runs code from a pickle."""

import hashlib
import http.client
import os
import re
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from camp_model.files import replacing, sha256_of
from camp_model.packages import PREFIX, package_folder
from camp_model.pickle_ops import refused_name
from stages.detectors.pickled_arrays import read_arrays
from stages.errors import InputError, shown, without_password
from stages.workspace import main_root, named_path

State = dict[str, torch.Tensor]
STARTS = (b"PK", b"\x80")
"""First bytes of what torch.save writes: a zip file, or in old versions a pickle."""
CHUNK = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def cache_folder() -> Path:
    """The folder of downloaded weights: in the user's cache, or in the workspace if there is no home folder."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(named) if named else Path.home() / ".cache"
    except RuntimeError:  # no HOME, and the system does not know the user
        base = Path()
    return base / "camp-retrieval" if base.is_absolute() else main_root() / ".work" / "downloads"


def _check_scheme(url: str) -> None:
    """Raise a ValueError unless the URL is https, or http on this machine: anything else can be changed in transit."""
    address = urllib.parse.urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in LOOPBACK):
        raise ValueError(f"{address.scheme}:// is not protected on its way; expected https://")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other machines only by https, and to this one only from itself."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_scheme(newurl)
        if (
            urllib.parse.urlsplit(newurl).hostname in LOOPBACK
            and urllib.parse.urlsplit(req.full_url).hostname not in LOOPBACK
        ):
            raise ValueError(f"{without_password(newurl)[:200]}: another machine leads to this one")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _expected_sha256(url: str, name: str) -> str:
    """The beginning of the file's sha256, from the URL's `#sha256=...` or a name such as torch's (`-9656183e.pth`)."""
    if fragment := urllib.parse.urlsplit(url).fragment:
        stated = re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment)
        if stated is None:
            raise ValueError(f"#{fragment[:80]} is not #sha256= and a hash")
        return stated[1].lower()
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    # Eight digits that begin like a year are a date.
    return named[1] if named and not re.fullmatch(r"(19|20)\d{6}", named[1]) else ""


def download(url: str, folder: Path) -> Path:
    """Fetch the file at `url` unless it is there already; it lies in a folder below `folder` named by the URL's hash.

    Raises:
        InputError: it cannot be fetched whole and protected, or lacks the hash that the URL or its name states.
    """
    address = url.split("#", maxsplit=1)[0]
    try:
        _check_scheme(address)
        name = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rstrip("/").rsplit("/", 1)[-1]
        expected = _expected_sha256(url, name)
        path = folder / hashlib.sha256(address.encode()).hexdigest()[:16] / (name[-100:] or "weights")
        if path.is_file() and sha256_of(path).startswith(expected):
            return path
        opener = urllib.request.build_opener(_SafeRedirects)
        with opener.open(address, timeout=60) as answer, replacing(path) as temporary:
            _receive(answer, temporary, path.name)
            if not (sha256 := sha256_of(temporary)).startswith(expected):
                raise OSError(f"its sha256 is {sha256}; expected it to begin with {expected}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"params.yaml: detector.weights: {url[:300]} cannot be fetched ({str(error)[:200]}); where there is no "
            "network, give the path of a file that holds these weights"
        ) from None
    return path


def _receive(answer: Any, path: Path, name: str) -> None:
    """Write the body of a response. OSError if it is incomplete."""
    stated = answer.headers.get("Content-Length")
    total = int(stated) if stated is not None else None
    with path.open("wb") as file, tqdm(total=total, unit="B", unit_scale=True, desc=name, mininterval=2) as bar:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and path.stat().st_size != total:
        raise OSError(f"{path.stat().st_size} of {total} bytes came")


def locate(source: str, cache: Path | None = None) -> Path:
    """The file that `detector.weights` names: a path, a URL that is downloaded into `cache`, or the only file of
    weights in an installed package."""
    if source.startswith(PREFIX):
        return _packaged(source)
    if "://" in source:
        return download(source, cache or cache_folder())
    try:
        path = named_path(source)
        if path.is_file():
            return path
    except OSError:  # too long for a file name
        pass
    raise InputError(
        f"params.yaml: detector.weights: {source[:300]!r} is no file; expected default, random, a file, a URL or "
        f"{PREFIX}NAME"
    )


def _packaged(source: str) -> Path:
    """The only file of weights in an installed package."""
    try:
        folder = package_folder(source)
    except ValueError as error:
        raise InputError(f"params.yaml: detector.weights: {error}") from None
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pth", ".pt", ".bin"))
    if len(files) != 1:
        names = ", ".join(path.relative_to(folder).as_posix()[:80] for path in files[:3])
        raise InputError(
            f"params.yaml: detector.weights: {source[:300]}: the package holds {len(files)} files of weights"
            f"{f' ({names})' if names else ''}; expected one. Give the path of a file instead"
        )
    return files[0]


def _reason(error: Exception) -> str:
    """The first line of an error, never long and never empty."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return (said.strip().splitlines() or [type(error).__name__])[0][:200]


def load_state(path: Path) -> State:
    """Read a state dict from .safetensors, .pth, .pt or a .pkl of arrays, without running code from it.

    Raises:
        InputError: the file cannot be read that way.
    """
    try:
        if path.suffix == ".safetensors":
            return _plain(load_file(path), path)
        if path.suffix == ".pkl":
            return read_arrays(path)
        with path.open("rb") as file:
            begin = file.read(40)
        if begin and not begin.startswith(STARTS):  # a web page, or a pointer of Git LFS
            raise InputError(
                f"{path}: cannot be read as weights (begins with {shown(begin)}); expected .pth, .safetensors"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as weights ({_reason(error)})") from None
    except InputError:
        raise
    except Exception as error:  # torch.load lets pickle.UnpicklingError and others through
        raise InputError(
            f"{path}: holds more than tensors ({refused_name(error) or type(error).__name__}); such a file could run "
            "code and is not opened. Expected .safetensors, or .pth that torch.load(weights_only=True) reads"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: is no state dict; expected names of parameters with a tensor each")
    return _plain(state, path)


def _plain(state: dict[Any, torch.Tensor], path: Path) -> State:
    """Return the state without the prefix that DataParallel puts before every name.

    Raises:
        InputError: a name is not a string, or a tensor is of a kind that networks here do not have.
    """
    for name, value in state.items():
        kind = str(value.dtype).removeprefix("torch.")
        odd = value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex()
        if not isinstance(name, str) or odd or kind.startswith("float8"):
            raise InputError(
                f"{path}: {str(name)[:200]}: is {shown(name)} with a tensor of {kind}, {value.layout}; expected the "
                "name of a parameter with whole or floating-point numbers of 16 bits or more"
            )
    prefix = "module."
    shared = state and all(name.startswith(prefix) for name in state)
    return {name.removeprefix(prefix): value for name, value in state.items()} if shared else state


def save_state(state: State, folder: Path) -> str:
    """Write weights.safetensors; return its sha256."""
    path = folder / "weights.safetensors"
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
    return sha256_of(path)


def load_saved(folder: Path, expected: str) -> State:
    """Read weights.safetensors from data/detector, and check it against detector.json.

    Raises:
        InputError: the file is missing, damaged, or not the one that is described.
    """
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: is missing; train_detector writes it")
    if sha256_of(path) != expected:
        raise InputError(f"{path}: is not the file that {folder / 'detector.json'} describes (its sha256 differs)")
    return load_state(path)


def calm(network: torch.nn.Module) -> None:
    """Scale down residual branches of an untrained network: without trained normalisation each block would add its full
    input once more, and after a hundred layers the features would not fit into float16."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("bn3.weight", "conv3.norm.weight")):
            tensor.mul_(0.2)


def fit(network: torch.nn.Module, state: State, source: str) -> None:
    """Load `state` into the network.

    Raises:
        InputError: a parameter is missing, unknown, of another shape or not finite; the message names it.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    for names, what in ((missing, "is missing"), (unknown, "is unknown to the architecture")):
        if names:
            name = str(names[0])[:200]
            raise InputError(f"{source}: {name}: {what} ({len(names)} such); expected weights of the architecture")
    if shapes:
        name = shapes[0]
        raise InputError(
            f"{source}: {name}: has shape {list(state[name].shape)}; the architecture has {list(own[name].shape)}"
        )
    check_finite(network, state, source)
    network.load_state_dict(state, strict=False)


def check_finite(network: torch.nn.Module, state: State, source: str) -> None:
    """Raise an InputError if `state` has a value that is not finite, unless it is a buffer that the new network has
    too, such as an infinite limit."""
    buffers = dict(network.named_buffers())
    for name, value in state.items():
        if not value.isfinite().all() and not (name in buffers and torch.equal(value, buffers[name])):
            raise InputError(f"{source}: {name}: holds numbers that are not finite; expected trained weights")
