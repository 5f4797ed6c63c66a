"""Right inputs of every reader, and what reads them: the material that fuzzing damages."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from camp_model.captions import CaptionTable, write_captions
from camp_model.files import read_object, read_table
from camp_model.import_released import convert, read_checkpoint, read_vocabulary
from camp_model.regions import ImageRegions, StoreInfo, read_shard, write_shard
from camp_model.seal import LENGTH, MARK
from camp_model.vocabulary import TOKENIZERS, Vocabulary
from stages.contracts import read_lines
from stages.detectors.precomputed_forms import StoredRecord, read_place
from stages.detectors.precomputed_records import BrokenRecord
from stages.detectors.weights import load_state
from stages.errors import InputError
from stages.foils.lexicon import choose_lexicon
from stages.params.dataset import DatasetParams
from stages.params.pipeline import Params
from stages.params.presets import compose
from stages.sources import coco, karpathy, table
from stages.sources.base import Source
from stages.sources.checks import check_source, check_splits
from stages.training.word_vectors import load_word_vectors
from tests.camp_model.test_import_released import released, vocabulary_pickle, write

VOCABULARY = Vocabulary.build([["a", "red", "dog"], ["the", "dog", "runs"]])
TEXTS = ["A red dog runs.", "the dog's 2.5 m T-shirt!", "dos perros rojos \u00e9", "\u72ac\u304c\u8d70\u308b"]
PARAMS = """
dataset: {source: table, root: data/raw, table: {file: captions.csv, val_share: 0.1}}
regions: {per_image: 36, min_score: 0.2, dtype: float16}
captions: {min_count: 1, vocabulary: null, lexicon: photographs}
model: {dim: 192, gate: scalar, gate_context: 3.0, residual: true}
train: {epochs: 7, learning_rate: 0.002, learning_rates: {matcher: 0.1}, freeze: [caption_encoder], device: auto}
evaluate: {splits: [test], ensemble: []}
"""


@dataclass(frozen=True)
class Target:
    """A reader: a right file of its input, and the errors that say what is wrong with another one."""

    name: str
    sample: bytes
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...] = (InputError,)
    weight: float = 1.0
    """Cases, in shares of the others': what takes long has fewer."""


def _checked(source: Source) -> None:
    check_source(source, 0.9)
    check_splits(source)


def _dataset(**values: Any) -> Callable[[Path], DatasetParams]:
    return lambda path: DatasetParams.from_dict({"root": str(path.parent), **values})


def _karpathy(path: Path) -> None:
    params = _dataset(source="karpathy", karpathy={"annotations": path.name})(path)
    _checked(karpathy.read_source(params, path.parent))


def _coco(path: Path) -> None:
    part = {"captions": path.name, "instances": path.name, "images": "images", "split": "train"}
    coco.read_source(_dataset(source="coco", coco={"parts": [part]})(path), path.parent)


def _table(path: Path) -> None:
    _checked(table.read_source(_dataset(source="table", table={"file": path.name})(path), path.parent))


def _record(form: str) -> Callable[[Path], Any]:
    return lambda path: read_place(form, path.parent, StoredRecord("1", path.name, 0))


def _tokenize(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    for tokenize in TOKENIZERS.values():
        words = tokenize(text)
        assert all(words) and not any(word.split() != [word] for word in words)
        VOCABULARY.encode(words)


def _written(folder: Path, name: str, write: Callable[[Path], Any]) -> bytes:
    write(folder / name)
    return (folder / name).read_bytes()


def _without_seal(content: bytes) -> bytes:
    """As an older version wrote it: damage reaches the reader of the format itself."""
    at = content.rindex(MARK)
    return content[:at] + content[at + LENGTH :]


def _shard(path: Path) -> None:
    ones, none = np.ones(2, np.float32), np.zeros(2, np.int32)
    item = ImageRegions(np.ones((2, 3)), np.ones((2, 4), np.float32), ones, none, none, ones, 80, 60)
    write_shard(path, StoreInfo(3, 4, "made-up"), "a", [("1", item), ("2", item)], [("3", "torn")])


def _released(path: Path) -> None:
    write(path, released("GatedFusion"), legacy=True)


def targets(folder: Path) -> list[Target]:
    """All readers; `folder` is where samples are made."""
    rows = [{"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": TEXTS[i]}], "imgid": i}
            for i, split in enumerate(("train", "train", "val", "test"))]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(4)]
    annotations = [{"id": i, "image_id": i, "caption": text, "category_id": 1, "bbox": [1, 2, 3.5, 4], "iscrowd": 0}
                   for i, text in enumerate(TEXTS)]  # fmt: skip
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    splits = ("train", "train", "val", "test")
    csv = "image,caption,split\n" + "".join(f'{i}.jpg,"{TEXTS[i]}",{splits[i]}\n' for i in range(4))
    columns = {"image": [f"{i}.jpg" for i in range(4)], "caption": TEXTS, "split": splits}
    numbers = [base64.b64encode(np.ones((2, size), np.float32).tobytes()).decode() for size in (4, 3)]
    weights = {"conv.weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    captions = _written(
        folder, "c.parquet",
        lambda path: write_captions(path, [1, 2], ["a", "b"], ["a dog", "dog"], [[4, 5], [5]]),
    )  # fmt: skip
    shard = _written(folder, "s.arrow", _shard)
    library = (ValueError,)
    return [
        Target("captions.txt", "\n".join(TEXTS).encode(), _tokenize, ()),
        Target("lines.txt", "\n".join(TEXTS).encode(), read_lines),
        Target("vocabulary.json", _written(folder, "v.json", VOCABULARY.save), Vocabulary.load, library),
        Target("fingerprint.json", b'{"detector": "a", "val_rsum": 1.5}', lambda p: read_object(p, "it"), library),
        Target("params.yaml", PARAMS.encode(), Params.load, weight=0.5),
        Target("preset.yaml", PARAMS[:PARAMS.index("model")].encode(), lambda path: compose([path]), weight=0.5),
        Target("dataset.json", json.dumps({"images": rows}).encode(), _karpathy),
        Target("instances.json", json.dumps(instances).encode(), _coco),
        Target("captions.csv", csv.encode(), _table),
        Target("captions.parquet", _written(folder, "t.parquet", lambda p: pq.write_table(pa.table(columns), p)),
               _table),
        Target("features.tsv", "\t".join(["1", "64", "48", "2", *numbers]).encode() + b"\n", _record("tsv"),
               (InputError, BrokenRecord)),
        Target("features.npz", _written(folder, "f.npz", lambda p: np.savez(p, x=np.ones((2, 3), np.float32))),
               _record("npz"), (InputError, BrokenRecord)),
        Target("test_ims.npy", _written(folder, "f.npy", lambda p: np.save(p, np.ones((2, 3, 4), np.float32))),
               _record("scan"), (InputError, BrokenRecord)),
        Target("weights.safetensors", save(weights), load_state),
        Target("weights.pth", _written(folder, "w.pth", lambda path: torch.save(weights, path)), load_state),
        Target("vectors.txt", b"a 1 2 3\nred 0.5 0 1e-3\ndog 1 1 1\n",
               lambda path: load_word_vectors(str(path), VOCABULARY, 3)),
        Target("lexicon.json", b'{"object": {"dog": ["dog", "dogs"]}, "colour": {"red": ["red"], "blue": ["blue"]}}',
               lambda path: choose_lexicon(str(path))),
        Target("train.parquet", captions, CaptionTable.load, library),
        Target("old.parquet", _without_seal(captions), CaptionTable.load, library),
        Target("any.parquet", captions, lambda path: read_table(path, {"text": pa.string()}, "a table"), library),
        Target("shard.arrow", shard, read_shard, library),
        Target("old.arrow", _without_seal(shard), read_shard, library),
        Target("released.pth.tar", _written(folder, "r.pth.tar", _released),
               lambda path: convert(read_checkpoint(path)["model"], str(path)), library),
        Target("released.pkl", vocabulary_pickle(2, words=VOCABULARY.words), read_vocabulary, library),
    ]  # fmt: skip
