"""A params.yaml of before: keys that are elsewhere now, or no more, or that it lacks, are said before any work."""

import json
from pathlib import Path

import pytest
import yaml

from stages.entry import read_params
from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params, check_dvc_keys
from stages.train import TrainSections


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"regions": {"nms_iou": 0.5}}, "regions.nms_iou: is detector.torchvision.nms_iou and detector.detectron2"),
        ({"train": {"gate_negatives": 1.0}}, "train.gate_negatives: was removed: .*; expected no such key"),
        ({"model": {"matching": "scan"}}, "model.matching: scan is model.matcher: scan now; expected it there"),
    ],
)
def test_what_has_become_of_a_key_is_said(values: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Params.from_dict(values)


@pytest.fixture
def lacking(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose params.yaml is as old as to lack what dvc.yaml names."""
    values = document.read(repository / "params.yaml")
    del values["detector"]["timm"], values["index"]["engine"], values["train"]["mining_batch"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "dvc.yaml").write_bytes((repository / "dvc.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_keys_that_dvc_would_miss_are_said_at_once_with_their_defaults(lacking: Path, monkeypatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    with pytest.raises(InputError, match=r"params.yaml: lacks detector\.timm, index\.engine, without") as caught:
        read_params(TrainSections)
    shown = str(caught.value).partition("the defaults, ")[2]
    assert shown == f'detector.timm: {json.dumps(Params().to_dict()["detector"]["timm"])}, index.engine: "faiss"'
    monkeypatch.delenv("DVC_STAGE")
    read_params(TrainSections)  # alone, a stage has its defaults


def test_keys_of_a_section_that_dvc_compares_whole_may_be_left_out(repository: Path) -> None:
    check_dvc_keys(repository / "params.yaml", repository / "dvc.yaml")
    check_dvc_keys(repository / "params.yaml", repository / "nowhere.yaml")


@pytest.mark.parametrize("text", ["stages:\n", "stages: {own:}\n", "stages: {own: {cmd: ls, params:}}\n",
                                  "stages: {own: {cmd: ls, params: [train.own, own.yaml: [key]]}}\n"])  # fmt: skip
def test_a_pipeline_of_ones_own_asks_for_nothing(repository: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    check_dvc_keys(repository / "params.yaml", tmp_path / "dvc.yaml")
