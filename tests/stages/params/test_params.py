"""params.yaml: every wrong key or value is named, and presets are whole."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from pipelines.ablation import STUDY
from stages.entry import read_params
from stages.errors import InputError
from stages.foils.words import KINDS
from stages.params import document
from stages.params.pipeline import Params
from stages.params.presets import apply_presets, compose
from stages.params.section import Section
from stages.params.train import FoilKind
from stages.train import TrainSections


def with_value(dotted: str, value: object) -> dict:
    """The least mapping that sets one dotted key."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value  # type: ignore[return-value]


def test_the_shipped_params_are_valid_and_name_every_key(repository: Path) -> None:
    values = document.read(repository / "params.yaml")

    def compare(section: Section, values: dict, where: str) -> None:
        assert set(values) == set(type(section).model_fields), f"{where}: params.yaml should show every key"
        for name, value in section:
            if isinstance(value, Section):
                compare(value, values[name], f"{where}.{name}")

    compare(Params.load(repository / "params.yaml"), values, "params")


@pytest.mark.parametrize(
    ("dotted", "value", "says"),
    [
        ("train.epoch", 3, "train.epoch: unknown key; allowed here: loss,"),
        ("index.engines", 3, "index.engines: unknown key; allowed here: engine, shortlist"),
        ("trian", {}, "trian: unknown key; allowed here: dataset,"),
        ("train.epochs", "three", "train.epochs: 'three' is not a whole number"),
        ("train.epochs", True, "train.epochs: True is not a whole number"),
        ("train.epochs", -1, "train.epochs: -1 is below 0"),
        ("train.epochs", 0, "train.epochs: 0, but train.start_from is null; expected the checkpoint to keep"),
        ("train.joint_temperature", 0.0, "train.joint_temperature: 0.0 is not above 0"),
        ("train.ema_decay", 1.0, "train.ema_decay: 1.0 is not below 1"),
        ("train.learning_rate", float("nan"), "train.learning_rate: nan is not a finite number"),
        ("train.seed", 2**64, "train.seed: 18446744073709551616 is not below 9.22337e+18"),
        ("report.seed", -1, "report.seed: -1 is below 0"),
        ("model.dim", 100_000, "model.dim: 100000 is not a whole number of 1 to 16384"),
        ("train.start_from", "models/camp/", "train.start_from: models/camp/ is the model that train itself writes"),
        ("evaluate.ensemble", ["./models/camp"], "evaluate.ensemble: ./models/camp is the model that train itself"),
        ("evaluate.ensemble", ["a", "b", "a"], "evaluate.ensemble: a is there twice"),
        ("evaluate.ensemble", ["./a", "b", "a/"], "evaluate.ensemble: ./a is there twice"),
        ("evaluate.ensemble", ["a", f"../{Path.cwd().name}/a"], "evaluate.ensemble: a is there twice"),
        ("train.start_from", str(Path("models/camp").resolve()), "models/camp is the model that train itself writes"),
        ("evaluate.ensemble", [f"../{Path.cwd().name}/models/camp"], "models/camp is the model that train itself"),
        ("captions.vocabulary", "data/captions/vocabulary.json", "captions.vocabulary: data/captions/vocabulary.json"),
        ("captions.vocabulary", "models/camp/vocabulary.json", "lies in models/camp, which DVC removes before it is"),
        ("captions.lexicon", "./data/captions/lexicon.json", "lies in data/captions, which DVC removes before it is"),
        ("index.engine", "data/index/v.db", "index.engine: data/index/v.db lies in data/index, which DVC removes"),
        ("train.loss", "focal", "train.loss: 'focal' is not one of hardest_bce, bce, triplet"),
        ("train.processes", 7, "train.batch_size: 128 does not divide among train.processes, 7"),
        ("model.gate", "soft", "model.gate: 'soft' is not one of scalar, elementwise, none"),
        ("model", {"hops": 2, "message_passing": "none"}, "model.hops: 2 needs messages"),
        ("model.residual", 1, "model.residual: 1 is not true or false"),
        ("dataset.source", "imagenet", "dataset.source: 'imagenet' is not one of scenes, karpathy, coco, table"),
        ("dataset.coco.parts", [{"split": "train"}], "dataset.coco.parts[0].images: is missing"),
        ("dataset.coco.parts", {"split": "train"}, "dataset.coco.parts: {'split': 'train'} is not a list"),
        ("detector", {"architecture": "fasterrcnn_resnet50_fpn"}, "detector.weights: train is only for"),
        ("regions", {"per_image": 8, "min_per_image": 9}, "regions.min_per_image: 9 is above regions.per_image, 8"),
        ("detector.timm.image_size", 100_000, "detector.timm.image_size: 100000 is above 4096"),
        ("dataset.scenes.image_size", 100_000, "dataset.scenes.image_size: 100000 is above 4096"),
        ("regions.grids", [6, 10_000], "regions.grids[1]: 10000 is above 256"),
        ("regions.max_rejected_share", 1.5, "regions.max_rejected_share: 1.5 is not between 0 and 1"),
        ("evaluate.splits", [], "evaluate.splits: is empty"),
        ("report", 3, "report: 3 is not a mapping"),
        ("dataset.root", "x" * 5000, "x' is longer than the name of a file may be"),
        ("train.start_from", "a/" * 2048, "/' is longer than the name of a file may be"),
        ("train.word_vectors", "\0", r"train.word_vectors: '\x00' holds a character of number 0"),
        ("train.freeze", ["a", "\ud800"], "train.freeze: ['a', '\\ud800'] holds half a character"),
    ],
)
def test_a_wrong_param_is_named_with_what_is_allowed(dotted: str, value: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        Params.from_dict(with_value(dotted, value))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"table": {"file": "/elsewhere/captions.csv"}}, r"dataset\.table\.file"),
        ({"karpathy": {"annotations": "../dataset.json"}}, r"dataset\.karpathy\.annotations"),
        ({"coco": {"parts": [{"split": "val", "images": "a", "captions": "b/../../c"}]}},
         r"dataset\.coco\.parts\[0\]\.captions"),
    ],
)  # fmt: skip
def test_what_a_source_reads_lies_below_its_root_where_other_content_is_seen(values, key):
    with pytest.raises(InputError, match=rf"^{key}: '.*' leaves dataset\.root; expected a path below it"):
        Params.from_dict({"dataset": values})


@pytest.mark.parametrize("key", ["gate", "message_passing"])
def test_gates_that_are_off_cannot_be_supervised(key: str) -> None:
    off = {"model": {key: "none"}}
    with pytest.raises(InputError, match=rf"^train.gate_supervision: 1 acts on gates, but model.{key} is none"):
        Params.from_dict(off)
    assert Params.from_dict(off | {"train": {"gate_supervision": 0}}).train.gate_supervision == 0


def test_the_scenes_preset_is_the_shipped_params(repository: Path, tmp_path: Path) -> None:
    shipped = (repository / "params.yaml").read_text()
    assert compose([repository / "presets/scenes.yaml"])[0] == Params.load(repository / "params.yaml")
    target = tmp_path / "params.yaml"
    target.write_text(shipped)
    apply_presets([repository / "presets/scenes.yaml"], target)
    assert target.read_text() == shipped


def test_a_wrong_preset_changes_nothing(repository: Path, tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    before = (repository / "params.yaml").read_text()
    target.write_text(before)
    preset = tmp_path / "wrong.yaml"
    preset.write_text("train: {epochs: -1}\n")
    with pytest.raises(InputError, match="wrong.yaml: train.epochs: -1 is below 0"):
        apply_presets([preset], target)
    assert target.read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


BROKEN = {
    "unclosed": (b"train: [1,", "is not YAML: line 1"),
    "empty": (b"", "is empty; expected sections"),
    "comments": (b"# nothing\n", "is empty; expected sections"),
    "tab": (b"\ttrain: 1", "is not YAML: line 1"),
    "list": (b"[train, 1]", "['train', 1] is not a mapping"),
    "scalar": (b"train", "'train' is not a mapping"),
    "latin-1": ("train: {word_vectors: Stra\xdfe}".encode("latin-1"), "is not UTF-8 (byte 26)"),
    "twice": (b"train: {epochs: 1, epochs: 2}", "is not YAML: line 1"),
    "tag": (b"train: !python/object:os.system x", "is not YAML: line 1"),
    "null": (b"train:\n", "train: None is not a mapping"),
    "number as key": (b"1: 2\n", "1: unknown key; allowed here: dataset"),
    "long": (b"train: {loss: " + 100_000 * b"x" + b"}", "train.loss: 'xxx"),
    "folder": (None, "cannot be read (Is a directory)"),
}


@pytest.mark.parametrize("target", ["params.yaml", "mine.yaml"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_nothing_is_written(
    name: str, target: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, says = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    shutil.copy(repository / "params.yaml", tmp_path)
    Path(target).unlink(missing_ok=True)
    Path(target).mkdir() if content is None else Path(target).write_bytes(content)
    before = {path.name: path.is_dir() or path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError) as caught:
        Params.load() if target == "params.yaml" else apply_presets([Path(target)])
    assert str(caught.value).startswith(f"{target}: ") and says in str(caught.value)
    assert len(str(caught.value)) < 400
    assert {path.name: path.is_dir() or path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("arguments", [[], ["mine.yaml"], ["nowhere.yaml"]])
def test_the_command_ends_with_code_2_and_one_line(arguments: list[str], repository: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train: [1,")
    (tmp_path / "mine.yaml").write_text("- train")
    done = subprocess.run(
        [sys.executable, "-m", "stages.params", *arguments],
        cwd=tmp_path, env={"PYTHONPATH": str(repository), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {[*arguments, 'params.yaml'][0]}: ") and done.stderr.count("\n") == 1


def test_a_wrong_key_of_another_section_stops_a_stage(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("report: {queries: 0}\n")
    with pytest.raises(InputError, match="report.queries: 0 is below 1"):
        read_params(TrainSections, path)


def test_sections_import_no_model_and_no_pipeline() -> None:
    code = "import sys, stages.params.pipeline; print(sorted({'torch', 'prefect', 'dvc', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def settings_of(text: str) -> list[dict[str, str]]:
    """What each documented `dvc exp run` sets; of several values of a key, one."""
    commands = re.findall(r"dvc exp run (.*)", text.replace("\\\n", " "))
    return [dict(item.strip("'\"").split(",")[0].split("=") for item in re.findall(r"-S (\S+)", command.split("`")[0]))
            for command in commands]  # fmt: skip


def test_what_documents_set_is_allowed(repository: Path) -> None:
    checked = 0
    added = repository / "docs/extending.md"  # it sets what its reader adds; tests/stages/training/test_extending.py
    for file in {repository / "README.md", *(repository / "docs").glob("*.md")} - {added}:
        for settings in settings_of(file.read_text(encoding="utf-8")):
            values = document.read(repository / "params.yaml")
            for dotted, value in settings.items():
                section, key = dotted.split(".")
                values[section][key] = document.parse(value)
            Params.from_dict(values)
            checked += bool(settings)
    assert checked >= 4


def test_every_variant_of_the_study_is_allowed(repository: Path) -> None:
    shipped = Params.load(repository / "params.yaml").to_dict()
    for overrides in (variant.overrides for variant in STUDY.values()):
        values = {section: dict(keys) for section, keys in shipped.items()}
        for dotted, value in overrides.items():
            section, key = dotted.split(".")
            values[section][key] = value
        Params.from_dict(values)


@pytest.mark.parametrize("module", ["stages.prepare_dataset", "stages.tokenize_captions"])
@pytest.mark.parametrize(("option", "code", "said"), [("--help", 0, "usage: "), ("--epochs=3", 2, "unrecognized")])
def test_no_option_starts_a_stage_by_accident(
    module: str, option: str, code: int, said: str, repository: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, option],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_foils_to_train_with_have_to_be_made() -> None:
    with pytest.raises(InputError, match=r"^train.foil_weight: 1 needs foils .*captions.train_foils is false"):
        Params.from_dict({"train": {"foil_weight": 1.0}})
    both = Params.from_dict({"train": {"foil_weight": 1.0}, "captions": {"train_foils": True}})
    assert both.train.foil_kinds == ("count", "relation")


def test_evidence_needs_words_with_gates() -> None:
    off = {"model": {"gate": "none", "gate_evidence": True}, "train": {"gate_supervision": 0}}
    with pytest.raises(InputError, match=r"^model.gate_evidence: true needs gates of words"):
        Params.from_dict(off)


def test_evidence_needs_features_that_end_with_boxes() -> None:
    with pytest.raises(
        InputError, match=r"^model.gate_evidence: true reads .*regions.geometry is false; expected true"
    ):
        Params.from_dict({"model": {"gate_evidence": True}})
    Params.from_dict({"model": {"gate_evidence": True}, "regions": {"geometry": True}})


def test_every_kind_of_foil_may_be_trained_with() -> None:
    assert get_args(FoilKind) == KINDS


@pytest.mark.parametrize("gates", ["open", "another"])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"gate": "none"}, "model.gate is none"),
        ({"gate": "unapplied"}, "model.gate is unapplied"),
        ({"matcher": "scan"}, "model.matcher is scan"),
        ({"message_passing": "none"}, "model.message_passing is none"),
        ({"gate_evidence": True}, "model.gate_evidence is true"),
    ],
)
def test_other_gates_are_asked_of_no_model_without_them_before_it_is_trained(gates, model, reason) -> None:
    values = {"model": model, "train": {"gate_supervision": 0}, "regions": {"geometry": True}}
    with pytest.raises(InputError, match=f"^evaluate.gates: {gates} acts on .*, but {reason}.*; expected trained$"):
        Params.from_dict(values | {"evaluate": {"gates": gates}})
    Params.from_dict(values | {"evaluate": {"gates": "trained"}})


@pytest.mark.parametrize("source", ["scenes", "table"])
def test_only_captions_of_coco_bear_its_ids(source) -> None:
    values = {"captions": {"lexicon": "photographs"}, "evaluate": {"eccv": True}}
    lexicon = {"captions": {"lexicon": "scenes"}} if source == "scenes" else {}
    with pytest.raises(InputError, match=f"^evaluate.eccv: true needs .* dataset.source {source}; expected karpathy"):
        Params.from_dict(values | lexicon | {"dataset": {"source": source}})
    Params.from_dict(values | {"dataset": {"source": "karpathy"}})
