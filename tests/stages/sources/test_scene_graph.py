"""The plan of the embedded scenes, before anything is drawn."""

from collections import Counter

import numpy as np
import pytest

from stages.params.dataset import ScenesParams
from stages.sources import lexicon
from stages.sources.scene_graph import SceneObject, family_sizes, make_twin, plan_split, signature
from stages.sources.scenes import plan


def test_another_seed_gives_other_scenes() -> None:
    first = plan_split("val", (0, 1), 30, 0.4)
    second = plan_split("val", (1, 1), 30, 0.4)
    assert [scene.objects for scene in first] != [scene.objects for scene in second]


def test_the_default_plan_is_large_varied_and_full_of_twins() -> None:
    scenes = plan(ScenesParams())
    splits = Counter(scene.image_id.partition("-")[0] for scene in scenes)
    assert splits["train"] >= 2000 and splits["val"] >= 300 and splits["test"] >= 500
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4, 5, 6}
    for attribute, words in (
        ("shape", lexicon.SHAPES),
        ("colour", lexicon.COLOURS),
        ("texture", lexicon.TEXTURES),
        ("size", lexicon.SIZES),
    ):
        used = Counter(getattr(item, attribute) for scene in scenes for item in scene.objects)
        assert set(used) == set(words)
        assert min(used.values()) > 0.5 * sum(used.values()) / len(words)
    for split in splits:
        members = [scene for scene in scenes if scene.image_id.startswith(split)]
        assert len({signature(scene.objects) for scene in members}) == len(members)
        assert sum(bool(scene.twin_of) for scene in members) >= 0.4 * len(members)
        changes = Counter(scene.change for scene in members if scene.change)
        # Swaps keep the bag of words, so that only what belongs to what tells these twins apart.
        assert changes["swap colours"] + changes["swap textures"] > 0.25 * changes.total()
        assert set(changes) == {"swap colours", "swap textures", "colour", "texture", "shape", "object", "count"}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("scenes", [2, 3, 7, 101])
def test_families_make_up_the_share_that_was_asked_for(scenes: int, share: float) -> None:
    sizes = family_sizes(np.random.default_rng(0), scenes, share)
    assert share * scenes <= sum(sizes) <= scenes
    assert sum(sizes) <= max(2, share * scenes + 1) or share == 0
    assert all(2 <= size <= 5 for size in sizes)
    assert sizes == [] or share > 0


def test_a_swap_keeps_the_bag_of_words() -> None:
    rng = np.random.default_rng(3)
    objects = (SceneObject("star", "red", "plain", "small"), SceneObject("square", "blue", "dotted", "large"))
    swapped = [
        twin for kind, twin in (make_twin(rng, objects, {signature(objects)}) for _ in range(60)) if "swap" in kind
    ]
    assert len(swapped) > 5
    for twin in swapped:
        for attribute in ("shape", "colour", "texture"):
            assert sorted(getattr(item, attribute) for item in twin) == sorted(
                getattr(item, attribute) for item in objects
            )
        assert signature(twin) != signature(objects)
