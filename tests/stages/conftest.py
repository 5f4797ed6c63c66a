"""What the stages' tests share: a small finished run with made-up regions and an untrained model, and a browser tab."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from camp_model.captions import write_captions
from camp_model.checkpoint import save_checkpoint
from camp_model.config import CampConfig
from camp_model.files import sha256_of, write_table
from camp_model.model import CAMP
from camp_model.regions import ImageRegions, StoreInfo, write_manifest, write_rejected, write_shard
from camp_model.vocabulary import Vocabulary, tokenize
from stages.foils.facts import photograph_facts
from stages.foils.lexicon import choose_lexicon
from stages.foils.making import foils_of
from stages.foils.table import foil_table
from stages.foils.words import save_words
from tests.stages.browser import Page

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square")
LEXICON = {
    "colour": {word: [word] for word in COLOURS},
    "object": {word: [word, f"{word}s"] for word in SHAPES},
    "relation": {"above": ["above"], "beside": ["with"]},
    "opposites": [["above", "beside"]],
}
HOSTILE = "<script>alert(1)</script> a red circle & \"two\" </script><img src=x onerror='alert(2)'>"
REGIONS, WIDTH = 5, 8


@dataclass(frozen=True)
class SmallRun:
    """The folders of a run, all below `root`, named as the pipeline names them."""

    root: Path
    images: list[str]
    captions: list[tuple[int, str, str]]
    """(caption_id, image_id, text) of the test split."""

    @property
    def regions(self) -> Path:
        return self.root / "data/regions"

    @property
    def token_tables(self) -> Path:
        return self.root / "data/captions"

    @property
    def model(self) -> Path:
        return self.root / "models/camp"


def _draw(path: Path, size: tuple[int, int], generator: np.random.Generator) -> list[tuple[int, int, int]]:
    """Draw REGIONS shapes in a picture; returns (left, top, side) of each."""
    picture = Image.new("RGB", size, (120, 125, 118))
    pen = ImageDraw.Draw(picture)
    places = []
    for i in range(REGIONS):
        side = int(generator.integers(16, 40))
        x, y = int(generator.integers(0, size[0] - side)), int(generator.integers(0, size[1] - side))
        shape = (pen.ellipse, pen.rectangle)[i % 2]
        shape((x, y, x + side, y + side), fill=COLOURS[i % len(COLOURS)])
        places.append((x, y, side))
    picture.save(path)
    return places


def _texts(number: int) -> list[str]:
    """One to five captions of an image, no two the same."""
    colour, shape = COLOURS[number % 4], SHAPES[number // 4 % 2]
    texts = [
        f"A {colour} {shape} number {number}.",
        f"there is one {colour} {shape} above {number} {COLOURS[(number + 1) % 4]} things",
        f"{colour} {shape} {number}",
        f"a picture with {number} {shape}s, one of them {colour}",
        f"pneumonoultramicroscopicsilicovolcanoconiosis donaudampfschifffahrtskapitän ένα κόκκινο {number}",
    ]
    return [HOSTILE, *texts[:2]] if number == 3 else texts[: 1 + number % 5]


def _tables(root: Path, images: list[str], sizes: list[tuple[int, int]], captions: list[tuple[int, str, str]]) -> None:
    dataset = root / "data/dataset"
    pq.write_table(
        pa.table({
            "image_id": images, "path": [f"{name}.png" for name in images], "split": ["test"] * len(images),
            "width": pa.array([w for w, _ in sizes], pa.int32()), "height": pa.array([h for _, h in sizes], pa.int32()),
            "sha256": [sha256_of(dataset / f"images/{name}.png") for name in images],
        }),
        dataset / "images.parquet",
    )  # fmt: skip
    ids, image_ids, texts = (list(column) for column in zip(*captions, strict=True))
    pq.write_table(
        pa.table({"caption_id": ids, "image_id": image_ids, "split": ["test"] * len(ids), "text": texts}),
        dataset / "captions.parquet",
    )
    # The hostile caption's words stay unknown.
    vocabulary = Vocabulary.build(tokenize(text) for text in texts if text != HOSTILE)
    (root / "data/captions").mkdir()
    vocabulary.save(root / "data/captions/vocabulary.json")
    tokens = [vocabulary.encode(tokenize(text)) for text in texts]
    write_captions(root / "data/captions/test.parquet", ids, image_ids, texts, tokens)
    (root / "lexicon.json").write_text(json.dumps(LEXICON))
    lexicon = choose_lexicon(str(root / "lexicon.json"))
    save_words(lexicon.words, root / "data/captions/lexicon.json")
    words = [tokenize(text) for text in texts]
    foils = []
    for caption_id, image_id, text, caption, facts in zip(
        ids, image_ids, texts, words, photograph_facts(lexicon, image_ids, words, root / "none"), strict=True
    ):
        for foil in foils_of(caption_id, text, caption, facts, lexicon, vocabulary):
            foils.append({
                "caption_id": caption_id, "image_id": image_id, "text": foil.text, "kind": foil.kind,
                "tokens": vocabulary.encode(foil.words), "length": len(foil.words), "position": foil.position,
                "word": foil.word, "foil_word": foil.foil_word,
            })  # fmt: skip
    write_table(root / "data/captions/foils_test.parquet", foil_table(foils))


def _regions(folder: Path, images: list[str], sizes: list[tuple[int, int]], places: list[list], generator) -> None:
    info = StoreInfo(WIDTH, REGIONS, "a" * 64, "float16", list(SHAPES), list(COLOURS))
    rows = []
    for image_id, size, shapes in zip(images, sizes, places, strict=True):
        kept = shapes[: 3 + len(rows) % 3]
        found = ImageRegions(
            features=generator.normal(size=(len(kept), WIDTH)).astype(np.float32),
            boxes=np.array([(x, y, x + side, y + side) for x, y, side in kept], np.float32),
            scores=np.linspace(1, 0.5, len(kept), dtype=np.float32),
            classes=np.arange(len(kept), dtype=np.int32) % 2,
            attributes=np.arange(len(kept), dtype=np.int32) % 4,
            attribute_scores=np.ones(len(kept), np.float32),
            width=size[0],
            height=size[1],
        )  # fmt: skip
        rows.append((image_id, found))
    folder.mkdir(parents=True)
    half = len(rows) // 2
    for name, part in (("a.arrow", rows[:half]), ("b.arrow", rows[half:])):
        write_shard(folder / name, info, name, part)
    manifest = [
        (image_id, "a.arrow" if i < half else "b.arrow", i if i < half else i - half, len(found.features))
        for i, (image_id, found) in enumerate(rows)
    ]
    write_manifest(folder, info, manifest)
    write_rejected(folder, info, [("broken", "broken.png", "zero bytes")])


def _checkpoint(folder: Path, vocabulary: Vocabulary, seed: int = 0, **switches: object) -> None:
    torch.manual_seed(seed)
    config = CampConfig(vocab_size=len(vocabulary), **({"region_dim": WIDTH, "word_dim": 8, "dim": 12} | switches))
    model = CAMP(config)
    model.caption_encoder.read_vocabulary(vocabulary)
    save_checkpoint(folder, model, vocabulary)
    content = {"detector": "a" * 64, "dataset": "b" * 64, "val_rsum": 123.4}
    (folder / "fingerprint.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., None]:
    """A function (folder, vocabulary, seed, **switches) that saves an untrained model."""
    return _checkpoint


@pytest.fixture(scope="session")
def make_run() -> Callable[..., SmallRun]:
    """A function (root, images=20, **switches of the model) that makes a small run."""

    def make(root: Path, images: int = 20, **switches: object) -> SmallRun:
        generator = np.random.default_rng(0)
        names = [f"image-{i:02d}" for i in range(images)]
        sizes = [(120, 90) if i % 2 else (80, 110) for i in range(images)]
        pictures = root / "data/dataset/images"
        pictures.mkdir(parents=True)
        places = [_draw(pictures / f"{name}.png", size, generator) for name, size in zip(names, sizes, strict=True)]
        captions = []
        for i, name in enumerate(names):
            captions += [(100 * i + j, name, text) for j, text in enumerate(_texts(i))]
        _tables(root, names, sizes, captions)
        _regions(root / "data/regions", names, sizes, places, generator)
        _checkpoint(root / "models/camp", Vocabulary.load(root / "data/captions/vocabulary.json"), **switches)
        for folder in ("metrics", "plots"):
            (root / folder).mkdir()
        facts = {"best_epoch": 2, "epochs": 3, "steps": 9, "val_rsum": 123.4, "train_loss": 0.9}
        (root / "metrics/train.json").write_text(json.dumps(facts))
        loss = "".join(f"{step},{3 / step}\n" for step in range(1, 10))
        (root / "plots/train_loss.csv").write_text("step,loss\n" + loss)
        header = "epoch,rsum,i2t_r1,i2t_r5,i2t_r10,t2i_r1,t2i_r5,t2i_r10,gate_positive_mean,gate_negative_mean\n"
        recall = "".join(f"{e},{100 * e},{20 * e},30,40,{15 * e},30,40,{0.2 * e},0.1\n" for e in (1, 2, 3))
        (root / "plots/val_recall.csv").write_text(header + recall)
        bins = "".join(f"{e},{g},{e},{4 - e},5\n" for e in (1, 2, 3) for g in (0.25, 0.75))
        columns = "epoch,gate,words_positive,words_negative,regions_positive\n"
        (root / "plots/val_gates.csv").write_text(columns + bins)
        return SmallRun(root, names, captions)

    return make


@pytest.fixture
def small(make_run: Callable[..., SmallRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallRun:
    """A small run in an empty working directory, untracked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMP_TRACKING", "off")
    return make_run(tmp_path)


@pytest.fixture(scope="session")
def chromium_tab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests of a process."""
    profile = tmp_path_factory.mktemp("chromium")
    tab = Page(chromium, profile)
    yield tab
    tab.close()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def page(chromium_tab: Page) -> Iterator[Page]:
    """A tab; what is in it ends with the test."""
    yield chromium_tab
    chromium_tab.call("Page.navigate", url="about:blank")
