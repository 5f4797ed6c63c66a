"""The content of each embedded scene: objects with attributes, and near twins that differ in one thing.

Positions are not decided here but when the scenes are drawn (scene_drawing.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import TypeVar

import numpy as np

from stages.sources.lexicon import COLOURS, SHAPES, SIZES, TEXTURES

T = TypeVar("T")

MIN_OBJECTS, MAX_OBJECTS = 2, 6


@dataclass(frozen=True)
class SceneObject:
    """One object, in canonical words (the keys of the lexicon)."""

    shape: str
    colour: str
    texture: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One scene before it is drawn. Near twins share a `family`; without twins, `twin_of` and `change` are empty."""

    image_id: str
    key: tuple[int, ...]
    """Seed of everything that is random in this scene only."""
    objects: tuple[SceneObject, ...]
    family: str
    twin_of: str = ""
    change: str = ""
    """What was changed in `twin_of` to make this scene; empty for the first scene of a family."""


def pick(rng: np.random.Generator, items: Sequence[T], weights: Sequence[int] | None = None) -> T:
    """Draw one of `items` with integer weights: integer arithmetic gives the same result on every machine."""
    if weights is None:
        return items[int(rng.integers(len(items)))]
    ticket = int(rng.integers(sum(weights)))
    for item, weight in zip(items, weights, strict=True):
        ticket -= weight
        if ticket < 0:
            return item
    raise AssertionError("weights are not positive")


def _object(rng: np.random.Generator) -> SceneObject:
    return SceneObject(
        shape=pick(rng, list(SHAPES)),
        colour=pick(rng, list(COLOURS)),
        texture=pick(rng, list(TEXTURES), [4, 3, 3, 3]),
        size=pick(rng, list(SIZES), [3, 4, 3]),
    )


def draw_objects(rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Draw 2 to 6 objects; in a third of the scenes two or three share shape and colour, for captions that count
    them."""
    count = pick(rng, range(MIN_OBJECTS, MAX_OBJECTS + 1), [8, 20, 28, 26, 18])
    objects = [_object(rng) for _ in range(count)]
    if count > 2 and rng.integers(3) == 0:
        alike = pick(rng, (2, 3), [3, 1 if count > 3 else 0])
        same_texture = bool(rng.integers(2))
        for i in range(1, alike):
            objects[i] = replace(objects[i], shape=objects[0].shape, colour=objects[0].colour)
            if same_texture:
                objects[i] = replace(objects[i], texture=objects[0].texture)
    return tuple(objects[i] for i in rng.permutation(count))


def signature(objects: Sequence[SceneObject]) -> tuple[tuple[str, str, str], ...]:
    """What distinguishes two scenes: the multiset of (shape, colour, texture). Sizes and positions do not suffice."""
    return tuple(sorted((item.shape, item.colour, item.texture) for item in objects))


def _swap(attribute: str, rng: np.random.Generator, objects: list[SceneObject]) -> bool:
    i, j = (int(k) for k in rng.permutation(len(objects))[:2])
    a, b = getattr(objects[i], attribute), getattr(objects[j], attribute)
    # Two objects that are otherwise alike would only exchange places.
    if a == b or objects[i].shape == objects[j].shape:
        return False
    objects[i], objects[j] = replace(objects[i], **{attribute: b}), replace(objects[j], **{attribute: a})
    return True


def _change(attribute: str, words: Iterable[str], rng: np.random.Generator, objects: list[SceneObject]) -> bool:
    i = int(rng.integers(len(objects)))
    others = [word for word in words if word != getattr(objects[i], attribute)]
    objects[i] = replace(objects[i], **{attribute: pick(rng, others)})
    return True


def _replace_object(rng: np.random.Generator, objects: list[SceneObject]) -> bool:
    objects[int(rng.integers(len(objects)))] = _object(rng)
    return True


def _change_count(rng: np.random.Generator, objects: list[SceneObject]) -> bool:
    """Add or remove one of two or more objects that share shape and colour."""
    alike = Counter((item.shape, item.colour) for item in objects)
    groups = sorted(group for group, count in alike.items() if count > 1)
    if not groups:
        return False
    group = pick(rng, groups)
    members = [i for i, item in enumerate(objects) if (item.shape, item.colour) == group]
    if alike[group] == 2 and len(objects) < MAX_OBJECTS:
        objects.append(replace(objects[members[0]], size=pick(rng, list(SIZES))))
    elif len(objects) > MIN_OBJECTS + 1:
        del objects[members[-1]]
    else:
        return False
    return True


# Weight and edit, which changes the objects in place and returns whether it could.
# Swaps leave the bag of words as it was: such twins differ only in which word belongs to which region.
_EDITS: dict[str, tuple[int, Callable[[np.random.Generator, list[SceneObject]], bool]]] = {
    "swap colours": (7, partial(_swap, "colour")),
    "swap textures": (3, partial(_swap, "texture")),
    "colour": (3, partial(_change, "colour", COLOURS)),
    "texture": (2, partial(_change, "texture", TEXTURES)),
    "shape": (3, partial(_change, "shape", SHAPES)),
    "object": (2, _replace_object),
    "count": (3, _change_count),
}


def make_twin(
    rng: np.random.Generator, objects: Sequence[SceneObject], taken: set[tuple[tuple[str, str, str], ...]]
) -> tuple[str, tuple[SceneObject, ...]]:
    """Change `objects` until their signature is not in `taken`; return the kind of change and the changed objects."""
    while True:
        kind = pick(rng, list(_EDITS), [weight for weight, _ in _EDITS.values()])
        changed = list(objects)
        if _EDITS[kind][1](rng, changed) and signature(changed) not in taken:
            return kind, tuple(changed)


def family_sizes(rng: np.random.Generator, scenes: int, twin_share: float) -> list[int]:
    """Draw sizes of families of near twins (2 to 4 scenes) that together make up at least `twin_share` of `scenes`."""
    left = min(scenes, max(2, ceil(twin_share * scenes))) if twin_share > 0 else 0
    sizes: list[int] = []
    while left >= 2:
        sizes.append(min(left, pick(rng, (2, 3, 4), [6, 3, 2])))
        left -= sizes[-1]
    if left:
        sizes[-1] += 1
    return sizes


def plan_split(split: str, seed_key: tuple[int, int], scenes: int, twin_share: float) -> list[Scene]:
    """Plan all scenes of a split, no two with the same signature; families are spread over the split at random."""
    rng = np.random.default_rng(seed_key)
    families = family_sizes(rng, scenes, twin_share)
    families += [1] * (scenes - sum(families))
    slots = iter(rng.permutation(scenes).tolist())
    taken: set[tuple[tuple[str, str, str], ...]] = set()
    planned: list[Scene] = []
    for size in families:
        numbers = [next(slots) for _ in range(size)]
        ids = [f"{split}-{number:05d}" for number in numbers]
        base = draw_objects(rng)
        while signature(base) in taken:
            base = draw_objects(rng)
        taken.add(signature(base))
        planned.append(Scene(ids[0], (*seed_key, numbers[0]), base, ids[0], ids[1] if size > 1 else ""))
        for number, image_id in zip(numbers[1:], ids[1:], strict=True):
            kind, objects = make_twin(rng, base, taken)
            taken.add(signature(objects))
            planned.append(Scene(image_id, (*seed_key, number), objects, ids[0], ids[0], kind))
    return sorted(planned, key=lambda scene: scene.image_id)
