"""What decides the result of a training: the state of a killed one is only ever used where all of it is the same."""

import ast
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import camp_model
import stages
from stages.content.hashes import content_hash
from stages.content.imports import imported_names
from stages.content.paths import content_path
from stages.params.model import ModelParams
from stages.params.train import TrainParams
from stages.training.data import epoch_batches
from stages.training.resume import run_key, sha256_of_files
from stages.workspace import main_root

FREE = ("checkpoint_steps", "micro_batch", "device", "processes", "machines", "word_vectors", "start_from")
"""Params that leave the result alone (but for the order in which numbers are added up), or that stand for something
else: for content, for the batches that they make, for where training computes."""
CODE = ("code", "torch", "transformers")
"""Of the values of a key, what computes: another leaves what is trained as it is."""
DRAWN = ("dropout", "region_dropout", "drop_regions", "drop_words")
"""Params of what a process draws for itself."""
UNRELATED = ("stages.tracking", "stages.entry")
"""What the stage imports and what changes no result of it."""
PACKAGES = {"camp_model": Path(camp_model.__file__).parent, "stages": Path(stages.__file__).parent}


def training_key(
    model: ModelParams, train: TrainParams, data: Mapping[str, str], pairs: int, processes: int, device: torch.device
) -> tuple[str, str]:
    """The key of a training, a hash of everything that decides its result, and a hash of all of that but the code.

    Args:
        data: name -> hash of what is trained and validated on.
        pairs: captions of the train split.
        processes: that train together.
        device: the kind counts, not its number: dropout draws other numbers on another kind.
    """
    settings = {name: value for name, value in train.to_dict().items() if name not in FREE}
    started = [content_path(name) for name in (train.word_vectors, train.start_from) if name is not None]
    if is_pretrained := model.text == "transformer":
        started += [path for path in [content_path(model.transformer)] if path.exists()]
    draws = any(getattr(train, name) for name in DRAWN)
    sizes = [len(batch) for batch in epoch_batches(pairs, train.batch_size, train.seed, 0, processes)]
    values: dict[str, Any] = {
        "model": model.to_dict(),
        "train": settings,
        "data": dict(data),
        "start": [content_hash(path, main_root() / ".work" / "hashes.sqlite") for path in started],
        "batches": sizes,
        # Each process draws its own dropout (a transformer that is trained has some inside), and what it leaves out.
        "processes": processes if draws or (is_pretrained and not model.transformer_frozen) else None,
        "code": sha256_of_files(imported_files("stages.train")),
        "torch": torch.__version__,
        "transformers": version("transformers") if is_pretrained else None,
        "device": device.type,
    }
    return run_key(values), run_key({name: value for name, value in values.items() if name not in CODE})


def imported_files(module: str) -> list[Path]:
    """The project's files that a module imports, directly or through others, itself first; `UNRELATED` left out.

    Modules that a registry of the library names in a text count as imported, the C sources beside a module as its own.
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


def data_hashes(regions: Path, captions: Path, foils: bool = False) -> dict[str, str]:
    """File name -> hash, of files that stand for all the data: the manifest names a shard by a hash of its content.

    With `foils` those of the train split are among them, where there are any.
    """
    names = ["train.parquet", "val.parquet", "vocabulary.json", "lexicon.json"]
    if foils and (captions / "foils_train.parquet").is_file():
        names.append("foils_train.parquet")
    files = [regions / "manifest.parquet", *(captions / name for name in names)]
    return {file.name: sha256_of_files([file]) for file in files}
