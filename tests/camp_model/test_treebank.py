"""Words as nltk's word_tokenize cuts them: a table of what nltk 3.10 gave, and nltk itself where it is installed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camp_model.treebank import treebank_words
from camp_model.vocabulary import TOKENIZERS, Vocabulary

# What `word_tokenize(text.lower())` of nltk 3.10.4 with its model punkt_tab gave.
TABLE = [
    ("The man's T-shirt can't say: hi!", "the man 's t-shirt ca n't say : hi !"),
    ("A dog. It runs.", "a dog . it runs ."),
    ("Mr. Smith's dog (brown) runs... fast!", "mr. smith 's dog ( brown ) runs ... fast !"),
    ('he said "hi" to them.', "he said `` hi '' to them ."),
    ("The U.S. flag. a man waves it.", "the u.s. flag . a man waves it ."),
    ("she's gonna wanna go", "she 's gon na wan na go"),
    ("No. 5. the dog", "no . 5. the dog"),
    ("He is 6. 7 men stand", "he is 6 . 7 men stand"),
    ("version 2.5. a cat", "version 2.5. a cat"),
    ("dogs' toys", "dogs ' toys"),
    ("'tis a dog", "' tis a dog"),
    ("a man, woman & child; 50% off $3.00", "a man , woman & child ; 50 % off $ 3.00"),
    ("tv's 'on' -- yes", "tv 's ' on ' -- yes"),
    ("what?! no way. ok", "what ? ! no way . ok"),
    ("it's 5 p.m. and dark", "it 's 5 p.m. and dark"),
    ("A man in a T-shirt.He runs.", "a man in a t-shirt.he runs ."),
    ("(A dog.) The cat.", "( a dog . ) the cat ."),
    ("a sign says 8:25.) The cat.", "a sign says 8:25 . ) the cat ."),
    ("a dog . the cat .", "a dog . the cat ."),
    ("the cat.'s toy", "the cat . 's toy"),
    ("the cat.(a dog)", "the cat . ( a dog )"),
    ("a b c. the d", "a b c. the d"),
    ("He\u2019s \u201chere\u201d", "he \u2019 s \u201c here \u201d"),
    ("two-piece suit; red,white and blue", "two-piece suit ; red , white and blue"),
    ("10,000 people at 5:30pm", "10,000 people at 5:30pm"),
    ("cats/dogs", "cats/dogs"),
    ("5' tall man and a 12\" pizza", "5 ' tall man and a 12 '' pizza"),
    ("he cannot", "he can not"),
    ("<unk> [x] {y}", "< unk > [ x ] { y }"),
    ("a picture of a dog.  a cat.\n a bird", "a picture of a dog . a cat . a bird"),
    ("!!!", "! ! !"),
    ("...", "..."),
    (" . ", "."),
    ("", ""),
]


@pytest.mark.parametrize(("text", "words"), TABLE)
def test_words_of_a_text(text: str, words: str) -> None:
    assert treebank_words(text) == words.split()


def test_nltk_gives_the_same() -> None:
    nltk = pytest.importorskip("nltk", reason="nltk is not installed; the table above holds what it gave")
    try:
        nltk.word_tokenize("a dog.")
    except LookupError:
        pytest.skip("nltk's model punkt_tab is not there")
    joints = [
        ". ",
        "! ",
        "... ",
        ", ",
        ".) ",
        "'s ",
        " mr. ",
        " 5. ",
        " a. ",
        "; ",
        " -- ",
        " & ",
        ".  ",
        " n't ",
        '." ',
    ]
    generator = random.Random(0)
    for text, _ in TABLE:
        mixed = text + generator.choice(joints) + generator.choice(TABLE)[0]
        for each in (text, mixed):
            assert treebank_words(each) == nltk.word_tokenize(each.lower()), each


@given(st.text())
def test_any_text_becomes_words_without_spaces_and_none_is_a_special_one(text: str) -> None:
    words = treebank_words(text)
    assert all(word and not any(character.isspace() for character in word) for word in words)
    assert not set(words) & {"<pad>", "<start>", "<end>", "<unk>"}


def test_a_vocabulary_cuts_texts_as_its_own_words_were_cut(tmp_path) -> None:
    captions = ["A man's t-shirt.", "It's red!"]
    vocabulary = Vocabulary.build(map(treebank_words, captions), tokenizer="treebank")
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary and loaded.tokenizer == "treebank"
    assert loaded.decode(loaded.encode(loaded.tokenize(captions[0]))) == ["a", "man", "'s", "t-shirt", "."]
    assert loaded != Vocabulary(loaded.words)
    with pytest.raises(ValueError, match=r"tokenizer: 'spacy' is not one of unicode, treebank"):
        Vocabulary(loaded.words, "spacy")


def test_every_tokenizer_has_a_name_in_the_params() -> None:
    from stages.errors import InputError
    from stages.params.captions import CaptionsParams

    for name in TOKENIZERS:
        assert CaptionsParams.from_dict({"tokenizer": name}).tokenizer == name
    with pytest.raises(InputError, match=f"is not one of {', '.join(TOKENIZERS)}"):
        CaptionsParams.from_dict({"tokenizer": "spacy"})
