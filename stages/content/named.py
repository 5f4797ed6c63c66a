"""The files and folders that params name, and hashes of their content."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from camp_model.packages import PREFIX, names_folder
from stages.content.hashes import content_hash
from stages.content.paths import content_path
from stages.contracts import read_object
from stages.errors import InputError, shown
from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.evaluate import EvaluateParams
from stages.params.model import ModelParams
from stages.params.section import StageSections
from stages.params.train import TrainParams
from stages.workspace import named_path

CONTENT = Path("named") / "content.json"
"""What the stages that read named files depend on."""
Content = dict[str, dict[str, dict[str, str]]]
"""Stage -> params key -> path and sha256."""

EXPECTED = "what the stage named_files writes; replace its content by {}, and the stage writes it again"
_BASE = re.compile(rb"""^_BASE_:\s*["']?([^"'#\r\n]{,250}[^"'#\s])""", re.MULTILINE)
"""The line of a detectron2 config that names the file that it builds on, from its own folder."""


class NamedFilesSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()
    captions: CaptionsParams = CaptionsParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()


def named_paths(params: NamedFilesSections, recorded: Content | None = None) -> dict[str, dict[str, str]]:
    """Stage -> params key -> the file or folder that it names, without stages and keys that name none.

    `recorded` has the earlier content: a transformer that was a folder, or a config that was a file, is still treated
    as one if it is missing, although its name could also be that of a model on a hub or in a zoo.
    """
    dataset, detector, captions, train = params.dataset, params.detector, params.captions, params.train
    transformer = params.model.transformer if params.model.text == "transformer" else None
    before = (recorded or {}).get("train", {}).get("model.transformer", {}).get("path")
    if transformer and transformer != before and not (
        transformer.startswith(PREFIX) or names_folder(transformer) or named_path(transformer).is_dir()
    ):  # fmt: skip
        transformer = None  # on a hub
    # A name that ends in .yaml is that of a config of detectron2's zoo, whose weights are meant.
    fetched = detector.weights in ("train", "default", "random") or "://" in detector.weights
    fetched = fetched or detector.weights.endswith(".yaml")
    candidates: dict[str, dict[str, str | None]] = {
        "prepare_dataset": {"dataset.root": None if dataset.source == "scenes" else dataset.root},
        "train_detector": {
            "detector.weights": None if fetched else detector.weights,
            **_config_files(detector.architecture, (recorded or {}).get("train_detector", {})),
        },
        "tokenize_captions": {
            "captions.vocabulary": captions.vocabulary,
            "captions.lexicon": None if captions.lexicon in ("scenes", "photographs") else captions.lexicon,
        },
        "train": {
            "model.transformer": transformer,
            "train.word_vectors": train.word_vectors,
            "train.start_from": train.start_from,
        },
        "evaluate": {f"evaluate.ensemble[{i}]": folder for i, folder in enumerate(params.evaluate.ensemble)},
    }
    return {
        stage: {key: path for key, path in paths.items() if path is not None} for stage, paths in candidates.items()
    }


def _config_files(architecture: str, recorded: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """A detectron2 config file and those that it builds on; nothing if `architecture` names no file."""
    key = "detector.architecture"
    if not named_path(architecture).is_file() and recorded.get(key, {}).get("path") == architecture:
        return {name: entry["path"] for name, entry in recorded.items() if name.startswith(key)}
    files: dict[str, str] = {}
    while named_path(architecture).is_file() and architecture not in files.values():
        files[key] = architecture
        base = _BASE.search(named_path(architecture).read_bytes())
        if base is None:
            break
        architecture = os.path.normpath(Path(architecture).parent / os.fsdecode(base[1]))
        key = f"{key}._BASE_"
    return files


def read_content(path: Path) -> Content:
    """The content in a file that the stage named_files wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    values = read_object(path, EXPECTED)  # an error if Git left a merge conflict
    for stage, named in values.items():
        entries = named.values() if isinstance(named, dict) else [None]
        if not all(isinstance(of, dict) and {"path", "sha256"} <= of.keys() for of in entries):
            raise InputError(f"{path}: {stage}: {shown(named)}; expected {EXPECTED}")
    return values


def content_of(paths: Mapping[str, Mapping[str, str]], recorded: Content, cache: Path) -> Content:
    """The hash of each path; for a missing path, the recorded hash.

    Raises:
        InputError: a path is empty, is missing and no hash was recorded, or cannot be read.
    """
    content: Content = {stage: {} for stage in paths}
    for stage, key, name in ((stage, key, name) for stage, keys in paths.items() for key, name in keys.items()):
        if not name:  # would be the repository itself
            raise InputError(f"params.yaml: {key}: is empty; expected a file or a folder")
        path, before = content_path(name), recorded.get(stage, {}).get(key)
        if path.exists():
            try:
                content[stage][key] = {"path": name, "sha256": content_hash(path, cache)}
            except OSError as error:
                raise InputError(f"params.yaml: {key}: {name}: cannot be read ({error})") from None
        elif before and before["path"] == name:
            print(f"{key}: {name} is missing; its hash in named/content.json is used")
            content[stage][key] = before
        else:
            what = "an installed package" if name.startswith(PREFIX) else "a file or a folder"
            raise InputError(f"params.yaml: {key}: {name}: is not here; expected {what}")
    return content
