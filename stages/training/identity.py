"""Identifies a training by all that decides its result; only a training with the same identity is resumed."""

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import camp_model
import stages
from camp_model.files import sha256_of
from camp_model.seal import digest_of_values
from stages.content.hashes import HASHES, content_hash
from stages.content.imports import imported_names
from stages.content.paths import content_path
from stages.params.model import ModelParams
from stages.params.train import TrainParams
from stages.training.data import epoch_batches
from stages.workspace import main_root

NOT_IN_KEY = ("checkpoint_steps", "micro_batch", "device", "processes", "machines", "word_vectors", "start_from")
"""Params that a training's key leaves out: they do not change the result (except the order of summation), or the key
has their effect in another form: as content, as the batches that they make, as the type of device."""
CODE = ("code", "torch", "transformers")
"""Values of a key that identify code and libraries; the task stays the same if they change."""
RANDOM_PARAMS = ("dropout", "region_dropout", "drop_regions", "drop_words")
"""Params of random numbers that each process draws for itself."""
UNRELATED = ("stages.tracking", "stages.entry")
"""Modules that the stage imports and that do not change its results."""
PACKAGES = {"camp_model": Path(camp_model.__file__).parent, "stages": Path(stages.__file__).parent}


def training_key(
    model: ModelParams, train: TrainParams, data: Mapping[str, str], pairs: int, processes: int, device: torch.device
) -> tuple[str, str]:
    """The key of a training, a hash of everything that decides its result, and a hash of all of that but the code.

    Args:
        data: name -> hash of the data of training and validation.
        pairs: number of captions in the train split.
        processes: number of processes that train together.
        device: only its type matters, not its index: dropout draws other numbers on another type.
    """
    settings = {name: value for name, value in train.to_dict().items() if name not in NOT_IN_KEY}
    started = [content_path(name) for name in (train.word_vectors, train.start_from) if name is not None]
    if is_pretrained := model.text == "transformer":
        started += [path for path in [content_path(model.transformer)] if path.exists()]
    draws = any(getattr(train, name) for name in RANDOM_PARAMS)
    sizes = [len(batch) for batch in epoch_batches(pairs, train.batch_size, train.seed, 0, processes)]
    values: dict[str, Any] = {
        "model": model.to_dict(),
        "train": settings,
        "data": dict(data),
        "start": [content_hash(path, main_root() / HASHES) for path in started],
        "batches": sizes,
        # Each process draws its own dropout (a trained transformer has its own, too) and dropped regions and words.
        "processes": processes if draws or (is_pretrained and not model.transformer_frozen) else None,
        "code": sha256_of_files(imported_files("stages.train")),
        "torch": torch.__version__,
        "transformers": version("transformers") if is_pretrained else None,
        "device": device.type,
    }
    task = {name: value for name, value in values.items() if name not in CODE}
    return digest_of_values(values), digest_of_values(task)


def sha256_of_files(paths: Iterable[Path]) -> str:
    """One hash over the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def imported_files(module: str) -> list[Path]:
    """The project's files that a module imports, directly or indirectly, itself first, except `UNRELATED`.

    Modules that a registry of the library names in a string count as imported; C sources beside a module belong to it.
    """
    files: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop(0)
        parents = [name[:end] for end in (match.start() for match in re.finditer(r"\.", name))]
        for path in filter(None, map(_file_of, [name, *parents])):
            if path not in files:
                files |= dict.fromkeys((path, *sorted(path.parent.glob("*.c"))))
                waiting += _named_modules(path)
    return list(files)


def _file_of(module: str) -> Path | None:
    package, *inner = module.split(".")
    if package not in PACKAGES or module.startswith(UNRELATED):
        return None
    path = PACKAGES[package].joinpath(*inner)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _named_modules(path: Path) -> list[str]:
    tree = ast.parse(path.read_bytes())
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return sorted({text for text in texts if re.fullmatch(r"camp_model(\.\w+)+", text)} | imported_names(tree))


def data_hashes(regions: Path, captions: Path, foils: bool) -> dict[str, str]:
    """File name -> hash, of files that identify all data: the manifest names each shard by a hash of its content.

    With `foils`, those of the train split are included if there are any.
    """
    names = ["train.parquet", "val.parquet", "vocabulary.json", "lexicon.json"]
    if foils and (captions / "foils_train.parquet").is_file():
        names.append("foils_train.parquet")
    files = [regions / "manifest.parquet", *(captions / name for name in names)]
    return {file.name: sha256_of_files([file]) for file in files}
