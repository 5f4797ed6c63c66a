"""After a change of any key of params.yaml, DVC runs the stages that read it, and no others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from camp_model.registry import TEXT_ENCODERS
from stages.detectors import DETECTORS
from stages.params import document
from stages.sources import SOURCES
from tests.chaos.workspace import SMALL
from tests.e2e.conftest import merge

ROOT = Path(__file__).parents[3]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
KEYS = [key for key, _ in document.leaves(document.read(ROOT / "params.yaml"))]
CHOICES = {"dataset": SOURCES, "detector": DETECTORS, "model": TEXT_ENCODERS}
CHOSEN = {"dataset": ("scenes", "table"), "detector": ("torchvision",), "model": ("gru",)}
"""The sources, backends and encoders that are run here; what others alone read is passed over."""
ELSEWHERE = {("dataset.root", "train_detector")}
"""Read where a detector is trained on the boxes of a dataset of files, which takes a source that brings boxes."""
FILES = {
    "dataset": {"source": "table", "root": "pictures"},
    "detector": {"architecture": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random"},
    "captions": {"lexicon": "photographs"},
}


def _draw(folder: Path) -> None:
    """Pictures of noise, a caption each, as the source `table` reads them."""
    folder.mkdir()
    generator, lines = np.random.default_rng(0), ["image,caption,split"]
    for i in range(18):
        Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a {('red', 'blue')[i % 2]} dog on the grass {i},{('train', 'val', 'test')[i // 6]}")
    (folder / "captions.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Stage -> the keys that it read in two runs of the DAG: on a few scenes, and on the same pictures as files."""
    folder = tmp_path_factory.mktemp("reads")
    for name, overlay in (("scenes", {}), ("files", FILES)):
        values = merge(merge(document.read(ROOT / "params.yaml"), SMALL), overlay)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    _draw(folder / "pictures")
    (folder / ".dvc").mkdir()
    (folder / "named").mkdir()
    (folder / "named" / "watched.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/stages/params/reads.py"), ",".join(STAGES), "scenes.yaml", "files.yaml"],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CAMP_TRACKING": "off", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {stage: set(keys) for stage, keys in json.loads(done.stdout.splitlines()[-1]).items()}


def run_by_dvc(key: str) -> set[str]:
    """The stages that list a key, or a section that it lies in, among their params."""
    listing = set()
    for name, stage in STAGES.items():
        params = [param for param in stage["params"] if isinstance(param, str)]
        if any(key == param or key.startswith(f"{param}.") for param in params):
            listing.add(name)
    return listing


def of_another_source(key: str) -> bool:
    """Whether a key is one that only sources, backends or encoders other than those run here read."""
    section, name = key.split(".")[:2]
    return name in CHOICES.get(section, ()) and name not in CHOSEN[section]


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_runs_the_stages_that_read_it(key: str, reads: dict[str, set[str]]) -> None:
    reading = {name for name, keys in reads.items() if any(key == read or read.startswith(f"{key}.") for read in keys)}
    assert reading - run_by_dvc(key) == set(), "read, but no change of it would run the stage"
    if not of_another_source(key):
        idle = {stage for stage in run_by_dvc(key) - reading if (key, stage) not in ELSEWHERE}
        assert idle == set(), "a change of it runs a stage that does not read it"
