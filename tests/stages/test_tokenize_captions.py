import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camp_model.captions import CaptionTable
from camp_model.vocabulary import END, START, UNK, Vocabulary
from stages.errors import InputError
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
    assert table.lengths.tolist() == [4, 4, 4]


def test_captions_of_rejected_images_are_left_out(stage, capsys):
    out = stage(rejected=["i4", "i1"])
    assert load(out, "test")[0].image_ids == ["i5"]
    assert "runs" not in Vocabulary.load(out / "vocabulary.json")
    assert "3 captions of 2 rejected images" in capsys.readouterr().out


def test_a_split_emptied_by_rejection_is_an_error_and_writes_nothing(stage, tmp_path):
    with pytest.raises(InputError, match=r"captions\.parquet: split: no caption is in val once the rejected"):
        stage(rejected=["i3"])
    assert not (tmp_path / "out").exists()


def test_a_scan_vocabulary_is_used_as_given(stage, tmp_path):
    words = ["<pad>", "<start>", "<end>", "<unk>", "zebra", "dog"]
    path = tmp_path / "scan.json"
    path.write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(words)}}))
    out = stage(vocabulary=str(path))
    assert Vocabulary.load(out / "vocabulary.json").words == words
    assert CaptionTable.load(out / "val.parquet").batch([0])[0].tolist() == [[UNK, UNK, 4]]


def test_wrong_input_names_the_file_and_the_key(stage, tmp_path):
    with pytest.raises(InputError, match=r"captions\.vocabulary: .*missing\.json: cannot be read"):
        stage(vocabulary=str(tmp_path / "missing.json"))
    with pytest.raises(InputError, match=r"captions\.min_count: no word"):
        stage(min_count=50)
    (tmp_path / "captions.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"captions\.parquet: cannot be read as Parquet"):
        tokenize_captions(CaptionsParams(), tmp_path, tmp_path / "rejected.parquet", tmp_path / "x")
    pq.write_table(pa.table({"caption_id": [1]}), tmp_path / "captions.parquet")
    with pytest.raises(InputError, match=r"captions\.parquet: image_id: no such column"):
        tokenize_captions(CaptionsParams(), tmp_path, tmp_path / "rejected.parquet", tmp_path / "x")


def test_two_runs_write_the_same_bytes(stage):
    first = {path.name: path.read_bytes() for path in stage().iterdir()}
    assert {path.name: path.read_bytes() for path in stage().iterdir()} == first
    assert set(first) == {
        "train.parquet", "val.parquet", "test.parquet", "vocabulary.json", "lexicon.json", "foils_val.parquet",
        "foils_test.parquet",
    }  # fmt: skip
