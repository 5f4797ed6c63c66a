"""Real COCO photographs through the whole pipeline, to a model that has learnt its training pairs by heart."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def overfitting(root: Path) -> dict:
    """Params that learn the train split of `root` by heart, from an untrained detector's features."""
    part = {
        split: {
            "split": split,
            "images": f"{split}2017",
            "captions": f"annotations/captions_{split}2017.json",
            "instances": f"annotations/instances_{split}2017.json",
        }
        for split in ("train", "val")
    }
    return {
        "dataset": {"source": "coco", "root": str(root), "coco": {"parts": [part["train"], part["val"]]}},
        "detector": {"architecture": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random"},
        "regions": {"per_image": 12, "min_per_image": 12, "boxes": "given", "batch_size": 4},
        "model": {"dim": 128, "word_dim": 64},
        "train": {
            "epochs": 40,
            "batch_size": 64,
            "patience": 0,
            "learning_rate": 0.001,
            "schedule": "constant",
            "random_negative_steps": 0,
            "warmup_steps": 0,
        },
        "evaluate": {"splits": ["train", "test"], "gate_pairs": 100},
        "report": {"queries": 3},
    }


@pytest.mark.timeout(900)
def test_camp_learns_real_photographs_by_heart(
    coco_mini: Path, copy_repository: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    folder = copy_repository(tmp_path, overfitting(coco_mini))
    run(folder, "dvc", "repro")
    images = pq.read_table(folder / "data/dataset/images.parquet")
    assert images.num_rows == 159
    assert pq.read_table(folder / "data/regions/rejected.parquet").num_rows == 0
    retrieval = json.loads((folder / "metrics/retrieval.json").read_text())
    assert retrieval["train"]["i2t_r1"] > 95
    assert retrieval["train"]["t2i_r1"] > 95
    assert set(retrieval) == {"train", "test"}
    foils = json.loads((folder / "metrics/foils.json").read_text())
    # The vocabulary is small, but some captions of the test split find other objects in it.
    assert foils["train"] == {} and foils["test"]["object"]["foils"] > 10
