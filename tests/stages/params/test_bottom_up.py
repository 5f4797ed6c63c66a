"""presets/bottom_up.yaml with both datasets, in each form and number that its comments name, without a picture."""

import base64
import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import stages.extract_regions
import stages.prepare_dataset
import stages.tokenize_captions
import stages.train_detector
from camp_model.regions import RegionStore
from stages.params import document
from stages.params.pipeline import Params
from stages.params.presets import apply_presets

REPOSITORY = Path(__file__).parents[3]
DIM = 16
SPLITS = {"train": range(1, 9), "val": range(9, 15), "test": range(15, 21)}


def variants() -> dict[str, str]:
    """What the preset's comments offer instead: `npz`, `scan` and `10-100` -> the line."""
    text = (REPOSITORY / "presets" / "bottom_up.yaml").read_text(encoding="utf-8")
    lines = re.findall(r"^#   ((?:detector|regions): \{[^}]*\})", text, re.MULTILINE)
    names = {"architecture: scan": "scan", "architecture: npz": "npz", "per_image: 100": "10-100"}
    return {name: line for line in lines for mark, name in names.items() if mark in line}


def sentence(i: int) -> str:
    return f"a dog beside number {i} and a cat"


def annotations(root: Path) -> None:
    """Flickr30K's and COCO's, as the data presets expect them; no folder of pictures."""
    (root / "annotations").mkdir(parents=True)
    records = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": sentence(i)}]}
        for split, ids in SPLITS.items() for i in ids
    ]  # fmt: skip
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": records}))
    for name, ids in {"train2017": SPLITS["train"], "val2017": (*SPLITS["val"], *SPLITS["test"])}.items():
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 120, "height": 96} for i in ids]
        captions = [{"id": i, "image_id": i, "caption": sentence(i)} for i in ids]
        for kind, content in {"captions": captions, "instances": []}.items():
            values = {"images": images, "annotations": content, "categories": []}
            (root / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(values))


def publish(root: Path, form: str, counts: dict[int, int]) -> None:
    """Features of all images as others publish them, where the preset looks for them."""
    generator = np.random.default_rng(0)
    features = {i: generator.normal(size=(count, DIM)).astype(np.float32) for i, count in counts.items()}
    boxes = {i: np.tile([5, 5, 60, 50], (count, 1)).astype(np.float32) for i, count in counts.items()}
    if form == "tsv":
        rows = (
            (str(i), "120", "96", str(counts[i]), *(base64.b64encode(a.tobytes()).decode() for a in (boxes[i], array)))
            for i, array in features.items()
        )
        (root / "bottom_up.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    elif form == "npz":
        (root / "bottom_up").mkdir()
        for i, array in features.items():
            np.savez(root / f"bottom_up/{i}.npz", x=array, bbox=boxes[i], num_bbox=counts[i], image_h=96, image_w=120)
    else:
        (root / "f30k_precomp").mkdir()
        for name, ids in zip(("train", "dev", "test"), SPLITS.values(), strict=True):
            np.save(root / f"f30k_precomp/{name}_ims.npy", np.stack([features[i] for i in ids]))
            (root / f"f30k_precomp/{name}_caps.txt").write_text("".join(f"{sentence(i)}\n" for i in ids))


# SCAN's arrays hold one number of regions for all images.
@pytest.mark.parametrize(
    ("form", "numbers"), [("tsv", "36"), ("tsv", "10-100"), ("npz", "36"), ("npz", "10-100"), ("scan", "36")]
)
@pytest.mark.parametrize("data", ["flickr30k", "coco"])
def test_published_features_become_a_store_without_pictures(
    data: str, form: str, numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data" / "raw"
    annotations(root)
    ids = [i for split in SPLITS.values() for i in split]
    counts = {i: 36 if numbers == "36" else 10 + i * 90 // 20 for i in ids}
    publish(root, form, counts)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])
    target = tmp_path / "params.yaml"
    target.write_text((REPOSITORY / "params.yaml").read_text())
    for i, name in enumerate(name for name in (form, numbers) if name in variants()):
        (tmp_path / f"{i}.yaml").write_text(variants()[name] + "\n")
    presets = [REPOSITORY / "presets" / f"{name}.yaml" for name in (data, "bottom_up")]
    apply_presets([*presets, *sorted(tmp_path.glob("[0-9].yaml"))], target)
    params = Params.load(target)
    assert (params.detector.architecture, params.regions.per_image) == (form, 36 if numbers == "36" else 100)
    document.rewrite(target, params.replace(captions=params.captions.replace(min_count=1)).to_dict())
    before = signal.getsignal(signal.SIGTERM)
    for stage in (
        stages.prepare_dataset, stages.train_detector, stages.extract_regions, stages.tokenize_captions,
    ):  # fmt: skip
        stage.main()
    signal.signal(signal.SIGTERM, before)
    store = RegionStore(Path("data/regions"))
    assert dict(zip(map(int, store.image_ids), store.num_regions.tolist(), strict=True)) == counts
    assert store.features([0])[0].shape == (1, params.regions.per_image, DIM)
    assert pq.read_table("data/regions/rejected.parquet").num_rows == 0


def test_the_preset_names_every_form_and_number() -> None:
    assert set(variants()) == {"scan", "npz", "10-100"}
