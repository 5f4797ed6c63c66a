"""Presets: what they say together, and that every one of them, and every set of them that is documented, runs."""

import base64
import csv
import json
import re
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stages.evaluate
import stages.extract_regions
import stages.prepare_dataset
import stages.report
import stages.tokenize_captions
import stages.train
import stages.train_detector
from camp_model.regions import RegionStore
from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params
from stages.params.presets import apply_presets, compose

REPOSITORY = Path(__file__).parents[3]
SHIPPED = sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml"))
SHIPPED_MODEL = "pretrained/flickr8k"
TRAIN, VAL, TEST = range(1, 9), range(9, 19), range(19, 22)


def documented() -> list[tuple[str, ...]]:
    """The sets of presets that README, docs and the presets' own comments lay over the defaults together."""
    found: dict[tuple[str, ...], None] = {}
    for file in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "presets").glob("*")):
        text = file.read_text(encoding="utf-8")
        for name, value in re.findall(r"(\w+)=\((presets/[^)]*)\)", text):
            text = text.replace(f"${{{name}[@]}}", value)
        for command in re.findall(r"python -m stages\.params ((?:presets/\w+\.yaml ?)+)", text):
            found[tuple(Path(name).stem for name in command.split())] = None
    return sorted(found)


def files(names: tuple[str, ...]) -> list[Path]:
    return [REPOSITORY / "presets" / f"{name}.yaml" for name in names]


def test_every_preset_stands_in_a_documented_set() -> None:
    assert {name for names in documented() for name in names} == set(SHIPPED)


def test_no_documented_command_takes_one_variable_for_several_words() -> None:
    """Unlike bash, zsh does not split `$data` at spaces; an array is several words in both."""
    for pattern in ("*.md", "docs/*.md", "presets/*", "pretrained/*/*.md"):
        for file in REPOSITORY.glob(pattern):
            assert not re.findall(r"\$\w+ presets/", file.read_text(encoding="utf-8")), file


def test_presets_start_from_the_defaults_and_not_from_what_params_yaml_holds(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    target.write_text((REPOSITORY / "params.yaml").read_text())
    apply_presets(files(("flickr30k", "faster_rcnn")), target)
    params = Params.load(target)
    assert params.regions == Params().regions and not params.regions.geometry
    assert (params.model, params.train) == (Params().model, Params().train)
    assert "# Every option of the pipeline." in target.read_text()
    assert "# weight of the caption's mean gate logit" in target.read_text()
    assert list(document.read(target)) == list(document.read(REPOSITORY / "params.yaml"))


def test_presets_may_follow_each_other_in_one_file_and_scenes_is_what_was_shipped(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    target.write_text((REPOSITORY / "params.yaml").read_text())
    for names in (("coco", "faster_rcnn"), ("own_images", "bottom_up", "three_step_2_fusion"),
                  ("own_images", "grid", "best_2_camp"), ("flickr8k", "grid", "best"), ("scenes", "counts"),
                  ("scenes",)):  # fmt: skip
        apply_presets(files(names), target)
        assert Params.load(target) == compose(files(names))[0]
    assert target.read_text() == (REPOSITORY / "params.yaml").read_text()


def test_a_preset_says_only_its_own_and_the_paper_nothing_beyond_it() -> None:
    sections = {name: set(document.read(path)) for name, path in zip(SHIPPED, files(tuple(SHIPPED)), strict=True)}
    for name in ("flickr8k", "flickr30k", "coco", "own_images"):
        assert sections[name] == {"dataset", "captions"}
    assert sections["faster_rcnn"] == sections["bottom_up"] == {"detector"}
    assert sections["grid"] == {"detector", "regions"}
    for name in (
        "paper",
        "gates",
        "three_step_1_attention",
        "three_step_2_fusion",
        "three_step_3_finetune",
        "best_1_joint",
        "best_2_camp",
        "from_shipped",
    ):
        assert sections[name] == {"model", "train"}
    paper = compose(files(("flickr30k", "bottom_up", "paper")))[0]
    assert (paper.model.gate_context, paper.train.gate_supervision, paper.model.dim) == (0, 0, 1024)
    assert (paper.detector.backend, paper.regions.geometry, paper.regions.per_image) == ("precomputed", False, 36)
    # Nothing of the scenes' own recipe stays in it, except when the loop stops and saves.
    on_scenes = compose(files(("scenes", "paper")))[0]
    assert on_scenes.model == paper.model
    assert on_scenes.train.replace(patience=10, checkpoint_steps=500) == paper.train


def test_the_later_of_two_presets_counts_and_it_is_said(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("train: {epochs: 3, seed: 1}\n")
    second.write_text("train: {epochs: 4, seed: 1}\n")
    params, notes = compose([first, second])
    assert (params.train.epochs, params.train.seed) == (4, 1)
    assert notes == [f"train.epochs: 4 from {second}, not 3 from {first}"]


def test_a_value_that_is_a_mapping_is_replaced_whole(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a.yaml", "b.yaml", "c.yaml"))
    first.write_text("train: {learning_rates: {region_encoder: 24, caption_encoder: 3}}\n")
    second.write_text("train: {learning_rates: {matcher.joint: 50}}\n")
    third.write_text("train: {learning_rates: {}}\n")
    params, notes = compose([first, second])
    assert params.train.learning_rates == {"matcher.joint": 50}
    assert notes == [
        f"train.learning_rates: {{'matcher.joint': 50}} from {second}, not "
        f"{{'caption_encoder': 3, 'region_encoder': 24}} from {first}"
    ]
    assert compose([first, third])[0].train.learning_rates == {}


def test_halves_of_a_pair_may_stand_in_two_presets_but_not_one_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("model: {gate: none}\n")
    second.write_text("train: {gate_supervision: 0}\n")
    assert compose([first, second])[0].model.gate == "none"
    with pytest.raises(InputError, match=f"^{first}: train.gate_supervision: 1 acts on gates"):
        compose([first])


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((120, 96)).save(path)


def sentence(i: int) -> str:
    return f"a {('red', 'blue')[i % 2]} dog beside {('one', 'two')[i // 2 % 2]} cat{'s' * (i // 2 % 2)} and picture{i}"


def captions(ids: range) -> list[dict[str, Any]]:
    return [{"id": 10 * i, "image_id": i, "caption": sentence(i)} for i in ids]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data/raw with the same few pictures as each of the data presets wants them, and features of all."""
    root = tmp_path_factory.mktemp("presets") / "data" / "raw"
    splits = {"train": TRAIN, "val": VAL, "test": TEST}
    records, rows = [], []
    for split, ids in splits.items():
        for i in ids:
            draw(root / "flickr30k-images" / f"{i}.jpg", i)
            draw(root / "images" / f"{i}.jpg", i)
            draw(root / f"{i}.jpg", i)
            records.append({"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": sentence(i)}]})
            rows.append((f"{i}.jpg", sentence(i), split))
    for split, ids in {"train2017": TRAIN, "val2017": range(9, 22)}.items():
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 120, "height": 96} for i in ids]
        for i in ids:
            draw(root / split / f"{i:012d}.jpg", i)
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 60, 50]} for i in ids]
        (root / "annotations").mkdir(exist_ok=True)
        for kind, values in {
            "captions": {"annotations": captions(ids)},
            "instances": {"annotations": boxes, "categories": [{"id": 1, "name": "dog"}]},
        }.items():
            (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps({"images": images, **values}))
    for name in ("flickr30k", "flickr8k"):
        (root / f"dataset_{name}.json").write_text(json.dumps({"images": records}))
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    generator = np.random.default_rng(0)
    lines = []
    for i in range(1, 22):
        arrays = (np.tile([5, 5, 60, 50], (4, 1)).astype(np.float32), generator.normal(size=(4, 16)).astype(np.float32))
        lines.append(
            "\t".join((str(i), "120", "96", "4", *(base64.b64encode(array.tobytes()).decode() for array in arrays)))
        )
    (root / "bottom_up.tsv").write_text("".join(line + "\n" for line in lines))
    return root


def small(params: Params) -> Params:
    """The same, shrunk: no weights are fetched, and a stage takes a second."""
    detector = params.detector.replace(train=params.detector.train.replace(steps=2, batch_size=2))
    if detector.architecture.startswith("fasterrcnn"):
        detector = detector.replace(architecture="fasterrcnn_mobilenet_v3_large_320_fpn", weights="random")
    if detector.backend == "timm":
        detector = detector.replace(timm=detector.timm.replace(image_size=64))
    scenes = params.dataset.scenes.replace(train=4, val=2, test=2, image_size=96)
    return params.replace(
        dataset=params.dataset.replace(scenes=scenes),
        detector=detector,
        regions=params.regions.replace(per_image=4, min_per_image=4, grids=[2], batch_size=4, device="cpu"),
        # What goes on from the shipped model has its sizes.
        model=params.model if params.train.start_from == SHIPPED_MODEL else params.model.replace(dim=16, word_dim=8),
        train=params.train.replace(epochs=1, batch_size=4, random_negative_steps=1, warmup_steps=0, device="cpu"),
        evaluate=params.evaluate.replace(device="cpu", foils=10, gate_pairs=10),
        report=params.report.replace(queries=2, top_k=2),
    )  # fmt: skip


FEATURES = (
    stages.prepare_dataset, stages.train_detector, stages.extract_regions, stages.tokenize_captions,
)  # fmt: skip
MODEL = (stages.train, stages.evaluate, stages.report)


def run(stage: ModuleType) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stage.main()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("names", documented(), ids="+".join)
def test_every_documented_set_runs_through_the_stages(
    names: tuple[str, ...], raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = small(compose(files(names))[0])
    features = params.replace(model=Params().model, train=Params().train, report=Params().report)
    workspace = raw.parents[1] / str(abs(hash(json.dumps(features.to_dict()))))
    ready = workspace.is_dir()
    workspace.mkdir(exist_ok=True)
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setenv("CAMP_TRACKING", "off")
    if not ready:
        (workspace / "data").mkdir()
        (workspace / "data" / "raw").symlink_to(raw)
        (workspace / "pretrained").symlink_to(REPOSITORY / "pretrained")
        Path("params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    document.rewrite(Path("params.yaml"), params.to_dict())
    for stage in (*(() if ready else FEATURES), *MODEL):
        run(stage)
    assert (f"{SHIPPED_MODEL}: 18 of 18 weights copied" in capsys.readouterr().out) == ("from_shipped" in names)
    step = re.search(r"\b(?:three_)?((?:step|best)_\d)", " ".join(names))
    if step and "trained_words_joint" not in names:  # that is no first of two
        shutil.rmtree(f"models/{step[1]}", ignore_errors=True)
        Path("models/camp").rename(f"models/{step[1]}")
    assert RegionStore(Path("data/regions")).region_dim == {"scenes": 261, "precomputed": 16, "timm": 1752}.get(
        params.dataset.source if params.dataset.source == "scenes" else params.detector.backend, 1024
    )
    metrics = json.loads(Path("metrics/retrieval.json").read_text())
    assert 0 < metrics["test"]["rsum"] <= 600
    assert Path("report/index.html").stat().st_size > 10_000
