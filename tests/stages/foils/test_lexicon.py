"""The words that photographs' foils are made of: which may stand in, and what a wrong lexicon is told."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camp_model.vocabulary import START, Vocabulary, tokenize
from stages.errors import InputError
from stages.foils.facts import PhotographFacts
from stages.foils.lexicon import choose_lexicon
from stages.foils.making import foils_of
from stages.foils.table import read_foils
from stages.foils.words import ids_of_kinds, load_words
from stages.params.captions import CaptionsParams
from stages.params.pipeline import Params
from stages.tokenize_captions import tokenize_captions

NOTHING_REJECTED = pa.table({"image_id": pa.array([], pa.string())})


def photograph_foils(text, others=(), categories=(), words=(), caption_id=1):
    photographs = choose_lexicon("photographs")
    captions = [tokenize(caption) for caption in (text, *others)]
    vocabulary = Vocabulary.build([[*captions[0], *words]])
    facts = PhotographFacts(photographs, captions, categories)
    return {foil.kind: foil for foil in foils_of(caption_id, text, captions[0], facts, photographs, vocabulary)}


def test_photographs_take_words_that_no_caption_and_no_box_of_the_picture_has():
    text, words = "A dog runs on grass", ["cat", "table"]
    assert photograph_foils(text, words=words)["object"].text == "A cat runs on grass"  # of the same group
    assert photograph_foils(text, ["two kittens watch"], words=words)["object"].foil_word == "table"
    for category in ("cat", "Cat", "kitten"):  # other annotations than COCO's name them otherwise
        assert photograph_foils(text, categories=[category], words=words)["object"].foil_word == "table"
    assert photograph_foils(text, ["a cat on a desk"], words=words) == {}
    assert photograph_foils("Three dogs run", words=["cat", "horses"])["object"].text == "Three horses run"
    assert photograph_foils("a hot dog and a stop sign", words=["cat", "pizza", "banana"]) == {}
    assert photograph_foils("a red bus", words=["blue", "gray"])["colour"].foil_word in ("blue", "gray")
    assert photograph_foils("a red bus", ["a grey street"], words=["gray"]) == {}
    assert photograph_foils("Two men sit", words=["five"])["count"].text == "Five men sit"
    assert photograph_foils("a pair of scissors", words=["five", "three"]).get("count") is None
    assert photograph_foils("a cup left of a plate", words=["right"])["relation"].foil_word == "right"
    assert photograph_foils("a cup left of a plate", ["a spoon right of it"], words=["right"]).get("relation") is None
    assert photograph_foils("a tiny bird", words=["large"])["size"].text == "a large bird"
    assert photograph_foils("a striped shirt", words=["dotted"])["texture"].text == "a dotted shirt"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "expected {kind: {canonical: [surface words]}}"),
        ('{"shape": {}}', "shape: unknown kind; expected some of object, colour"),
        ('{"object": {"dog": "dog"}}', "object.dog: 'dog'; expected a list of words"),
        ('{"object": {"dog": ["dog"]}, "groups": {"animals": ["cat"]}}', "groups: 'cat' is not a canonical word"),
        ('{"relation": {"left": ["left"]}, "opposites": [["left"]]}', "opposites: expected pairs"),
    ],
)
def test_a_wrong_lexicon_is_named_with_what_was_expected(content, says, tmp_path):
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        choose_lexicon(str(path))
    assert str(caught.value).startswith(f"captions.lexicon: {path}") and says in str(caught.value)


def test_no_message_about_a_lexicon_holds_a_word_whole(tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"object": {"dog": ["dog"]}, "groups": {"animals": ["' + "x" * 100_000 + '"]}}')
    with pytest.raises(InputError, match="is not a canonical word of the file") as caught:
        choose_lexicon(str(path))
    assert len(str(caught.value)) < 500


def test_the_stage_takes_a_lexicon_file_and_shifts_positions_past_start(tmp_path):
    lexicon = {"object": {"dog": ["Dog", "dogs"], "cat": ["cat", "cats"]}}
    (tmp_path / "words.json").write_text(json.dumps(lexicon))
    rows = [(1, "i1", "train", "a dog and cats"), (2, "i2", "val", "one dog"), (3, "i3", "test", "see a Dog or cats"),
            (4, "i4", "test", "I see a Dog")]  # fmt: skip
    names = ("caption_id", "image_id", "split", "text")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), tmp_path / "captions.parquet")
    pq.write_table(NOTHING_REJECTED, tmp_path / "rejected.parquet")
    params = CaptionsParams(lexicon=str(tmp_path / "words.json"), start_end=True, max_words=4)
    with pytest.raises(InputError, match=r"captions.lexicon: scenes needs .*scenes.parquet"):
        tokenize_captions(CaptionsParams(), tmp_path, tmp_path / "rejected.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tokenize_captions(params, tmp_path, tmp_path / "rejected.parquet", tmp_path / "out")
    assert len(read_foils(tmp_path / "out/foils_test.parquet")) == 0  # "cat" is no word of the train split
    rows[0] = (1, "i1", "train", "a dog and a cat and cats")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), tmp_path / "captions.parquet")
    tokenize_captions(params, tmp_path, tmp_path / "rejected.parquet", tmp_path / "out")
    foils = read_foils(tmp_path / "out/foils_test.parquet")
    assert foils.captions.texts == ["I see a Cat"] and foils.positions == [4]
    vocabulary = Vocabulary.load(tmp_path / "out/vocabulary.json")
    tokens = foils.captions.batch([0])[0][0].tolist()
    assert tokens[0] == START and vocabulary.words[tokens[4]] == "cat"
    words = load_words(tmp_path / "out/lexicon.json")
    assert words == {"object": {"dog": ["dog", "dogs"], "cat": ["cat", "cats"]}}
    assert [vocabulary.words[i] for i in ids_of_kinds(words, vocabulary)] == sorted(
        ("dog", "cat", "cats"), key=vocabulary.words.index
    )


def test_other_pictures_than_scenes_get_the_words_of_photographs():
    with pytest.raises(
        InputError, match="captions.lexicon: scenes says nothing of the pictures of dataset.source coco"
    ):
        Params.from_dict({"dataset": {"source": "coco"}})
    assert (
        Params.from_dict({"dataset": {"source": "coco"}, "captions": {"lexicon": "my.json"}}).captions.lexicon
        == "my.json"
    )
    assert Params().captions.lexicon == "scenes"
