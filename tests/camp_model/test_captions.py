import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.captions import SCHEMA, CaptionTable, write_captions
from camp_model.vocabulary import UNK


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "val.parquet"
    write_captions(path, [7, 3, 9], ["b", "a", "b"], ["A red dog", "Dog", "Two"], [[4, 5, 6], [6], [7, 8]])
    return path


def test_what_is_written_is_read(path):
    table = CaptionTable.load(path)
    assert len(table) == 3
    assert table.caption_ids.tolist() == [7, 3, 9]
    assert table.image_ids == ["b", "a", "b"]
    assert table.texts == ["A red dog", "Dog", "Two"]
    assert table.lengths.tolist() == [3, 1, 2]
    assert table.largest_id == 8
    assert list(path.parent.iterdir()) == [path]


def test_a_batch_is_padded_to_its_longest_caption(path):
    tokens, lengths = CaptionTable.load(path).batch([2, 0])
    assert tokens.dtype == lengths.dtype == torch.int64
    assert tokens.tolist() == [[7, 8, 0], [4, 5, 6]] and lengths.tolist() == [2, 3]
    tokens, lengths = CaptionTable.load(path).batch([1])
    assert tokens.tolist() == [[6]] and lengths.tolist() == [1]


def test_captions_of_the_same_tokens_have_the_same_text_index(path):
    assert CaptionTable.load(path).text_index.tolist() == [0, 1, 2]
    write_captions(path, [1, 2, 3, 4], list("abcd"), ["x"] * 4, [[4, 5], [4], [4, 5], [5, 4]])
    assert CaptionTable.load(path).text_index.tolist() == [0, 1, 0, 2]


def test_captions_say_the_same_only_where_unknown_and_cut_words_are_the_same_too(path):
    """Else a word outside the vocabulary would make every caption right for every image."""
    texts = ["a kimono", "A kimono!", "a tuxedo", "a red car", "A red car.", "red car, cut a", "red car, cut b",
             "\U0001f600", "\U0001f4a9"]  # fmt: skip
    tokens = [[4, 3], [4, 3], [4, 3], [4, 5, 6], [4, 5, 6], [5, 6, 7, 4], [5, 6, 7, 4], [3], [3]]
    write_captions(path, list(range(9)), list("abcdefghi"), texts, tokens)
    table = CaptionTable.load(path)
    assert table.text_index.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert table.wording_index.tolist() == [0, 0, 1, 2, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "texts",
    [
        ["दिन", "दान", "दीन", "दून"],  # Hindi: vowels are marks on one pair of consonants
        ["มา", "มี", "มู", "เม"],  # Thai
        ["كَتَبَ", "كُتِبَ"],  # pointed Arabic
    ],
)
def test_unknown_words_that_differ_in_their_vowel_signs_are_others(tmp_path, texts):
    path = tmp_path / "val.parquet"
    write_captions(path, list(range(len(texts))), texts, texts, [[UNK]] * len(texts))
    assert CaptionTable.load(path).wording_index.tolist() == list(range(len(texts)))


def test_an_unknown_word_is_the_same_whatever_its_apostrophe_and_the_emoji_beside_it(tmp_path):
    path = tmp_path / "val.parquet"
    texts = [
        "a j'adore cat",
        "A j\u2019adore cat.",
        "a j\u02bcadore cat",
        "a j'adore cat \u2764",
        "a j'adore cat \u2764\ufe0f",
    ]
    write_captions(path, list(range(5)), list("abcde"), texts, [[4, UNK, 5]] * 5)
    assert CaptionTable.load(path).wording_index.tolist() == [0] * 5


def test_image_index_follows_the_order_given(path):
    assert CaptionTable.load(path).image_index(["a", "c", "b"]).tolist() == [2, 0, 2]


def test_a_caption_of_an_image_without_regions_is_named(path):
    with pytest.raises(ValueError, match=r"val\.parquet: image_id: caption 3 names image 'a'"):
        CaptionTable.load(path).image_index(["b"])


def test_a_caption_without_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="caption_id 2 has no tokens"):
        write_captions(tmp_path / "x.parquet", [1, 2], ["a", "a"], ["x", ""], [[4], []])
    assert not list(tmp_path.iterdir())


def test_a_slice_of_many_row_groups_reads_the_same(path, tmp_path):
    chunked = tmp_path / "chunked.parquet"
    pq.write_table(pq.read_table(path), chunked, row_group_size=1)
    assert CaptionTable.load(chunked).batch([0, 1, 2])[0].tolist() == [[4, 5, 6], [6, 0, 0], [7, 8, 0]]


def corrupt(path):
    path.write_bytes(path.read_bytes()[:-20])


def truncate(path):
    path.write_bytes(b"")


def forget_the_format(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)


def another_type(path):
    table = pq.read_table(path)
    table = table.set_column(4, "length", pa.array([3, 1, 2], pa.int64())).replace_schema_metadata(SCHEMA.metadata)
    pq.write_table(table, path)


def wrong_length(path):
    table = pq.read_table(path)
    table = table.set_column(4, SCHEMA.field(4), pa.array([3, 2, 2], pa.int32()))
    pq.write_table(table.replace_schema_metadata(SCHEMA.metadata), path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (corrupt, "cannot be read as Parquet"),
        (truncate, "cannot be read as Parquet"),
        (forget_the_format, r"camp\.format"),
        (another_type, "length: is int64; expected int32"),
        (wrong_length, "length: row 1"),
    ],
)
def test_a_damaged_file_is_named(path, damage, said):
    damage(path)
    with pytest.raises(ValueError, match=said) as error:
        CaptionTable.load(path)
    assert str(path) in str(error.value)
