"""What only a later stage could not do is said when params.yaml is read, or before that much is computed."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.config import CampConfig
from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from stages.entry import read_params
from stages.errors import InputError
from stages.params.pipeline import Params
from stages.train import TrainSections
from tests.stages.conftest import SmallRun

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
        (
            {"detector": {"weights": "random"}},
            "detector.weights: random, but the network .*scenes is always trained here;",
        ),
        (
            {"dataset": {"source": "coco"}, "regions": {"boxes": "given"}},
            "regions.boxes: given needs boxes, but no part of dataset.coco.parts names its instances;",
        ),
        ({"evaluate": {"splits": ["val", "test", "val"]}}, "evaluate.splits: val is there twice; expected each split"),
        (
            {"train": {"freeze": ["region"], "learning_rates": {"region_encoder": 0.5}}},
            "train.learning_rates: region_encoder is not trained: train.freeze is region;",
        ),
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
    splits = ["train"] * 2 + ["val"] * 2 + ["test"] * test
    ids = list(map(str, range(len(splits))))
    pq.write_table(pa.table({"image_id": ids, "split": splits}), "data/dataset/images.parquet")
    monkeypatch.setenv("DVC_STAGE", "prepare_dataset")  # that makes it
    read_params(TrainSections)
    monkeypatch.setenv("DVC_STAGE", "train_detector")
    with pytest.raises(InputError, match=says) if says else contextlib.nullcontext():
        read_params(TrainSections)


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"gate": "none", "gate_context": 3.0}, r"gate_context: 3 acts on gates of words, which model\.gate none with"),
        (
            {"message_passing": "text_to_image", "gate_context": 3.0},
            "gate_context: 3 .* text_to_image lacks; expected 0",
        ),
        ({"message_passing": "none", "gate_context": 3.0}, "gate_context: 3 .* none lacks; expected 0"),
        (
            {"message_passing": "none", "fusion": "message", "gate": "none", "residual": False},
            "fusion: message needs messages, but",
        ),
    ],
)
def test_a_switch_without_effect_is_an_error_of_params_but_not_of_an_older_checkpoint(
    tmp_path: Path, switches: dict, says: str
) -> None:
    with pytest.raises(InputError, match=f"^model.{says}"):
        Params.from_dict({"model": switches, "train": {"gate_supervision": 0.0}})
    vocabulary = Vocabulary.build([["a", "dog"]])
    config = CampConfig(vocab_size=len(vocabulary), region_dim=4, word_dim=4, dim=4, **switches)
    save_checkpoint(tmp_path / "former", CAMP(config), vocabulary)
    assert load_checkpoint(tmp_path / "former")[0].config == config


def test_images_that_extraction_rejected_do_not_count_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("data/dataset", "data/regions"):
        Path(folder).mkdir(parents=True)
    images = {"image_id": list("abcdef"), "split": ["train", "train", "val", "val", "test", "test"]}
    pq.write_table(pa.table(images), "data/dataset/images.parquet")
    pq.write_table(pa.table({"image_id": ["d"]}), "data/regions/rejected.parquet")
    _read_before("train_detector", monkeypatch)  # they may be of another detector
    with pytest.raises(
        InputError, match=r"without the 1 images of .*rejected\.parquet: the split val has too few .* 1;"
    ):
        _read_before("train", monkeypatch)


def _read_before(stage: str, monkeypatch: pytest.MonkeyPatch, **evaluate: object) -> None:
    values = {"dataset": {"source": "coco"}, "captions": {"lexicon": "photographs"}, "evaluate": evaluate}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("DVC_STAGE", stage)
    read_params(TrainSections)


def test_what_this_machine_lacks_for_evaluation_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "eccv_caption", None)  # as if it were not installed
    lacking: list[tuple[dict[str, object], str]] = [
        ({"precision": "fp16"}, r"precision: fp16 needs a CUDA device, not"),
        ({"device": "cuda"}, r"device: cuda is not available here"),
        ({"eccv": True}, r"eccv: needs the package eccv-caption"),
    ]
    for evaluate, says in lacking:
        with pytest.raises(InputError, match=rf"^evaluate\.{says}"):
            _read_before("train", monkeypatch, **evaluate)
        _read_before("train_detector", monkeypatch, **evaluate)  # it may run on another machine
    _read_before("train", monkeypatch)


def test_a_model_that_cannot_be_in_the_ensemble_is_said_before_training(
    small: SmallRun, make_checkpoint: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (small.root / "data/dataset/images.parquet").unlink()  # it has only a test split
    vocabulary = Vocabulary.load(small.token_tables / "vocabulary.json")
    make_checkpoint(small.root / "fits", vocabulary)
    make_checkpoint(small.root / "words", Vocabulary([*vocabulary.words, "giraffe"]))
    make_checkpoint(small.root / "wide", vocabulary, region_dim=9)
    make_checkpoint(small.root / "ungated", vocabulary, gate="none")
    (small.root / "empty").mkdir()
    _read_before("train", monkeypatch, ensemble=["fits"], gates="open")
    _read_before("train", monkeypatch, ensemble=["ungated"])
    for folder, says in (
        ("words", r"^words/vocabulary\.json: word2idx: .* another vocabulary"),
        ("wide", r"^wide/config\.json: region_dim: 9, but"),
        ("ungated", r"^ungated/config\.json: evaluate\.gates: open acts on scalar gates, but model\.gate is none"),
        ("empty", r"^empty/config\.json: "),
    ):
        with pytest.raises(InputError, match=says):
            _read_before("train", monkeypatch, ensemble=["fits", folder], gates="open")
    _read_before("tokenize_captions", monkeypatch, ensemble=["empty"])


def test_an_output_is_known_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/camp").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models/camp")
    with pytest.raises(InputError, match="start_from: link is the model that train itself writes"):
        Params.from_dict({"train": {"start_from": "link"}})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train": {"freeze": ["nosuch"]}}, "freeze: no parameter begins with 'nosuch'; there are region_encoder"),
        ({"train": {"learning_rates": {"caption": 0.1, "nosuch": 2.0}}}, "learning_rates: no trained parameter begins"),
        ({"train": {"freeze": ["caption_encoder", "region_encoder"]}}, None),
        ({"train": {"freeze": ["nosuch"]}, "model": {"text": "transformer"}}, None),  # would have to be loaded
        ({"train": {"freeze": ["matcher"]}, "model": {"gate_evidence": True}, "regions": {"geometry": True}}, None),
    ],
)
def test_a_misspelt_prefix_is_said_before_the_detector_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict, says: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("DVC_STAGE", "train_detector")
    with contextlib.nullcontext() if says is None else pytest.raises(InputError, match=rf"^train\.{says}"):
        read_params(TrainSections)
