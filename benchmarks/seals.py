"""What it costs to compare files with their seals: shares of the processor time that reading them takes.

A model of the paper's size, a table of 100,000 captions, and a store of 1,024 images of 36 regions of 2,048 numbers,
read as an epoch does with five captions an image. A file is compared once: epochs and stages that follow remember that
it was whole.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.training import Step
from camp_model import CAMP, CampConfig, seal
from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.files import read_object
from camp_model.regions import ImageRegions, RegionStore, StoreInfo, write_manifest, write_shard
from camp_model.vocabulary import Vocabulary

READERS = ("camp_model.checkpoint.check_seal", "camp_model.files.check_seal", "camp_model.regions.shards.check_seal")
TIMES = 7
EPOCHS = 30
SHARDS, IMAGES, CAPTIONS = 4, 256, 5


def seconds(read: Callable[[], object], checked: bool, remembered: bool = False) -> float:
    """Processor time of one reading where no file has been compared yet, or all were (`remembered`), or where nothing
    compares (not `checked`)."""
    if not remembered:
        seal._valid_files.clear()
    patches = [mock.patch(name, lambda _: None) for name in READERS if not checked]
    for patch in patches:
        patch.start()
    begin = time.process_time()
    read()
    passed = time.process_time() - begin
    for patch in patches:
        patch.stop()
    return passed


def compare(name: str, read: Callable[[], object], epochs: int = 1) -> float:
    """Print the fastest of some readings each way, by turns, and the share that the comparison adds; its seconds."""
    time.sleep(seal.SETTLED + 0.1)
    read()
    turns = [(seconds(read, False), seconds(read, True), seconds(read, True, remembered=True)) for _ in range(TIMES)]
    without, checked, remembered = (min(times) for times in zip(*turns, strict=True))
    added = checked - without
    print(f"{name}: {1e3 * without:.1f} ms, with its seal {1e3 * checked:.1f} ms: {100 * added / without:+.1f} %")
    print(f"  by each stage that follows: {100 * (remembered - without) / without:+.1f} %")
    if epochs > 1:
        print(f"  over {epochs} epochs: {100 * added / (epochs * without):+.2f} %")
    return added


def image_seconds() -> float:
    """Processor time of training on one image and its caption, forward and backward, d 512."""
    step = Step("mined", batch=32)
    step.run()
    begin = time.process_time()
    step.run()
    return (time.process_time() - begin) / 32


def write_store(folder: Path, shards: int = SHARDS, images: int = IMAGES) -> None:
    generator = np.random.default_rng(0)
    info = StoreInfo(region_dim=2048, max_regions=36, detector="made-up")
    ones, none = np.ones(36, np.float32), np.zeros(36, np.int32)
    rows = []
    for shard in range(shards):
        held = []
        for image in range(images):
            features = generator.random((36, 2048), dtype=np.float32)
            item = ImageRegions(features, np.ones((36, 4), np.float32), ones, none, none, ones, 640, 480)
            held.append((f"{shard}-{image}", item))
            rows.append((f"{shard}-{image}", f"{shard}.arrow", image, 36))
        write_shard(folder / f"{shard}.arrow", info, str(shard), held)
    write_manifest(folder, info, rows)


def read_store(folder: Path) -> None:
    """Read a store as an epoch does: each image with each of its captions, in a random order."""
    store = RegionStore(folder)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(store)), CAPTIONS))
    for rows in np.array_split(order, len(order) // 64):
        store.features(rows)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vocabulary = Vocabulary.build([[f"word{i}" for i in range(10_000)]])
        save_checkpoint(folder / "camp", CAMP(CampConfig(vocab_size=len(vocabulary))), vocabulary)
        compare("model", lambda: load_checkpoint(folder / "camp"))
        begin = time.process_time()
        for _ in range(100):
            seal.digest_of_values(read_object(folder / "camp" / "config.json", "a config"))
        of_config = (time.process_time() - begin) / 100
        whole = seconds(lambda: load_checkpoint(folder / "camp"), False)
        print(f"  its config, read and compared: {1e3 * of_config:.2f} ms: {100 * of_config / whole:.2f} %")
        rows = list(range(100_000))
        words = [[4 + (i * j) % 10_000 for j in range(1, 12)] for i in rows]
        names, texts = [f"image-{i // 5}" for i in rows], [f"a caption of eleven words number {i}" for i in rows]
        write_captions(folder / "train.parquet", rows, names, texts, words)
        compare("captions", lambda: CaptionTable.load(folder / "train.parquet"))
        write_store(folder / "regions")
        added = compare("regions", lambda: read_store(folder / "regions"), EPOCHS)
        share = added / (SHARDS * IMAGES * CAPTIONS * image_seconds())
        print(f"  of a training's first epoch: {100 * share:.3f} %")


if __name__ == "__main__":
    main()
