"""What only a later stage could not do is said when params.yaml is read, or before that much is computed."""

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stages.entry import read_params
from stages.errors import InputError
from stages.params.pipeline import Params
from stages.train import TrainSections

SCAN = {"detector": {"backend": "precomputed", "architecture": "scan", "weights": "somewhere"}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train": {"precision": "fp16", "device": "cpu"}}, "train.precision: fp16 needs a CUDA device, but train"),
        ({"evaluate": {"precision": "fp16", "device": "mps"}}, "evaluate.precision: fp16 needs .*device is mps;"),
        (
            {"train": {"precision": "fp16"}, "evaluate": {"device": "cpu"}},
            r"evaluate.precision: trained \(fp16\) needs a CUDA",
        ),
        (
            {"model": {"text": "transformer"}, "train": {"word_vectors": "a.txt"}},
            "train.word_vectors: a.txt, but",
        ),
        (
            {"evaluate": {"protocol": "coco_1k"}},
            "evaluate.protocol: coco_1k needs 5,000 images, .* test has 512;",
        ),
        (
            {"train": {"processes": 2, "device": "cuda:1"}},
            "train.device: cuda:1 is one device .* 2; expected cuda, with",
        ),
        ({"train": {"processes": 2, "device": "mps"}}, "train.device: mps .* 2; expected train.processes: 1"),
        (SCAN | {"regions": {"boxes": "given"}}, "regions.boxes: given needs a detector that runs"),
        (SCAN | {"regions": {"geometry": True}}, "regions.geometry: true needs boxes, but detector.architecture scan"),
    ],
)
def test_what_only_a_later_stage_could_not_do_is_said_at_once(values: dict, says: str) -> None:
    with pytest.raises(InputError, match=f"^{says}"):
        Params.from_dict(values)


@pytest.mark.parametrize(
    ("test", "protocol", "says"),
    [
        (1, "full", r"images\.parquet: the split test has too few images, 1; expected 2 or more"),
        (4999, "coco_5k", r"images\.parquet: evaluate\.protocol: coco_5k needs 5,000 images, .* 4,999; expected full"),
        (2, "full", ""),
        (5000, "coco", ""),
    ],
)
def test_splits_that_are_too_small_are_said_before_a_detector_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: int, protocol: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {
        "dataset": {"source": "karpathy"}, "detector": {"backend": "timm"}, "regions": {"boxes": "grid"},
        "captions": {"lexicon": "photographs"}, "evaluate": {"protocol": protocol},
    }  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("data/dataset").mkdir(parents=True)
    pq.write_table(pa.table({"split": ["train"] * 2 + ["val"] * 2 + ["test"] * test}), "data/dataset/images.parquet")
    monkeypatch.setenv("DVC_STAGE", "prepare_dataset")  # that makes it
    read_params(TrainSections)
    monkeypatch.setenv("DVC_STAGE", "train_detector")
    with pytest.raises(InputError, match=says) if says else contextlib.nullcontext():
        read_params(TrainSections)
