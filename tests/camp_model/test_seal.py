"""A file with one byte changed, without its end or without anything is never read as if it were whole."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from camp_model import CAMP, CampConfig
from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.files import read_object, read_table, write_sealed, write_table
from camp_model.regions import (
    ImageRegions,
    RegionStore,
    StoreInfo,
    read_header,
    write_manifest,
    write_rejected,
    write_shard,
)
from camp_model.seal import BLANK, SETTLED, check_seal, digest_of_values, seal
from camp_model.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build([["a", "red", "circle"], ["blue", "circle"]])
CONFIG = CampConfig(vocab_size=len(VOCABULARY), region_dim=5, word_dim=3, dim=6, gate_context=1.0)
IMAGES = [f"image-{i}" for i in range(6)]


def write_store(folder: Path) -> None:
    generator = np.random.default_rng(0)
    info = StoreInfo(region_dim=5, max_regions=3, detector="made-up", categories=["circle"])
    rows = []
    for image_id in IMAGES:
        ones, none = np.ones(3, np.float32), np.zeros(3, np.int32)
        features, boxes = generator.standard_normal((3, 5)), generator.random((3, 4), dtype=np.float32)
        rows.append((image_id, ImageRegions(features, boxes, ones, none, none - 1, ones, 80, 60)))
    write_shard(folder / "a.arrow", info, "a", rows, [("torn", "cannot be decoded")])
    write_manifest(folder, info, [(image_id, "a.arrow", row, 3) for row, image_id in enumerate(IMAGES)])
    write_rejected(folder, info, [("torn", "torn.png", "cannot be decoded")])


def read_store(folder: Path) -> Any:
    store = RegionStore(folder)
    features, mask = store.features(range(len(store)))
    rows = [(store.boxes(i).tolist(), store.scores(i).tolist(), store.size(i)) for i in range(len(store))]
    header = read_header(folder / "a.arrow")
    return store.image_ids, store.info, features.tobytes(), mask.tobytes(), rows, header


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(folder, CAMP(CONFIG), VOCABULARY, {"epoch": 3})
    write_sealed(folder / "fingerprint.json", {"detector": "made-up", "val_rsum": 123.5})


def read_model(folder: Path) -> Any:
    model, vocabulary, extra = load_checkpoint(folder)
    weights = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    origin = read_object(folder / "fingerprint.json", "an origin")
    return model.config, vocabulary.words, vocabulary.tokenizer, extra, weights, origin


def write_texts(folder: Path) -> None:
    tokens = [[4, 5, 6], [7, 6]]
    write_captions(folder / "train.parquet", [7, 8], IMAGES[:2], ["a red circle", "blue circle"], tokens, equal=1)
    table = pa.table({"image_id": IMAGES, "width": [80] * 6}).replace_schema_metadata({"camp.format": "dataset.images"})
    write_table(folder / "images.parquet", table)


def read_texts(folder: Path) -> Any:
    captions = CaptionTable.load(folder / "train.parquet")
    table = read_table(folder / "images.parquet", {"image_id": pa.string(), "width": pa.int64()}, "images")
    tokens = [tensor.tolist() for tensor in captions.batch(range(len(captions)))]
    return captions.image_ids, captions.texts, tokens, captions.equal, table.to_pydict(), table.schema.metadata


ARTIFACTS = {"store": (write_store, read_store), "model": (write_model, read_model), "texts": (write_texts, read_texts)}
FILES = [
    *(("store", name) for name in ("a.arrow", "manifest.parquet")),
    *(("model", name) for name in ("model.safetensors", "config.json", "vocabulary.json", "fingerprint.json")),
    *(("texts", name) for name in ("train.parquet", "images.parquet")),
]
Read = Callable[[Path], Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind, (write, _) in ARTIFACTS.items():
        folders[kind] = tmp_path_factory.mktemp("sealed") / kind
        write(folders[kind])
    return folders


def outcome(read: Read, folder: Path, damaged: Path) -> Any:
    """What is read; None where the damage is an error that names the damaged file."""
    try:
        return read(folder)
    except ValueError as error:
        assert damaged.name in str(error) or damaged.parent.name in str(error), error
        assert len(str(error)) < 700
        return None


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_one_changed_byte_is_an_error_or_changes_nothing(written: dict, tmp_path: Path, kind: str, name: str) -> None:
    read = ARTIFACTS[kind][1]
    shutil.copytree(written[kind], tmp_path / kind)
    path, whole = tmp_path / kind / name, read(written[kind])
    content = path.read_bytes()
    choice = random.Random(0)
    places = sorted(choice.sample(range(len(content)), min(len(content), 150)))
    seen = 0
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << choice.randrange(8)]) + content[place + 1 :])
        result = outcome(read, tmp_path / kind, path)
        assert result is None or result == whole, f"{name}: byte {place} of {len(content)} makes other values"
        seen += result is None
    assert seen > 0.8 * len(places)  # the rest is layout, or the name of a key that older files lack


@pytest.mark.parametrize(("kind", "name"), FILES)
@pytest.mark.parametrize("length", ["nothing", "a byte", "half", "all but one", "zeros"])
def test_a_torn_file_is_an_error(written: dict, tmp_path: Path, kind: str, name: str, length: str) -> None:
    shutil.copytree(written[kind], tmp_path / kind)
    path = tmp_path / kind / name
    content = path.read_bytes()
    torn = {
        "nothing": b"", "a byte": content[:1], "half": content[: len(content) // 2],
        "all but one": content.rstrip(b"\n")[:-1], "zeros": content[: len(content) // 2].ljust(len(content), b"\0"),
    }[length]  # fmt: skip
    path.write_bytes(torn)
    assert outcome(ARTIFACTS[kind][1], tmp_path / kind, path) is None


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_equal_content_is_equal_bytes(written: dict, tmp_path: Path, kind: str) -> None:
    for _ in range(4):  # the order of safetensors' metadata changes within a process
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        ARTIFACTS[kind][0](tmp_path / kind)
        for path in written[kind].iterdir():
            assert (tmp_path / kind / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    "switch", [{"gate": "elementwise"}, {"gate": "none"}, {"residual": False}, {"gate_context": 2.0}]
)
def test_a_switch_without_weights_cannot_be_changed_in_the_config_alone(
    written: dict, tmp_path: Path, switch: dict
) -> None:
    shutil.copytree(written["model"], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    assert next(iter(switch)) in values
    path.write_text(json.dumps(values, indent=4, sort_keys=True))  # laid out anew, it is the same config
    load_checkpoint(tmp_path / "model")
    path.write_text(json.dumps(values | switch))
    with pytest.raises(ValueError, match=r"config.json: is another config .*model.safetensors"):
        load_checkpoint(tmp_path / "model")


def test_a_vocabulary_of_the_same_words_and_another_tokenizer_is_an_error(written: dict, tmp_path: Path) -> None:
    shutil.copytree(written["model"], tmp_path / "model")
    Vocabulary(VOCABULARY.words, "treebank").save(tmp_path / "model" / "vocabulary.json")
    with pytest.raises(ValueError, match=r"vocabulary.json: tokenizer: is treebank"):
        load_checkpoint(tmp_path / "model")


def test_an_older_model_without_seal_still_loads(written: dict, tmp_path: Path) -> None:
    shutil.copytree(written["model"], tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    old = {name: metadata[name] for name in ("camp.format", "camp.version", "vocabulary_sha256", "extra")}
    save_file(load_file(path), path, old)
    vocabulary = json.loads((tmp_path / "model" / "vocabulary.json").read_text())
    del vocabulary["camp.seal"]
    (tmp_path / "model" / "vocabulary.json").write_text(json.dumps(vocabulary))
    assert load_checkpoint(tmp_path / "model")[2] == {"epoch": 3}


def test_other_programs_read_what_is_sealed(written: dict) -> None:
    import pandas as pd

    assert pd.read_parquet(written["texts"] / "images.parquet")["image_id"].tolist() == IMAGES
    with pa.OSFile(str(written["store"] / "a.arrow")) as file:
        assert pa.ipc.open_file(file).read_all()["image_id"].to_pylist() == IMAGES
    assert len(load_file(written["model"] / "model.safetensors")) == len(CAMP(CONFIG).state_dict())
    assert json.loads((written["model"] / "vocabulary.json").read_text())["word2idx"]["circle"] == 4


def test_only_a_file_with_room_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path, {"camp.format": "x"})
    with pytest.raises(ValueError, match=r"weights.safetensors: camp.seal: no room"):
        seal(path)
    check_seal(path)
    save_file({"a": torch.ones(2)}, path, {"b": 'quotes " and \n lines, é \x7f', "a": "é", **BLANK})
    seal(path)
    check_seal(path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["b"] == 'quotes " and \n lines, é \x7f'


CHECK = """
import sys
from pathlib import Path
from camp_model.seal import check_seal, set_seal_cache
set_seal_cache(Path("memory"))
check_seal(Path("big.arrow"))
print(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much a process has read")
def test_a_file_is_compared_once_and_again_whenever_it_may_have_changed(tmp_path: Path) -> None:
    size = 40 << 20
    table = pa.table({"x": np.arange(size // 8)})
    with pa.ipc.new_file(tmp_path / "big.arrow", table.schema) as writer:
        writer.write_table(table)
    seal(tmp_path / "big.arrow")
    time.sleep(SETTLED + 0.1)

    def read() -> int:
        """Bytes that a process reads for it; -1 where it says that the file is damaged."""
        command, environment = (
            [sys.executable, "-c", CHECK],
            os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "is damaged" in done.stderr, done.stderr
        return int(done.stdout) if done.returncode == 0 else -1

    assert read() > size
    assert read() < size / 4
    (tmp_path / "memory").write_bytes(b"\xff 1 2\n" + (tmp_path / "memory").read_bytes() + b"1 2 3")
    assert read() < size / 4
    before = (tmp_path / "big.arrow").stat()
    with (tmp_path / "big.arrow").open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(tmp_path / "big.arrow", ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nobody had written
    time.sleep(SETTLED + 0.1)
    assert read() == read() == -1, "what was wrong is not remembered as right"
    (tmp_path / "memory").unlink()
    (tmp_path / "memory").mkdir()
    assert read() == -1


def test_a_digest_of_values_depends_on_them_and_not_on_the_order_of_their_names():
    first, same, other = ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, {"a": 1, "b": [3]})
    assert digest_of_values(first) == digest_of_values(same) != digest_of_values(other)
