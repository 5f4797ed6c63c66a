import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camp_model.vocabulary import END, PAD, START, UNK, Vocabulary, tokenize


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The dog's 2.5 m red-and-white T-shirt!", ["the", "dog's", "2.5", "m", "red", "and", "white", "t", "shirt"]),
        ("Don\u2019t DON'T", ["don't", "don't"]),
        ("caf\u00e9 cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
        ("co\u00adoperate x\u200by", ["cooperate", "x", "y"]),
        ("Un chien\u202f! 10\u202f000 \u00ab\u202fchats\u202f\u00bb", ["un", "chien", "10", "000", "chats"]),
        ("红色的 テスト", ["红", "色", "的", "テスト"]),
        ("नमस्ते, مرحبا", ["नमस्ते", "مرحبا"]),
        ("की's है.यह x\u0303's 1\u0332,2 नी.", ["की's", "है.यह", "x\u0303's", "1\u0332,2", "नी"]),
        ("👍🏽 ok :) <unk>", ["ok", "unk"]),
        ("3,000 people", ["3,000", "people"]),
        ("", []),
        ("!!! … 🎈", []),
    ],
)
def test_words_of_a_text(text, words):
    assert tokenize(text) == words


@given(st.text() | st.text("aक\u0301ी\u200c'.,:1 "))
def test_tokenizing_again_changes_nothing(text):
    words = tokenize(text)
    assert tokenize(" ".join(words)) == words


@given(st.text())
def test_words_are_lower_case_composed_and_never_special(text):
    for word in tokenize(text):
        assert word == unicodedata.normalize("NFC", word) and not any(c.isspace() for c in word)
        assert word == unicodedata.normalize("NFC", word.lower())
        assert word and not set(word) & set("<>!?")


@given(st.text(alphabet=st.characters(categories=["L", "N"]), min_size=1, max_size=20), st.sampled_from(" ,.!?-\n\t"))
def test_no_letter_is_lost(text, separator):
    spelled = "".join("".join(tokenize(separator + text + separator)).split())
    assert spelled == "".join(tokenize(text))
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    kept = [c for c in composed if unicodedata.category(c)[0] in "LN"]
    assert [c for c in spelled if unicodedata.category(c)[0] in "LN"] == kept


def test_build_orders_by_count_then_word_and_drops_rare_ones():
    captions = [["a", "red", "dog"], ["a", "dog"], ["a", "cat"]]
    assert Vocabulary.build(captions).words[4:] == ["a", "dog", "cat", "red"]
    assert Vocabulary.build(captions, min_count=2).words[4:] == ["a", "dog"]
    assert Vocabulary.build(captions).words[:4] == ["<pad>", "<start>", "<end>", "<unk>"]
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)


@settings(deadline=None)  # a file is synchronised to the disk each time
@given(st.lists(st.lists(st.text(min_size=1).map(lambda word: "w" + word), max_size=5), max_size=5))
def test_decode_inverts_encode_and_saving_keeps_everything(tmp_path_factory, captions):
    vocabulary = Vocabulary.build(captions)
    for words in captions:
        assert vocabulary.decode(vocabulary.encode(words)) == words
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert Vocabulary.load(path).sha256 == vocabulary.sha256


@pytest.mark.parametrize("tokenizer", ["unicode", "treebank"])
@pytest.mark.parametrize("space", ["\n", "\t ", "\u00a0", "\u2009", "\u202f", "\u3000"])
def test_a_sentence_has_the_words_of_a_caption_whatever_its_spaces_are(tokenizer, space):
    vocabulary = Vocabulary.build([], tokenizer=tokenizer)
    for text in ('he says "stop" !', "10 000 dogs \u00ab run \u00bb", "the dogs ' tails"):
        assert vocabulary.tokenize(text.replace(" ", space)) == vocabulary.tokenize(text)


def test_unknown_words_become_unk():
    assert Vocabulary.build([["dog"]]).encode(["dog", "zebra"]) == [4, UNK]


def test_sha256_depends_on_the_order():
    specials = ["<pad>", "<start>", "<end>", "<unk>"]
    assert Vocabulary([*specials, "a", "b"]).sha256 != Vocabulary([*specials, "b", "a"]).sha256


def scan(words, **changes):
    content = {
        "word2idx": {word: i for i, word in enumerate(words)},
        "idx2word": {str(i): word for i, word in enumerate(words)},
        "idx": len(words),
    }
    return {**content, **changes}


WORDS = ["<pad>", "<start>", "<end>", "<unk>", "dog", "."]


def test_a_scan_vocabulary_is_read_as_it_is(tmp_path):
    path = tmp_path / "f30k_precomp_vocab.json"
    path.write_text(json.dumps(scan(WORDS)))
    assert Vocabulary.load(path).words == WORDS
    assert Vocabulary.load(path).tokenizer == "treebank"  # "." is no word of ours


def test_a_file_of_before_tokenizers_were_recorded_is_ours(tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(scan([*WORDS[:5], "don't", "2.5"])))
    assert Vocabulary.load(path).tokenizer == "unicode"
    assert Vocabulary.load(path, "treebank").tokenizer == "treebank"
    path.write_text(json.dumps(scan(WORDS, tokenizer="unicode")))
    assert Vocabulary.load(path, "treebank").tokenizer == "unicode"  # what the file says goes first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "word2idx: is missing"),
        (scan(WORDS[1:]), "expected <pad>, <start>, <end>, <unk>"),
        (scan(WORDS, word2idx={**scan(WORDS)["word2idx"], "cat": 9}), "the ids are not 0, 1, 2"),
        (scan(WORDS, word2idx={**scan(WORDS)["word2idx"], "cat": [4]}), "the ids are not 0, 1, 2"),
        (scan(WORDS, idx2word={"0": "dog"}), "idx2word: does not match"),
        (scan([*WORDS, "ab\ud83d"]), r"word2idx: 'ab.ud83d' holds half a character"),
        (scan(WORDS, tokenizer=["spacy"]), r"tokenizer: \['spacy'\] is not one of unicode, treebank"),
    ],
)
def test_a_vocabulary_in_another_form_is_refused(tmp_path, content, said):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said) as error:
        Vocabulary.load(path)
    assert str(path) in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    path = tmp_path / "vocabulary.json"
    with pytest.raises(ValueError, match=r"vocabulary\.json: cannot be read"):
        Vocabulary.load(path)
    path.write_text('{"word2idx": {')
    with pytest.raises(ValueError, match=r"vocabulary\.json: is not JSON"):
        Vocabulary.load(path)
