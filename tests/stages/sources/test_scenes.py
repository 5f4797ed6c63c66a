"""The embedded scenes: the same bytes every time, true boxes and captions, near twins that captions tell apart."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.params.dataset import DatasetParams, ScenesParams
from stages.sources import lexicon
from stages.sources.base import Source
from stages.sources.scene_captions import captions_of_scene
from stages.sources.scene_drawing import MIN_VISIBLE, draw_scene
from stages.sources.scene_graph import Scene, SceneObject
from stages.sources.scenes import draw, plan, read_source

SMALL = ScenesParams(train=60, val=24, test=36, image_size=128)


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def source(scenes_folder: Path) -> Source:
    return read_source(DatasetParams(scenes=SMALL), scenes_folder)


@pytest.fixture(scope="module")
def rows(source: Source) -> list[dict]:
    return source.ground_truth["scenes"].to_pylist()


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def fits(objects: list[dict], mention: dict) -> list[int]:
    """The objects of a scene that a mention is true of."""
    said = [key for key in ("shape", "colour", "texture", "size") if mention[key] is not None]
    return [i for i, item in enumerate(objects) if all(item[key] == mention[key] for key in said)]


def is_true_of(caption: dict, row: dict) -> bool:
    """Whether every mention of a caption holds of a scene; relations aside."""
    for mention in caption["mentions"]:
        number = len(fits(row["objects"], mention))
        if number == 0 or (mention["count"] > 1 and number != mention["count"]):
            return False
    return True


def test_the_pictures_do_not_depend_on_the_number_of_processes(
    source: Source, scenes_folder: Path, tmp_path: Path
) -> None:
    scenes = plan(SMALL)
    draw(scenes, SMALL.image_size, tmp_path, workers=1)
    assert digests(tmp_path) == digests(scenes_folder)
    assert len(digests(tmp_path)) == 120


def test_everything_but_the_pictures_is_the_same_again(source: Source, tmp_path: Path) -> None:
    again = read_source(DatasetParams(scenes=SMALL), tmp_path)
    assert again.images == source.images
    assert again.captions == source.captions
    assert again.boxes == source.boxes
    assert again.ground_truth["scenes"].equals(source.ground_truth["scenes"])


def test_known_pixels() -> None:
    """A drawing keeps its pixels from one machine and one version of this code to the next."""
    scene = Scene("test-00000", (0, 2, 0), (SceneObject("star", "red", "striped", "large"),) * 2, "test-00000")
    drawing = draw_scene(scene, 160)
    assert hashlib.sha256(drawing.pixels.tobytes()).hexdigest().startswith("77050dee7f33ebf1")


def test_the_bytes_do_not_depend_on_the_processor(tmp_path: Path, repository: Path) -> None:
    """Without the vector instructions of NumPy and of the JPEG encoder, the files stay the same to the byte."""
    script = (
        "import sys, pathlib; from stages.sources.scene_drawing import draw_family\n"
        "from stages.sources.scene_graph import plan_split\n"
        "for scene in plan_split('val', (0, 1), 12, 0.4): draw_family([scene], 160, pathlib.Path(sys.argv[1]))"
    )
    features = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"
    plain = {"NPY_DISABLE_CPU_FEATURES": features, "JSIMD_FORCENONE": "1", "PYTHONWARNINGS": "ignore"}
    found = []
    for name, extra in (("fast", {}), ("plain", plain)):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        subprocess.run(command, check=True, cwd=repository, env=os.environ | extra)
        found.append(digests(tmp_path / name))
    assert found[0] == found[1]
    assert len(found[0]) == 12


def test_the_split_sizes_and_the_picture_size(source: Source, scenes_folder: Path) -> None:
    assert Counter(image.split for image in source.images) == {"train": 60, "val": 24, "test": 36}
    with Image.open(scenes_folder / source.images[0].path) as picture:
        assert (picture.size, picture.mode, picture.format) == ((128, 128), "RGB", "JPEG")


def test_a_twin_differs_in_one_thing(rows: list[dict]) -> None:
    by_id = {row["image_id"]: row for row in rows}
    changed = [row for row in rows if row["change"]]
    assert len(changed) >= 15
    for row in changed:
        base = by_id[row["twin_of"]]
        assert base["split"] == row["split"]
        assert base["family"] == row["family"] == base["image_id"]
        ours = Counter(tuple(item[key] for key in ("shape", "colour", "texture")) for item in row["objects"])
        theirs = Counter(tuple(item[key] for key in ("shape", "colour", "texture")) for item in base["objects"])
        difference = (ours - theirs).total(), (theirs - ours).total()
        expected = {(2, 2)} if "swap" in row["change"] else {(1, 0), (0, 1)} if row["change"] == "count" else {(1, 1)}
        assert difference in expected


def test_every_split_holds_its_share_of_twins_that_captions_tell_apart(rows: list[dict]) -> None:
    """From the ground truth alone: for every twin, a caption is true of it and false of all its near twins."""
    for split in ("train", "val", "test"):
        members = [row for row in rows if row["split"] == split]
        twins = [row for row in members if row["twin_of"] is not None]
        assert len(twins) >= SMALL.twin_share * len(members)
        told = total = 0
        for row in twins:
            family = [other for other in members if other["family"] == row["family"] and other is not row]
            assert family
            apart = [not any(is_true_of(caption, other) for other in family) for caption in row["captions"]]
            assert any(apart)
            told, total = told + sum(apart), total + len(apart)
        assert told >= 0.95 * total


def test_captions_are_four_to_seven_different_and_true(rows: list[dict]) -> None:
    for row in rows:
        texts = [caption["text"] for caption in row["captions"]]
        assert 4 <= len(texts) <= 7
        assert len(set(texts)) == len(texts)
        for caption in row["captions"]:
            assert is_true_of(caption, row)
            for mention in caption["mentions"]:
                assert set(mention["objects"]) <= set(fits(row["objects"], mention))
                assert len(mention["objects"]) == mention["count"]


def test_captions_say_what_they_claim(rows: list[dict]) -> None:
    """Every claimed attribute is there in one of its wordings, and no word of another value of it is."""
    wordings = {"colour": lexicon.COLOURS, "shape": lexicon.SHAPES, "size": lexicon.SIZES, "texture": lexicon.TEXTURES}
    for row in rows:
        for caption in row["captions"]:
            text = caption["text"].lower().replace(",", " ").replace(".", " ").replace(":", " ")
            words = set(text.split())
            for kind, table in wordings.items():
                claimed = {mention[kind] for mention in caption["mentions"]} - {None}
                for value, synonyms in table.items():
                    forms = {*synonyms, *(lexicon.PLURALS.get(word, word) for word in synonyms)}
                    if kind == "texture":
                        forms |= {phrase for phrase in lexicon.TEXTURE_PHRASES[value]}
                    said = bool(words & forms) or any(" " in form and form in text for form in forms)
                    assert said == (value in claimed), (caption["text"], kind, value)


def test_relations_hold_in_pixels(rows: list[dict]) -> None:
    seen = set()
    for row in rows:
        for caption in row["captions"]:
            for relation in caption["relations"]:
                first, second = (caption["mentions"][relation[key]]["objects"] for key in ("subject", "object"))
                for i in first:
                    for j in second:
                        (x0, y0), (x1, y1) = row["centres"][i], row["centres"][j]
                        holds = {"left of": x0 < x1, "right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}
                        assert holds[relation["relation"]]
                seen.add(relation["relation"])
    assert seen == set(lexicon.RELATIONS)


def test_captions_vary(source: Source) -> None:
    starts = Counter(" ".join(caption.text.lower().split()[:3]) for caption in source.captions)
    assert len(starts) > 100
    text = " ".join(caption.text.lower() for caption in source.captions)
    assert all(word in text for word in ("crimson", "disc", "stripy", "huge", "two ", "three ", "on the left of"))


def test_boxes_are_the_tight_boxes_of_the_visible_pixels(source: Source, rows: list[dict]) -> None:
    scenes = {scene.image_id: scene for scene in plan(SMALL)}
    boxes: dict[str, list] = {}
    for box in source.boxes:
        boxes.setdefault(box.image_id, []).append(box)
    checked = 0
    for row in rows:
        scene = scenes[row["image_id"]]
        if row["change"] is not None:
            continue  # its place depends on another scene
        drawing = draw_scene(scene, SMALL.image_size)
        for i, (item, box) in enumerate(zip(scene.objects, boxes[row["image_id"]], strict=True)):
            mask = drawing.owner == i
            x0, y0, x1, y1 = box.box
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
            assert mask[y0, x0:x1].any() and mask[y1 - 1, x0:x1].any()
            assert mask[y0:y1, x0].any() and mask[y0:y1, x1 - 1].any()
            assert (box.category, box.attributes) == (item.shape, (item.colour, item.texture, item.size))
            checked += 1
    assert checked > 100


def test_every_object_is_visible_enough(rows: list[dict]) -> None:
    shares = [share for row in rows for share in row["visible"]]
    assert min(shares) >= MIN_VISIBLE - 1e-6
    assert 0.1 < np.mean(np.array(shares) < 0.999) < 0.9  # there are overlaps, and not only overlaps


def test_twins_are_not_the_same_picture(rows: list[dict], scenes_folder: Path) -> None:
    for row in rows:
        if row["change"]:
            pictures = [
                np.asarray(Image.open(scenes_folder / f"{name}.jpg"), dtype=float)
                for name in (row["image_id"], row["twin_of"])
            ]
            assert np.abs(pictures[0] - pictures[1]).mean() > 8


def test_an_object_has_its_colour() -> None:
    """The middle of a plain disc is nearest to the colour that its caption will name, whatever the light."""
    from stages.sources.scene_raster import COLOUR_RGB

    right = 0
    for number, (colour, other) in enumerate(permutations(lexicon.COLOURS, 2)):
        objects = (SceneObject("circle", colour, "plain", "large"), SceneObject("circle", other, "plain", "large"))
        drawing = draw_scene(Scene("x", (number,), objects, "x"), 160)
        seen = np.median(drawing.pixels[drawing.owner == 0], axis=0)
        palette = {name: np.array(rgb) / np.linalg.norm(rgb) for name, rgb in COLOUR_RGB.items()}
        nearest = max(palette, key=lambda name: float(palette[name] @ seen / np.linalg.norm(seen)))
        right += nearest == colour
    assert right >= 0.95 * 56


def test_a_scene_never_runs_out_of_captions(rows: list[dict]) -> None:
    """Two scenes that words cannot tell apart still get captions, instead of an endless search."""
    from stages.sources.scene_captions import ClaimIndex
    from stages.sources.scene_drawing import Geometry

    objects = (SceneObject("star", "red", "plain", "small"), SceneObject("ring", "blue", "plain", "small"))
    scene = Scene("a", (5,), objects, "a")
    index = ClaimIndex([scene, replace(scene, image_id="b")])
    geometry = Geometry(((20, 20), (90, 30)), ((0, 0, 1, 1),) * 2, (1.0, 1.0))
    assert len(captions_of_scene(scene, geometry, index, family=2, side=128)) >= 4
