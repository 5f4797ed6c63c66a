import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camp_model.captions import CaptionTable
from camp_model.vocabulary import END, START, UNK, Vocabulary
from stages.errors import InputError
from stages.foils.table import read_foils
from stages.foils.words import load_words
from stages.params.captions import CaptionsParams
from stages.tokenize_captions import tokenize_captions

CAPTIONS = [
    (1, "i1", "train", "A red dog."),
    (2, "i1", "train", "The dog runs"),
    (3, "i2", "train", "A cat, a DOG!"),
    (4, "i3", "val", "A red zebra"),
    (5, "i4", "test", "!!!"),
    (6, "i5", "test", "a dog"),
]


@pytest.fixture
def stage(tmp_path):
    """Runs the stage on given captions and rejected images; returns its output folder."""

    def run(captions=CAPTIONS, rejected=(), **params):
        columns = dict(zip(("caption_id", "image_id", "split", "text"), zip(*captions, strict=True), strict=True))
        pq.write_table(pa.table(columns), tmp_path / "captions.parquet")
        gone = pa.table({"image_id": pa.array(list(rejected), pa.string())})
        pq.write_table(gone, tmp_path / "rejected.parquet")
        out = tmp_path / "out"
        params = CaptionsParams(**({"lexicon": "photographs"} | params))
        tokenize_captions(params, tmp_path, tmp_path / "rejected.parquet", out)
        return out

    return run


def load(out, split):
    vocabulary = Vocabulary.load(out / "vocabulary.json")
    table = CaptionTable.load(out / f"{split}.parquet")
    tokens, lengths = table.batch(range(len(table)))
    words = [vocabulary.decode(row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    return table, words


def test_the_vocabulary_comes_from_the_train_split_alone(stage):
    out = stage()
    vocabulary = Vocabulary.load(out / "vocabulary.json")
    assert set(vocabulary.words[4:]) == {"a", "red", "dog", "the", "runs", "cat"}
    CaptionTable.load(out / "val.parquet").check_vocabulary(vocabulary)
    with pytest.raises(ValueError, match=r"val\.parquet: tokens: are ids of words of another vocabulary"):
        CaptionTable.load(out / "val.parquet").check_vocabulary(Vocabulary([*vocabulary.words[:-1], "bird"]))
    assert load(out, "val")[1] == [["a", "red", "<unk>"]]
    table, words = load(out, "train")
    assert words == [["a", "red", "dog"], ["the", "dog", "runs"], ["a", "cat", "a", "dog"]]
    assert table.caption_ids.tolist() == [1, 2, 3] and table.image_ids == ["i1", "i1", "i2"]
    assert table.texts[2] == "A cat, a DOG!"


def test_a_caption_without_words_is_one_unknown_word(stage, capsys):
    assert load(stage(), "test")[1] == [["<unk>"], ["a", "dog"]]
    assert "1 without a word" in capsys.readouterr().out


def test_rare_words_leave_by_min_count(stage):
    out = stage(min_count=2)
    assert Vocabulary.load(out / "vocabulary.json").words[4:] == ["a", "dog"]


def test_long_captions_are_cut_and_marked(stage):
    out = stage(max_words=2, start_end=True)
    assert load(out, "train")[1][0] == ["<start>", "a", "red", "<end>"]
    table = CaptionTable.load(out / "train.parquet")
    assert table.batch([0])[0][0, [0, -1]].tolist() == [START, END]
    assert table.lengths.tolist() == [4, 4, 4] and table.max_words == 2


def test_captions_of_rejected_images_are_left_out(stage, capsys):
    out = stage(rejected=["i4", "i1"])
    assert load(out, "test")[0].image_ids == ["i5"]
    assert "runs" not in Vocabulary.load(out / "vocabulary.json")
    assert "3 captions of 2 rejected images" in capsys.readouterr().out


def test_a_split_emptied_by_rejection_is_an_error_and_writes_nothing(stage, tmp_path):
    with pytest.raises(InputError, match=r"captions\.parquet: split: no caption is in val once the rejected"):
        stage(rejected=["i3"])
    assert not (tmp_path / "out").exists()


def test_a_scan_vocabulary_is_used_as_given(stage, tmp_path, capsys):
    words = ["<pad>", "<start>", "<end>", "<unk>", "zebra", "dog"]
    path = tmp_path / "scan.json"
    path.write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(words)}}))
    out = stage(vocabulary=str(path))
    assert Vocabulary.load(out / "vocabulary.json").words == words
    assert CaptionTable.load(out / "val.parquet").batch([0])[0].tolist() == [[UNK, UNK, 4]]
    assert "captions.min_count" not in capsys.readouterr().out
    assert Vocabulary.load(stage(vocabulary=str(path), min_count=9) / "vocabulary.json").words == words
    assert f"captions.min_count: 9 has no effect: the words are those of {path}" in capsys.readouterr().out


def test_wrong_input_names_the_file_and_the_key(stage, tmp_path):
    with pytest.raises(InputError, match=r"captions\.vocabulary: .*missing\.json: cannot be read"):
        stage(vocabulary=str(tmp_path / "missing.json"))
    with pytest.raises(InputError, match=r"captions\.min_count: no word"):
        stage(min_count=50)
    Vocabulary.build([["Dog", "Hund"]]).save(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"captions\.vocabulary: .*other\.json: holds no word of the train split"):
        stage(vocabulary=str(tmp_path / "other.json"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "captions.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"captions\.parquet: cannot be read as Parquet"):
        tokenize_captions(CaptionsParams(), tmp_path, tmp_path / "rejected.parquet", tmp_path / "x")
    pq.write_table(pa.table({"caption_id": [1]}), tmp_path / "captions.parquet")
    with pytest.raises(InputError, match=r"captions\.parquet: image_id: no such column"):
        tokenize_captions(CaptionsParams(), tmp_path, tmp_path / "rejected.parquet", tmp_path / "x")


def test_a_lexicon_in_another_language_than_the_captions_is_said(stage, tmp_path, capsys):
    stage()
    assert "captions.lexicon" not in capsys.readouterr().out
    (tmp_path / "words.json").write_text(json.dumps({"object": {"dog": ["Hund"], "cat": ["Katze"]}}))
    stage(lexicon=str(tmp_path / "words.json"))
    assert "words.json: none of its words is in the vocabulary, so there are no foils" in capsys.readouterr().out


def test_two_runs_write_the_same_bytes(stage):
    first = {path.name: path.read_bytes() for path in stage().iterdir()}
    assert {path.name: path.read_bytes() for path in stage().iterdir()} == first
    assert set(first) == {
        "train.parquet", "val.parquet", "test.parquet", "vocabulary.json", "lexicon.json", "foils_val.parquet",
        "foils_test.parquet",
    }  # fmt: skip


def test_treebank_words_are_those_of_the_captions_the_foils_and_the_file(stage, tmp_path, capsys):
    captions = [(1, "i1", "train", "The dog's t-shirt can't fit."), (2, "i2", "train", "A cat sits"),
                (3, "i3", "val", "The cat isn't here."), (4, "i4", "test", "A dog, one!")]  # fmt: skip
    (tmp_path / "words.json").write_text(json.dumps({"object": {"dog": ["dog"], "cat": ["cat"], "shirt": ["t-shirt"]}}))
    out = stage(captions, tokenizer="treebank", lexicon=str(tmp_path / "words.json"))
    vocabulary = Vocabulary.load(out / "vocabulary.json")
    assert vocabulary.tokenizer == "treebank"
    assert load(out, "train")[1][0] == ["the", "dog", "'s", "t-shirt", "ca", "n't", "fit", "."]
    assert load(out, "val")[1] == [["the", "cat", "<unk>", "n't", "<unk>", "."]]
    foils = read_foils(out / "foils_test.parquet")
    assert foils.captions.texts[0] in ("A cat, one!", "A t-shirt, one!")
    assert load_words(out / "lexicon.json")["object"]["shirt"] == ["t-shirt"]
    # A SCAN vocabulary says its own; a contradiction is an error.
    again = stage(captions, vocabulary=str(out / "vocabulary.json"))
    assert f"captions.tokenizer: treebank, which the words of {out}/vocabulary.json come" in capsys.readouterr().out
    assert load(again, "train")[1][0] == ["the", "dog", "'s", "t-shirt", "ca", "n't", "fit", "."]
    (tmp_path / "copy.json").write_bytes((out / "vocabulary.json").read_bytes())
    with pytest.raises(InputError, match=r"captions\.tokenizer: unicode, but .*copy\.json was made with treebank"):
        stage(captions, vocabulary=str(tmp_path / "copy.json"), tokenizer="unicode")


def test_captions_that_are_those_of_another_picture_are_counted(stage, capsys):
    captions = [(1, "i1", "train", "Running shoe"), (2, "i2", "train", "running shoe!"), (3, "i2", "train", "a shoe"),
                (4, "i2", "train", "A shoe"), (5, "i3", "val", "running shoe"), (6, "i4", "test", "boot"),
                (7, "i5", "test", "sandal")]  # fmt: skip
    out = stage(captions)
    # Two captions of one picture may be equal, and those of other splits never meet. What the model does not know is
    # equal to it: boot and sandal are one unknown word.
    assert [CaptionTable.load(out / f"{split}.parquet").equal for split in ("train", "val", "test")] == [2, 0, 2]
    said = capsys.readouterr().out
    assert (
        "train: 2 captions have the same tokens as a caption of another image" in said and "val: 0 captions" not in said
    )
