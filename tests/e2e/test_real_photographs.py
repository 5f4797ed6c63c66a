"""Real COCO photographs through the whole pipeline, to a model that has learnt its training pairs by heart."""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
AGAIN = 10**9
"""Added to an id of a photograph that is shown again."""


def lay_out(coco_mini: Path, root: Path) -> None:
    """The photographs with a val split that shows the train split again, under other ids, and COCO's val as test.

    The kept epoch is the best on val: only such a val split can tell which epoch knows the train split by heart.
    """
    for split in ("train2017", "val2017"):
        shutil.copytree(coco_mini / split, root / split)
    (root / "again").mkdir()
    for picture in (root / "train2017").iterdir():
        shutil.copy(picture, root / f"again/again-{picture.name}")
    (root / "annotations").mkdir()
    for kind in ("captions", "instances"):
        for split in ("train2017", "val2017"):
            shutil.copy(coco_mini / f"annotations/{kind}_{split}.json", root / "annotations")
        again = json.loads((coco_mini / f"annotations/{kind}_train2017.json").read_text())
        for image in again["images"]:
            image["id"] += AGAIN
            image["file_name"] = f"again-{image['file_name']}"
        for annotation in again["annotations"]:
            annotation["image_id"] += AGAIN
            annotation["id"] += AGAIN
        (root / f"annotations/{kind}_again.json").write_text(json.dumps(again))


def overfitting(root: Path) -> dict:
    """Params that learn the train split of `root` by heart, from an untrained detector's features."""
    parts = [
        {
            "split": split,
            "images": images,
            "captions": f"annotations/captions_{name}.json",
            "instances": f"annotations/instances_{name}.json",
        }
        for split, images, name in (
            ("train", "train2017", "train2017"), ("val", "again", "again"), ("test", "val2017", "val2017"),
        )
    ]  # fmt: skip
    return {
        "dataset": {"source": "coco", "root": str(root), "coco": {"parts": parts}, "max_shared_share": 1.0},
        "detector": {"architecture": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random"},
        "regions": {"per_image": 12, "min_per_image": 12, "boxes": "given", "batch_size": 4},
        "captions": {"lexicon": "photographs"},
        "model": {"dim": 128, "word_dim": 64},
        "train": {
            "epochs": 20,
            "batch_size": 32,
            "patience": 0,
            "learning_rate": 0.004,
            "schedule": "cosine",
            "joint_weight": 5.0,
            "curriculum_steps": 60,
            "warmup_steps": 0,
        },
        "evaluate": {"splits": ["train", "test"], "gate_pairs": 100},
        "report": {"queries": 3},
    }


@pytest.mark.timeout(900)
def test_camp_learns_real_photographs_by_heart(
    coco_mini: Path, copy_repository: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    lay_out(coco_mini, tmp_path / "coco")
    folder = copy_repository(tmp_path / "repository", overfitting(tmp_path / "coco"))
    run(folder, "dvc", "repro", CAMP_TRACKING="off")
    images = pq.read_table(folder / "data/dataset/images.parquet")
    assert Counter(images["split"].to_pylist()) == {"train": 80, "val": 80, "test": 79}
    assert pq.read_table(folder / "data/regions/rejected.parquet").num_rows == 0
    retrieval = json.loads((folder / "metrics/retrieval.json").read_text())
    assert retrieval["train"]["i2t_r1"] > 95
    assert retrieval["train"]["t2i_r1"] > 95
    assert set(retrieval) == {"train", "test"}
    foils = json.loads((folder / "metrics/foils.json").read_text())
    # The vocabulary is small, but some captions of the test split find other objects in it.
    assert foils["train"] == {} and foils["test"]["object"]["foils"] > 10
