"""Foils: one word changed, known to the vocabulary, and false of the picture, by an independent reading of it."""

import itertools
import weakref
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camp_model.captions import CaptionTable
from camp_model.vocabulary import Vocabulary, tokenize
from stages.foils import table as foil_tables
from stages.foils.facts import SceneFacts, true_by_chance
from stages.foils.lexicon import scenes_lexicon
from stages.foils.making import foils_of
from stages.foils.table import read_foils
from stages.foils.words import KINDS, words_of
from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams, ScenesParams
from stages.prepare_dataset import prepare_dataset
from stages.sources import lexicon as written
from stages.tokenize_captions import tokenize_captions

SCENES = scenes_lexicon()
NOTHING_REJECTED = pa.table({"image_id": pa.array([], pa.string())})


def thing(shape, colour, texture, size):
    return {"shape": shape, "colour": colour, "texture": texture, "size": size}


def mention(count=1, **said):
    return {"count": count} | dict.fromkeys(("shape", "colour", "texture", "size")) | said


# A small red striped circle at the left; at the right two blue plain stars, a large one high and a small one low.
OBJECTS = [thing("circle", "red", "striped", "small"), thing("star", "blue", "plain", "large"),
           thing("star", "blue", "plain", "small")]  # fmt: skip


CENTRES = [[20, 80], [120, 30], [130, 130]]


def scene_foils(text, mentions, relations=(), words=()):
    """Foils of a caption of that scene by kind, in a vocabulary of the caption's words and `words`."""
    facts = SceneFacts({"objects": OBJECTS, "centres": CENTRES}, {"mentions": mentions, "relations": list(relations)})
    vocabulary = Vocabulary.build([[*tokenize(text), *words]])
    return {foil.kind: foil for foil in foils_of(7, text, tokenize(text), facts, SCENES, vocabulary)}


@pytest.mark.parametrize(
    ("kind", "known", "text"),
    [
        ("object", ["heart", "hearts"], "A small red heart with stripes."),
        ("object", ["stars", "star"], None),  # a star is there
        ("object", ["hearts"], None),  # one circle cannot become hearts
        ("colour", ["green"], "A small green circle with stripes."),
        ("colour", ["blue"], None),  # a colour of the scene
        ("size", ["medium"], "A medium red circle with stripes."),
        ("size", ["large"], None),
        ("texture", ["dots", "dotted"], "A small red circle with dots."),
        ("texture", ["dotted"], None),  # what follows "with" is a noun
    ],
)
def test_a_word_becomes_one_that_no_object_of_the_scene_has(kind, known, text):
    foil = scene_foils("A small red circle with stripes.", [mention(shape="circle")], words=known).get(kind)
    assert (foil.text if foil else None) == text


def test_a_count_becomes_another_and_keeps_its_form():
    text, told = "two blue stars with a circle", [mention(2, shape="star", colour="blue"), mention(shape="circle")]
    assert scene_foils(text, told, words=["five", "trio"])["count"].text == "five blue stars with a circle"
    text = text.replace("two", "a pair of")
    assert scene_foils(text, told, words=["five", "trio"])["count"].text == "a trio of blue stars with a circle"
    assert "count" not in scene_foils("one circle", [mention(shape="circle")], words=["two", "three"])


def test_what_is_true_of_another_scene_by_chance(tmp_path):
    told = [mention(shape="star", colour="blue"), mention(shape="circle", colour="red", size="small"),
            mention(colour="red")]  # fmt: skip
    other = [thing("circle", "red", "plain", "large"), thing("star", "blue", "plain", "small")]
    scenes = [
        {"split": "test", "objects": OBJECTS, "captions": [{"mentions": told}]},
        {"split": "test", "objects": other, "captions": []},
        {"split": "train", "objects": [], "captions": [{"mentions": told}]},
    ]
    pq.write_table(pa.Table.from_pylist(scenes), tmp_path / "scenes.parquet")
    assert true_by_chance(tmp_path / "scenes.parquet", "test") == 3 / 6  # its red circle is large


def test_a_relation_becomes_its_opposite_only_where_no_fitting_pair_is_in_it():
    circle, star = mention(shape="circle"), mention(shape="star")
    left = [{"subject": 0, "relation": "left of", "object": 1}]
    foil = scene_foils("A circle to the left of a star", [circle, star], left, ["right"])["relation"]
    assert (foil.text, foil.position, foil.word, foil.foil_word) == (
        "A circle to the right of a star", 4, "left", "right",
    )  # fmt: skip
    # The circle is above one star and below the other: both are true.
    above = [{"subject": 0, "relation": "above", "object": 1}]
    assert "relation" not in scene_foils("a circle above a star", [circle, star], above, ["below", "under"])
    large = mention(shape="star", size="large")
    below = [{"subject": 0, "relation": "below", "object": 1}]
    assert scene_foils("a circle under a large star", [circle, large], below, ["above", "over"])["relation"].text == (
        "a circle above a large star"
    )
    # "higher than" would need two other words.
    assert "relation" not in scene_foils("a star higher than a circle", [star, circle], above, ["below", "under"])


def test_an_article_goes_with_the_new_word_too():
    told = [mention(shape="circle", colour="red")]
    assert scene_foils("a red circle", told, words=["orange", "emerald"]).get("colour") is None
    assert scene_foils("the picture has one red circle", told, words=["orange"])["colour"].foil_word == "orange"
    assert scene_foils("an ivory circle", told, words=["orange", "green"])["colour"].text == "an orange circle"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A few hundred generated scenes and their tokenised captions, below one folder."""
    root = tmp_path_factory.mktemp("scenes")
    sizes = ScenesParams(train=60, val=120, test=180, image_size=96)
    prepare_dataset(DatasetParams(scenes=sizes), root / "dataset")
    pq.write_table(NOTHING_REJECTED, root / "rejected.parquet")
    tokenize_captions(CaptionsParams(), root / "dataset", root / "rejected.parquet", root / "captions")
    return root


ATTRIBUTES = {"object": "shape", "colour": "colour", "texture": "texture", "size": "size"}
TABLES = {"object": written.SHAPES, "colour": written.COLOURS, "texture": written.TEXTURES, "size": written.SIZES}
COLOUR_WORDS = {word for words in written.COLOURS.values() for word in words}
NUMBERS = {"two": 2, "pair": 2, "couple": 2, "three": 3, "trio": 3, "four": 4, "five": 5, "six": 6}


# What "x of the subject, x of the object, y of the subject, y of the object" must fulfil for a word to be true.
PLACES = {"left": lambda a, b, *_: a < b, "right": lambda a, b, *_: a > b,
          "above": lambda *xy: xy[2] < xy[3], "below": lambda *xy: xy[2] > xy[3]}  # fmt: skip


def canonical(kind: str, word: str) -> str:
    """By the generator's own tables, read backwards; "stripes" and "circles" by the words that they come from."""
    plurals = {plural: word for word, plural in written.PLURALS.items()}
    nouns = {"stripes": "striped", "dots": "dotted", "spots": "dotted", "checks": "checkered"}
    word = plurals.get(word, word) if kind == "object" else nouns.get(word, word)
    (found,) = [name for name, words in TABLES[kind].items() if word in words]
    return found


def fitting(scene: dict, told: dict) -> list[int]:
    keys = [key for key in ATTRIBUTES.values() if told[key] is not None]
    return [i for i, item in enumerate(scene["objects"]) if all(item[key] == told[key] for key in keys)]


def is_false(kind: str, word: str, before: str, scene: dict, caption: dict) -> bool:
    """Whether a caption with `word` for `before` is false of the scene, by brute force over its objects."""
    if kind in ATTRIBUTES:
        return canonical(kind, word) not in [item[ATTRIBUTES[kind]] for item in scene["objects"]]
    if kind == "count":
        counted = {len(fitting(scene, told)) for told in caption["mentions"] if told["count"] > 1}
        own = NUMBERS[before]
        assert own in counted | {len(scene["objects"])}, "the caption itself counts right"
        return NUMBERS[word] != own
    (relation,) = caption["relations"]
    first, second = (fitting(scene, caption["mentions"][relation[end]]) for end in ("subject", "object"))
    pairs = [(scene["centres"][i], scene["centres"][j]) for i, j in itertools.product(first, second) if i != j]
    assert any(PLACES[relation["relation"].split()[0]](a[0], b[0], a[1], b[1]) for a, b in pairs)
    return not any(PLACES[word](a[0], b[0], a[1], b[1]) for a, b in pairs)


def test_no_foil_of_hundreds_of_generated_scenes_is_true(scenes):
    truth = {row["image_id"]: row for row in pq.read_table(scenes / "dataset/scenes.parquet").to_pylist()}
    vocabulary = Vocabulary.load(scenes / "captions/vocabulary.json")
    counts = dict.fromkeys(KINDS, 0)
    later = 0
    for split in ("val", "test"):
        captions = CaptionTable.load(scenes / f"captions/{split}.parquet")
        own = {
            int(c): (text, i)
            for c, text, i in zip(captions.caption_ids, captions.texts, captions.image_ids, strict=True)
        }
        foils = read_foils(scenes / f"captions/foils_{split}.parquet")
        seen = set()
        for at in range(len(foils)):
            caption_id, kind = int(foils.captions.caption_ids[at]), foils.kinds[at]
            assert (caption_id, kind) not in seen, "one foil of each kind"
            seen.add((caption_id, kind))
            counts[kind] += 1
            colours = [i for i, word in enumerate(tokenize(own[caption_id][0])) if word in COLOUR_WORDS]
            later += kind == "colour" and foils.positions[at] > colours[0]
            text, image_id = own[caption_id]
            assert foils.captions.image_ids[at] == image_id
            before, after = tokenize(text), tokenize(foils.captions.texts[at])
            changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
            assert changed == [foils.positions[at]], (text, foils.captions.texts[at])
            assert (before[changed[0]], after[changed[0]]) == (foils.words[at], foils.foil_words[at])
            assert foils.captions.batch([at])[0][0].tolist() == vocabulary.encode(after)
            assert foils.foil_words[at] in vocabulary
            if changed[0] and before[changed[0] - 1] in ("a", "an"):
                assert (after[changed[0]][0] in "aeiou") == (before[changed[0] - 1] == "an")
            plurals = set(written.PLURALS.values())
            assert (before[changed[0]] in plurals) == (after[changed[0]] in plurals)
            (caption,) = [item for item in truth[image_id]["captions"] if item["text"] == text]
            assert is_false(kind, foils.foil_words[at], foils.words[at], truth[image_id], caption), (text, after)
    assert min(counts.values()) >= 40, counts
    assert 0.3 < later / counts["colour"] < 0.9, "any word of a kind may be the changed one"


def test_what_is_drawn_depends_on_the_caption_and_the_kind_alone(scenes, tmp_path):
    """The same dataset with its captions in another order, and most of them gone, has the same foils."""
    for name in ("scenes", "boxes"):
        (tmp_path / f"{name}.parquet").write_bytes((scenes / f"dataset/{name}.parquet").read_bytes())
    captions = pq.read_table(scenes / "dataset/captions.parquet").to_pylist()
    kept = [row for row in captions if row["split"] == "train" or row["caption_id"] % 3 == 0][::-1]
    pq.write_table(pa.Table.from_pylist(kept), tmp_path / "captions.parquet")
    tokenize_captions(CaptionsParams(), tmp_path, scenes / "rejected.parquet", tmp_path / "out")
    for split in ("val", "test"):
        every, some = (pq.read_table(path / f"foils_{split}.parquet").select(["caption_id", "kind", "text"]).to_pylist()
                       for path in (scenes / "captions", tmp_path / "out"))  # fmt: skip
        wanted = [row for row in every if row["caption_id"] % 3 == 0]
        assert len(some) > 50
        assert sorted(some, key=str) == sorted(wanted, key=str)


def test_the_words_of_scenes_are_all_the_words_that_their_captions_name_things_with():
    every = {word for table in TABLES.values() for words in table.values() for word in words} | set(NUMBERS)
    every |= set(written.PLURALS.values()) - {"shapes", "objects", "things"} | {"left", "right", "higher"}
    every |= {"above", "over", "below", "under", "beneath", "stripes", "dots", "spots", "checks"}
    assert set(words_of(SCENES.words)) == every - {"medium-sized"}


def test_a_table_is_made_of_rows_few_of_which_are_held_at_a_time(monkeypatch):
    class Row(dict):
        """A dict that can be watched."""

    def rows():
        for number in range(53):
            row = Row(caption_id=number, image_id="a", text=f"two dogs {number}", tokens=[4, 5], length=2, kind="count",
                      position=0, word="three", foil_word="two")  # fmt: skip
            made.append(weakref.ref(row))
            held.append(sum(ref() is not None for ref in made))
            yield row

    monkeypatch.setattr(foil_tables, "AT_ONCE", 5)
    made, held = [], []
    table = foil_tables.foil_table(rows())
    assert max(held) <= 2 * 5
    assert table.equals(pa.Table.from_pylist([dict(row) for row in rows()], foil_tables.SCHEMA))
    assert {column.num_chunks for column in table.columns} == {1}, "it is written as if made at once"
    assert foil_tables.foil_table([]).equals(foil_tables.SCHEMA.empty_table())
