"""Facts about a picture, used to make sure that a foil is false of it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts import read_table
from stages.errors import InputError, shown
from stages.foils.lexicon import Lexicon, Tag
from stages.sources.lexicon import AXES

_ATTRIBUTES = {"object": "shape", "colour": "colour", "texture": "texture", "size": "size"}


class Facts(Protocol):
    """What is known about the picture of one caption."""

    def refutes(self, tag: Tag, canonical: str) -> bool:
        """Whether the caption is certainly false if `canonical` replaces the tagged word."""
        ...


@dataclass(frozen=True)
class SceneFacts:
    """The ground truth of an embedded scene, for one of its captions."""

    scene: Mapping[str, Any]
    """A row of GROUND_TRUTH."""
    caption: Mapping[str, Any]
    """One of its captions: mentions and relations."""

    def refutes(self, tag: Tag, canonical: str) -> bool:
        """True for a word that no object has, a count other than the exact one, or a relation of no fitting pair."""
        if tag.kind in _ATTRIBUTES:
            return all(item[_ATTRIBUTES[tag.kind]] != canonical for item in self.scene["objects"])
        if tag.kind == "count":
            return True  # captions count all that fit the words, so any other number is wrong
        (relation,) = self.caption["relations"]
        subjects, objects = (
            self.matching_objects(self.caption["mentions"][relation[end]]) for end in ("subject", "object")
        )
        axis, sign = AXES[canonical]
        centres = self.scene["centres"]
        return all(
            sign * (centres[j][axis] - centres[i][axis]) <= 0 for i in subjects for j in objects if i != j
        )  # fmt: skip

    def matching_objects(self, mention: Mapping[str, Any]) -> list[int]:
        """The numbers of the objects that a mention's words are true of."""
        said = {key: mention[key] for key in _ATTRIBUTES.values() if mention[key] is not None}
        return [i for i, item in enumerate(self.scene["objects"]) if all(item[key] == said[key] for key in said)]


class PhotographFacts:
    """The captions of a photograph, and the categories of its boxes if it has any.

    Captions leave much unsaid: that a word is in none of a picture's captions is strong evidence, not proof.
    """

    def __init__(self, lexicon: Lexicon, captions: Iterable[Sequence[str]], categories: Iterable[str]) -> None:
        self.lexicon = lexicon
        self.said = "\n".join(f" {' '.join(words)} " for words in captions)  # no word holds a newline
        self.categories = {category.lower() for category in categories}

    def refutes(self, tag: Tag, canonical: str) -> bool:
        """True if no caption of the picture has any of the canonical's words, and no box has one as its category."""
        surfaces = self.lexicon.words[tag.kind][canonical]
        if tag.kind == "object" and not self.categories.isdisjoint((canonical, *surfaces)):
            return False
        return not any(f" {surface} " in self.said for surface in surfaces)


def true_by_chance(path: Path, split: str) -> float | None:
    """Share of the content words in captions of embedded scenes that are true of a random other scene of the split;
    None if there is no other scene.

    A word is true of a scene if everything that its noun phrase says is true of at least one object.
    """
    table = read_table(path, ("split", "objects", "captions"))
    scenes = table.filter(pc.equal(table["split"], split)).to_pylist()
    if len(scenes) < 2:
        return None
    generator = np.random.default_rng(0)
    said = true = 0
    for i, scene in enumerate(scenes):
        for caption in scene["captions"]:
            other = SceneFacts(scenes[(i + generator.integers(1, len(scenes))) % len(scenes)], caption)
            for mention in caption["mentions"]:
                words = sum(mention[key] is not None for key in _ATTRIBUTES.values())
                said += words
                true += words * bool(other.matching_objects(mention))
    return true / said


def scene_facts(path: Path, image_ids: Sequence[str], texts: Sequence[str]) -> list[Facts]:
    """Read the facts for some captions of embedded scenes from their ground truth.

    Raises:
        InputError: the file is missing or damaged, or does not have a caption.
    """
    wanted = pa.array(sorted(set(image_ids)))
    columns = ("image_id", "objects", "centres", "captions")
    where = "captions.lexicon: scenes needs the ground truth of drawn scenes: "
    table = read_table(path, columns, "that file, or photographs or the path of a lexicon", where=where)
    rows = table.filter(pc.is_in(table["image_id"], value_set=wanted)).to_pylist()
    known = {
        (row["image_id"], caption["text"]): SceneFacts(row, caption) for row in rows for caption in row["captions"]
    }
    facts: list[Facts] = []
    for key in zip(image_ids, texts, strict=True):
        if key not in known:
            raise InputError(
                f"{path}: captions: scene {key[0]} has no caption {shown(key[1])}; expected those of its dataset"
            )
        facts.append(known[key])
    return facts


def photograph_facts(
    lexicon: Lexicon, image_ids: Sequence[str], words: Sequence[Sequence[str]], boxes: Path
) -> list[Facts]:
    """The facts for some captions of photographs, from all the captions given and from `boxes`, if that file exists."""
    said: defaultdict[str, list[Sequence[str]]] = defaultdict(list)
    for image_id, caption in zip(image_ids, words, strict=True):
        said[image_id].append(caption)
    categories: defaultdict[str, set[str]] = defaultdict(set)
    if boxes.is_file():
        table = read_table(boxes, ("image_id", "category"))
        for image_id, category in zip(table["image_id"].to_pylist(), table["category"].to_pylist(), strict=True):
            categories[image_id].add(category)
    of_image = {
        image_id: PhotographFacts(lexicon, captions, categories[image_id]) for image_id, captions in said.items()
    }
    return [of_image[image_id] for image_id in image_ids]
