"""Captions of the embedded scenes: they mention some of the objects, in varied wording, and record what they claim."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from stages.sources.lexicon import (
    ANY_SHAPE,
    AXES,
    COLOURS,
    COUNTS,
    PLURALS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURE_PHRASES,
    TEXTURES,
)
from stages.sources.scene_drawing import Geometry
from stages.sources.scene_graph import Scene, pick

MIN_CAPTIONS, MAX_CAPTIONS = 4, 7
_TRIES = 40


@dataclass(frozen=True)
class Mention:
    """What a caption says about one object, or about several alike, in canonical words; None: not mentioned.

    `count` 1 claims that there is at least one such object; a higher count, that there are exactly so many.
    """

    objects: tuple[int, ...]
    shape: str | None
    colour: str | None
    texture: str | None
    size: str | None
    count: int


@dataclass(frozen=True)
class SceneCaption:
    """A caption and what it claims. A relation is (number of a mention, key of RELATIONS, number of a mention)."""

    text: str
    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


@dataclass
class ClaimIndex:
    """Finds the scenes of a split for which a claim is true, as bits of an integer, one bit per scene.

    Relations are left out on purpose: the objects themselves must distinguish scenes, because CAMP sees what each
    region looks like but not where it is.
    """

    scenes: Sequence[Scene]
    _at_least_one: dict[tuple[str | None, ...], int] = field(default_factory=lambda: defaultdict(int))
    _exactly: dict[tuple[tuple[str | None, ...], int], int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        for bit, scene in enumerate(self.scenes):
            claims: Counter[tuple[str | None, ...]] = Counter()
            for item in scene.objects:
                words = (item.shape, item.colour, item.texture, item.size)
                claims.update(product(*((word, None) for word in words)))
            for claim, count in claims.items():
                self._at_least_one[claim] |= 1 << bit
                self._exactly[claim, count] |= 1 << bit

    def fitting(self, mentions: Sequence[Mention]) -> int:
        """The bits of the scenes for which every mention is true."""
        bits = (1 << len(self.scenes)) - 1
        for mention in mentions:
            claim = (mention.shape, mention.colour, mention.texture, mention.size)
            bits &= self._at_least_one[claim] if mention.count == 1 else self._exactly[claim, mention.count]
        return bits


def _word(rng: np.random.Generator, words: Sequence[str]) -> str:
    """The usual word, or a synonym about one time in five."""
    return words[0] if len(words) == 1 or rng.integers(5) else pick(rng, words[1:])


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _phrase(rng: np.random.Generator, mention: Mention) -> str:
    """Write the noun phrase of a mention."""
    noun = _word(rng, SHAPES[mention.shape]) if mention.shape else pick(rng, ANY_SHAPE)
    before, after = [], []
    if mention.size:
        before.append(_word(rng, SIZES[mention.size]))
    if mention.texture:
        if rng.integers(4) == 0:
            after.append(_word(rng, TEXTURE_PHRASES[mention.texture]))
        else:
            before.append(_word(rng, TEXTURES[mention.texture]))
    if mention.colour:
        colour = _word(rng, COLOURS[mention.colour])
        if not after and rng.integers(10) == 0:
            plural = mention.count > 1
            after.append(pick(rng, (f"in {colour}", f"that {'are' if plural else 'is'} {colour}")))
        else:
            before.insert(len(before) if rng.integers(6) else max(0, len(before) - 1), colour)
    if mention.count > 1:
        return " ".join([_word(rng, COUNTS[mention.count]), *before, PLURALS[noun], *after])
    phrase = " ".join([*before, noun, *after])
    article = _word(rng, COUNTS[1]) if rng.integers(3) == 0 else "a"
    return _with_article(phrase) if article == "a" else f"{article} {phrase}"


def _mention(rng: np.random.Generator, scene: Scene, first: int, thorough: int) -> Mention:
    """Choose what to say about object `first`; `thorough` (0, 1 or 2) is the level of detail."""
    item = scene.objects[first]
    alike = [i for i, other in enumerate(scene.objects) if (other.shape, other.colour) == (item.shape, item.colour)]
    told = tuple(alike) if len(alike) > 1 and rng.integers(4) else (first,)
    textures, sizes = {scene.objects[i].texture for i in told}, {scene.objects[i].size for i in told}
    plain = item.texture == "plain"
    say_texture = len(textures) == 1 and rng.integers(100) < ((12, 40, 75) if plain else (40, 70, 95))[thorough]
    say_size = len(sizes) == 1 and rng.integers(100) < (6 if item.size == "medium" else 24)
    say_colour = rng.integers(100) < 94 or thorough == 2
    say_shape = rng.integers(100) < 95 or not (say_colour and say_texture) or len(told) > 1
    texture = item.texture if say_texture else None
    size = item.size if say_size else None
    colour, shape = item.colour if say_colour else None, item.shape if say_shape else None
    if len(told) > 1:
        # "two blue stars" counts all objects that fit the words, so the mention must include exactly those.
        told = tuple(
            i
            for i, other in enumerate(scene.objects)
            if other.shape == shape
            and colour in (None, other.colour)
            and texture in (None, other.texture)
            and size in (None, other.size)
        )
    return Mention(told, shape, colour, texture, size, len(told))


def _mentions(rng: np.random.Generator, scene: Scene, everything: bool) -> list[Mention]:
    """Mentions of some of the objects, in random order; no object is mentioned twice."""
    count = len(scene.objects)
    wanted = {2: (2,), 3: (2, 3, 3), 4: (2, 3, 3, 4), 5: (3, 3, 4), 6: (3, 3, 4, 4)}[count]
    most = count if everything else pick(rng, wanted)
    thorough = 2 if everything else (1 if most <= 2 or rng.integers(3) == 0 else 0)
    mentions: list[Mention] = []
    spoken: set[int] = set()
    for i in rng.permutation(count).tolist():
        if i in spoken or len(spoken) >= most:
            continue
        mention = _mention(rng, scene, i, thorough)
        if spoken.isdisjoint(mention.objects):
            mentions.append(mention)
            spoken.update(mention.objects)
    return mentions


def relation_between(geometry: Geometry, left: Sequence[int], right: Sequence[int], side: int) -> list[str]:
    """The relations that clearly hold between all objects of one group and all of another."""
    held = []
    for name, (axis, sign) in AXES.items():
        deltas = [
            (sign * (geometry.centres[j][axis] - geometry.centres[i][axis]),
             abs(geometry.centres[j][1 - axis] - geometry.centres[i][1 - axis]))
            for i in left for j in right
        ]  # fmt: skip
        if all(along >= side // 8 and along * 4 >= across * 5 for along, across in deltas):
            held.append(name)
    return held


def _list(rng: np.random.Generator, phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    if len(phrases) == 2:
        return phrases[0] + pick(rng, (" and ", " and ", " with ", " along with ", " together with ")) + phrases[1]
    last = pick(rng, (" and ", ", and ", " and also ", ", along with "))
    return ", ".join(phrases[:-1]) + last + phrases[-1]


def _opening(rng: np.random.Generator, plural: bool) -> str:
    there = "there are" if plural else "there is"
    openings = (
        "", "", f"{there} ", f"{there} ", "a picture of ", "a picture with ", "an image showing ", "an image of ",
        "a scene with ", "this picture shows ", "here we see ", "we can see ", "you can see ", "the scene contains ",
        f"in this image {there} ", "a drawing of ", "the picture has ", "somebody drew ",
    )  # fmt: skip
    return pick(rng, openings)


def _sentence(
    rng: np.random.Generator, scene: Scene, mentions: list[Mention], geometry: Geometry, side: int
) -> SceneCaption:
    """Write one caption with the mentions in their order."""
    phrases = [_phrase(rng, mention) for mention in mentions]
    plural = [mention.count > 1 for mention in mentions]
    relations: tuple[tuple[int, str, int], ...] = ()
    held = relation_between(geometry, mentions[0].objects, mentions[1].objects, side) if len(mentions) > 1 else []
    if held and rng.integers(100) < 55:
        relation = pick(rng, held)
        relations = ((0, relation, 1),)
        words = _word(rng, RELATIONS[relation])
        verb = "are" if plural[0] else "is"
        pair = pick(rng, (
            f"{phrases[0]} {verb} {words} {phrases[1]}", f"{phrases[0]} {words} {phrases[1]}",
            f"{_opening(rng, plural[0])}{phrases[0]} {words} {phrases[1]}",
            f"{words} {phrases[1]} there {verb} {phrases[0]}",
        ))  # fmt: skip
        rest = _list(rng, phrases[2:]) if len(phrases) > 2 else ""
        joint = pick(rng, (f" and {rest}", f", and there is also {rest}", f" with {rest}", f", as well as {rest}"))
        text = pair + (joint if rest else "")
    else:
        total = COUNTS[len(scene.objects)][0]
        kind = PLURALS[pick(rng, ANY_SHAPE)]
        form = int(rng.integers(12))
        if form == 0:
            among = ": " if sum(mention.count for mention in mentions) == len(scene.objects) else ", among them "
            text = f"{total} {kind}{among}{_list(rng, phrases)}"
        elif form == 1 and len(phrases) > 1:
            text = f"{phrases[0]} can be seen with {_list(rng, phrases[1:])}"
        elif form == 2 and len(phrases) > 1:
            text = f"{_list(rng, phrases[:-1])} in a picture with {phrases[-1]}"
        else:
            text = _opening(rng, plural[0]) + _list(rng, phrases)
    if rng.integers(2):
        text = text[0].upper() + text[1:] + "."
    return SceneCaption(text, tuple(mentions), relations)


def captions_of_scene(
    scene: Scene, geometry: Geometry, index: ClaimIndex, family: int, side: int
) -> list[SceneCaption]:
    """Write 4 to 7 different captions; those of a near twin are true of no other scene of its family.

    Args:
        family: bits, in `index`, of the scene's near twins, without the scene itself.
        side: side of the picture in pixels.
    """
    rng = np.random.default_rng((*scene.key, 2))
    captions: list[SceneCaption] = []
    texts: set[str] = set()
    for _ in range(int(rng.integers(MIN_CAPTIONS, MAX_CAPTIONS + 1))):
        for attempt in range(2 * _TRIES):
            mentions = _mentions(rng, scene, everything=attempt >= _TRIES)
            caption = _sentence(rng, scene, mentions, geometry, side)
            # The last attempt is accepted in any case, so that a scene never runs out of captions.
            apart = not index.fitting(mentions) & family or attempt == 2 * _TRIES - 1
            if apart and caption.text not in texts:
                captions.append(caption)
                texts.add(caption.text)
                break
    return captions
