"""Photographs of Flickr8k through every stage, by presets that README names, to a model that knows them by heart."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

import stages.evaluate
import stages.extract_regions
import stages.prepare_dataset
import stages.tokenize_captions
import stages.train
import stages.train_detector
from stages.params import document
from stages.params.presets import compose

TRAIN, TEST, AGAIN = 250, 50, 60
"""Photographs of each split; of the train split, how many val shows again: the kept epoch is the best on val."""
CPU_SECONDS = 90.0


@pytest.fixture(scope="session")
def flickr8k(repository: Path) -> Path:
    """A folder with photographs and captions of Flickr8k (CAMP_FLICKR8K names another)."""
    folder = Path(os.environ.get("CAMP_FLICKR8K", repository.parent / "shared" / "data" / "flickr8k"))
    if not (folder / "dataset_flickr8k.json").is_file():
        pytest.skip(f"no Flickr8k at {folder}: set CAMP_FLICKR8K to a folder with images/ and dataset_flickr8k.json")
    return folder


def lay_out(flickr8k: Path, raw: Path) -> None:
    """300 photographs as the preset wants them, some of the train split as val again."""
    records = json.loads((flickr8k / "dataset_flickr8k.json").read_text())["images"]
    chosen = [record for record in records if record["split"] == "train"][: TRAIN + TEST]
    (raw / "images").mkdir(parents=True)
    for number, record in enumerate(chosen):
        record["split"] = "train" if number < TRAIN else "test"
        shutil.copy(flickr8k / "images" / record["filename"], raw / "images")
    for record in chosen[:AGAIN]:
        again = f"again-{record['filename']}"
        shutil.copy(flickr8k / "images" / record["filename"], raw / "images" / again)
        chosen.append({"filename": again, "split": "val", "sentences": record["sentences"]})
    (raw / "dataset_flickr8k.json").write_text(json.dumps({"images": chosen}))


def set_params(repository: Path, *presets: str, **train: object) -> None:
    """Write params.yaml from presets, with smaller pictures and some params of `train`."""
    params = compose([repository / "presets" / f"{name}.yaml" for name in presets])[0]
    detector = params.detector.replace(timm=params.detector.timm.replace(image_size=160))
    document.rewrite(
        Path("params.yaml"),
        params.replace(
            dataset=params.dataset.replace(max_shared_share=1.0),
            detector=detector,
            regions=params.regions.replace(device="cpu"),
            train=params.train.replace(device="cpu", **train),
            evaluate=params.evaluate.replace(splits=("train", "test"), device="cpu", foils=100, gate_pairs=100),
        ).to_dict(),
    )


def run_stages(*modules: ModuleType) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        for module in modules:
            module.main()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.timeout(900)
def test_300_photographs_are_learnt_by_heart_in_a_minute_or_two(
    flickr8k: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(flickr8k, tmp_path / "data/raw")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setenv("CAMP_TRACKING", "off")
    shutil.copy(repository / "params.yaml", "params.yaml")
    begun = time.process_time()
    set_params(repository, "flickr8k", "grid", "best_1_joint", epochs=6, warmup_steps=5)
    run_stages(
        stages.prepare_dataset, stages.train_detector, stages.extract_regions, stages.tokenize_captions, stages.train,
        stages.evaluate,
    )  # fmt: skip
    spent = time.process_time() - begun
    assert pq.read_table("data/regions/manifest.parquet").num_rows == TRAIN + TEST + AGAIN
    retrieval = json.loads(Path("metrics/retrieval.json").read_text())
    assert set(retrieval) == {"train", "test"}
    assert retrieval["train"]["rsum"] > 500
    assert retrieval["test"]["rsum"] < retrieval["train"]["rsum"], "what it has not seen is harder"
    assert spent < CPU_SECONDS
