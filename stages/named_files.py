"""Stage named_files: the content of every file and folder that params name by path, for DVC to compare.

DVC sees another path in params.yaml, but not other content at the same path. This stage writes one hash for each such
path into named/content.json, under the stage that reads it, and that stage depends on its key of the file. A path that
is not here (a second clone, which pulled the results alone) keeps the hash that was recorded for it.

Where something is named, it also writes a DVC pipeline of one stage, named/dvc.yaml, that `dvc repro` always runs: it
looks again and writes what it saw into named/watched.json, on which this stage depends. The three files belong into Git
as dvc.lock does. They are looked after in the main workspace; an experiment's own one takes what Git has of them.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from camp_model.files import write_json, write_text
from stages.content.hashes import content_hash
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.evaluate import EvaluateParams
from stages.params.section import StageSections
from stages.params.train import TrainParams
from stages.workspace import main_root, named_path

FOLDER = Path("named")
CACHE = Path(".work") / "hashes.sqlite"
WATCH = """# Written by the stage named_files while params name files, which every `dvc repro` looks at again.
stages:
  watch:
    wdir: ..
    cmd: exec python -m stages.named_files watch
    always_changed: true
    outs:
      - named/watched.json:
          cache: false
          persist: true
"""
Content = dict[str, dict[str, dict[str, str]]]
"""Stage -> params key -> path and sha256."""


class NamedFilesSections(StageSections):
    """What the stage reads of params.yaml."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()
    captions: CaptionsParams = CaptionsParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()


def named_paths(params: NamedFilesSections) -> dict[str, dict[str, str]]:
    """Stage -> params key -> the file or folder that it names; stages and keys that name none are left out."""
    dataset, detector, captions, train = params.dataset, params.detector, params.captions, params.train
    fetched = detector.weights in ("train", "default", "random") or "://" in detector.weights
    candidates: dict[str, dict[str, str | None]] = {
        "prepare_dataset": {"dataset.root": None if dataset.source == "scenes" else dataset.root},
        "train_detector": {
            "detector.weights": None if fetched else detector.weights,
            "detector.architecture": detector.architecture if named_path(detector.architecture).is_file() else None,
        },
        "tokenize_captions": {
            "captions.vocabulary": captions.vocabulary,
            "captions.lexicon": None if captions.lexicon in ("scenes", "photographs") else captions.lexicon,
        },
        "train": {"train.word_vectors": train.word_vectors, "train.start_from": train.start_from},
        "evaluate": {f"evaluate.ensemble[{i}]": folder for i, folder in enumerate(params.evaluate.ensemble)},
    }
    return {stage: {key: path for key, path in paths.items() if path} for stage, paths in candidates.items()}


def content_of(paths: Mapping[str, Mapping[str, str]], recorded: Content, cache: Path) -> Content:
    """The hash of each path, and for a path that is not here the one that was recorded for it.

    Raises:
        InputError: a path is not here, and none was recorded; or it cannot be read.
    """
    content: Content = {stage: {} for stage in paths}
    for stage, key, name in ((stage, key, name) for stage, keys in paths.items() for key, name in keys.items()):
        path, before = named_path(name), recorded.get(stage, {}).get(key)
        if path.exists():
            try:
                content[stage][key] = {"path": name, "sha256": content_hash(path, cache)}
            except OSError as error:
                raise InputError(f"params.yaml: {key}: {name}: cannot be read ({error})") from None
        elif before and before["path"] == name:
            print(f"{key}: {name} is not here: taken to be what it was when named/content.json was written")
            content[stage][key] = before
        else:
            raise InputError(f"params.yaml: {key}: {name}: is not here; expected a file or a folder")
    return content


def _recorded(folder: Path) -> Content:
    """What was written last; the watched content is the newer."""
    for name in ("watched.json", "content.json"):
        if (folder / name).is_file():
            values: Content = json.loads((folder / name).read_text(encoding="utf-8"))
            if values:
                return values
    return {}


def named_files(params: NamedFilesSections, folder: Path = FOLDER, watch: bool = False) -> None:
    """Write content.json and what watches it; with `watch`, only watched.json.

    Raises:
        InputError: as `content_of`.
    """
    root = main_root()
    content = content_of(named_paths(params), _recorded(folder), root / CACHE)
    if not watch:
        write_json(folder / "content.json", content)
    if root != Path.cwd().resolve() and not watch:
        return
    named = any(content.values())
    write_json(folder / "watched.json", content if named else {})
    if not watch and named:
        write_text(folder / "dvc.yaml", WATCH)
    elif not watch:
        for name in ("dvc.yaml", "dvc.lock"):
            (folder / name).unlink(missing_ok=True)


def main() -> None:
    named_files(read_params(NamedFilesSections), watch=sys.argv[1:] == ["watch"])


if __name__ == "__main__":
    stage_main(main, arguments=True)
