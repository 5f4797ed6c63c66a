"""A small made-up data set: regions that say a colour and a shape, captions that name them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from camp_model.captions import write_captions
from camp_model.regions import ImageRegions, StoreInfo, write_manifest, write_shard
from camp_model.vocabulary import Vocabulary
from stages.foils.words import save_words
from stages.params.model import ModelParams
from stages.params.train import TrainParams
from stages.train import Paths, TrainSections, train

REGIONS, WIDTH = 3, 16
WORDS = [f"colour{i}" for i in range(8)] + [f"shape{i}" for i in range(8)]


def write_data(folder: Path, images: int = 30, captions: int = 2, val_images: int | None = None) -> Paths:
    """Write regions and captions; val is a copy of train unless `val_images` says otherwise."""
    generator = np.random.default_rng(0)
    looks = generator.standard_normal((len(WORDS), WIDTH)).astype(np.float32)
    info = StoreInfo(region_dim=WIDTH, max_regions=REGIONS, detector="made-up")
    paths = Paths(
        regions=folder / "regions", captions=folder / "captions", model=folder / "models" / "camp",
        metrics=folder / "metrics" / "train.json", plots=folder / "plots", work=folder / ".work",
    )  # fmt: skip
    paths.captions.mkdir(parents=True)
    rows, texts = [], {}
    for i in range(images + (val_images or 0)):
        k = 2 + i % (REGIONS - 1)
        seen = np.stack([generator.integers(0, 8, k), generator.integers(8, 16, k)], axis=1)
        noise = 0.1 * generator.standard_normal((k, WIDTH)).astype(np.float32)
        features = looks[seen].sum(1) + noise
        zeros = np.zeros(k, np.float32)
        none = np.full(k, -1, np.int32)
        rows.append((f"i{i}", ImageRegions(features, np.zeros((k, 4)), zeros, none, none, zeros, 100, 80)))
        spoken = [[WORDS[word] for pair in seen[generator.permutation(k)] for word in pair] for _ in range(captions)]
        texts[f"i{i}"] = spoken
    write_shard(paths.regions / "a.arrow", info, "a", rows)
    manifest = [(image_id, "a.arrow", row, len(item.features)) for row, (image_id, item) in enumerate(rows)]
    write_manifest(paths.regions, info, manifest)
    names = list(texts)
    splits = {"train": names[:images], "val": names[images:] or names[:images]}
    vocabulary = Vocabulary.build(WORDS[i : i + 1] for i in range(len(WORDS)))
    vocabulary.save(paths.captions / "vocabulary.json")
    # Shapes are no content words here: the means over content words differ from those over all.
    save_words({"colour": {word: [word] for word in WORDS[:8]}}, paths.captions / "lexicon.json")
    for split, members in splits.items():
        pairs = [(name, words) for name in members for words in texts[name]]
        write_captions(
            paths.captions / f"{split}.parquet",
            list(range(len(pairs))),
            [name for name, _ in pairs],
            [" ".join(words) for _, words in pairs],
            [vocabulary.encode(words) for _, words in pairs],
            max_words=50,
        )
    return paths


def small_params(model: dict | None = None, **values: object) -> TrainSections:
    settings = {
        "epochs": 2, "batch_size": 12, "learning_rate": 0.01, "schedule": "constant", "patience": 0, "device": "cpu",
    }  # fmt: skip
    switches = ModelParams(**({"dim": 16, "word_dim": 8} | (model or {})))
    if switches.config(vocab_size=4, region_dim=1).no_gates_reason():
        settings["gate_supervision"] = 0.0  # there is nothing to supervise
    return TrainSections(model=switches, train=TrainParams(**(settings | values)))


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMP_TRACKING", "off")


class Job:
    """The stage as a person runs it: `python -m stages.train` in a folder with params.yaml and data/."""

    def __init__(self, repository: Path, folder: Path, params: TrainSections, **sizes: int) -> None:
        self.repository, self.folder = repository, folder
        data = write_data(folder / "made", **sizes)
        (folder / "data").mkdir()
        data.regions.rename(folder / "data" / "regions")
        data.captions.rename(folder / "data" / "captions")
        self.set(params)

    def set(self, params: TrainSections) -> None:
        self.params = params
        values = {"model": params.model.to_dict(), "train": params.train.to_dict()}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(values))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(self.repository), "OMP_NUM_THREADS": "1"} | environment
        return subprocess.Popen(
            [sys.executable, "-m", "stages.train"],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self, code: int = 0) -> str:
        """Run to the end; returns what was printed."""
        process = self.start()
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == code, printed
        return printed

    def train_here(self) -> None:
        """What `finish` does, in this process, which has already imported what the stage imports."""
        default = Paths()
        below = {
            name: self.folder / getattr(default, name) for name in ("regions", "captions", "model", "metrics", "plots")
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            train(self.params, Paths(**below, work=self.folder / ".work/train"), device=torch.device("cpu"))
        finally:
            torch.set_num_threads(threads)

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> int:
        """Wait until a state of at least `step` steps is saved; return how many it has."""
        for _ in range(30_000):
            for state in self.folder.glob(".work/train/*/state.safetensors"):
                with safe_open(state, framework="pt") as file:
                    if (saved := int(json.loads(file.metadata()["progress"])["step"])) >= step:
                        return saved
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        raise AssertionError(f"step {step} was not reached")

    def result(self) -> tuple[str, str, dict[str, bytes]]:
        """Losses, recalls and weights."""
        weights = load_file(self.folder / "models" / "camp" / "model.safetensors")
        return (
            (self.folder / "plots" / "train_loss.csv").read_text(),
            (self.folder / "plots" / "val_recall.csv").read_text(),
            {name: value.numpy().tobytes() for name, value in weights.items()},
        )


@pytest.fixture
def make_job(tmp_path: Path, repository: Path) -> Callable[..., Job]:
    """Lays out a folder to run the stage in."""

    def make(name: str, params: TrainSections, **sizes: int) -> Job:
        (tmp_path / name).mkdir()
        return Job(repository, tmp_path / name, params, **sizes)

    return make


@pytest.fixture
def params() -> Callable[..., TrainSections]:
    """TrainSections of a small model and a short training; keywords are of `train`, `model` is a dict."""
    return small_params


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Paths]:
    """Writes the data set below tmp_path; see `write_data`."""
    return lambda name="data", **sizes: write_data(tmp_path / name, **sizes)


@pytest.fixture
def run_train() -> Callable[..., None]:
    """Runs the stage on the CPU."""
    return lambda params, paths, **more: train(params, paths, device=torch.device("cpu"), **more)
