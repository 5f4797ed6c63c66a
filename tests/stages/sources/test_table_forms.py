"""The source `table`: the forms and names that data sets of others have."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.sources import table
from stages.sources.base import Source
from stages.sources.table_files import read_rows


def read(root: Path, file: str) -> Source:
    params = DatasetParams.from_dict({"source": "table", "root": str(root), "table": {"file": file}})
    return table.read_source(params, root / "unused")


def texts(source: Source) -> list[tuple[str, str]]:
    return [(caption.image_id, caption.text) for caption in source.captions]


def write_lines(file: Path, records: list[Any]) -> None:
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    file.write_text("\n".join(lines), encoding="utf-8-sig")


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)])
def test_a_parquet_may_have_a_list_of_captions_for_each_image(tmp_path: Path, kind: pa.DataType) -> None:
    captions = pa.array([["a dog", "it runs"], ["a cat", "a cat"]], kind)
    pq.write_table(pa.table({"filename": ["1.jpg", "2.jpg"], "captions": captions, "split": ["train", "val"]}),
                   tmp_path / "t.parquet")  # fmt: skip
    source = read(tmp_path, "t.parquet")
    assert texts(source) == [("1", "a dog"), ("1", "it runs"), ("2", "a cat"), ("2", "a cat")]
    assert [image.split for image in source.images] == ["train", "val"]
    assert source.captions[2].where.endswith("row 2")


def test_what_is_no_caption_in_a_list_is_set_aside_alone(tmp_path: Path) -> None:
    texts_of = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a dog", b"\xff\xfe", b"it runs"]).buffers())
    lists = pa.ListArray.from_arrays(pa.array([0, 3, None, 3, 3]), texts_of)
    pq.write_table(pa.table({"image": ["1", "2", "3", "4"], "caption": lists}), tmp_path / "t.parquet")
    source = read(tmp_path, "t.parquet")
    assert texts(source) == [("1", "a dog"), ("1", "it runs")]
    held = [(rejected.where[-5:], rejected.reason.split(";")[0]) for rejected in source.rejected]
    assert held == [
        ("row 1", r"column 'caption' holds b'\xff\xfe'"),
        *((f"row {row}", "column 'caption' holds None") for row in (2, 3, 4)),
    ]


def test_returns_end_the_lines_of_a_token_file_but_no_caption(tmp_path: Path) -> None:
    (tmp_path / "old.token").write_bytes(b"1.jpg#0\tA dog\rruns .\r2.jpg#0\tA cat .\r3.jpg#0\tA cow .\n4.jpg#0\tFour .")
    source = read(tmp_path, "old.token")
    assert texts(source) == [("1", "A dog\rruns ."), ("2", "A cat ."), ("3", "A cow ."), ("4", "Four .")]
    assert not source.rejected


@pytest.mark.parametrize("caption", [[[["a"]]], [[{"raw": "a"}]], [[b"a"]]])
def test_lists_of_something_else_are_refused(tmp_path: Path, caption: list[Any]) -> None:
    pq.write_table(pa.table({"image": ["1"], "caption": pa.array(caption)}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: column 'caption' holds list<.*; expected texts"):
        read(tmp_path, "t.parquet")


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "results_20130124.token"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_token_files_of_flickr_are_read(tmp_path: Path, name: str, end: str) -> None:
    lines = [
        '1.jpg#0\t"A dog , 3 # 4 , runs .',
        "2_b#c.jpg#1\tA cat\tor two .",
        "3.jpg.1#0\tA cow .",
        "",
        "4.jpg#x\tNo number .",
        "4.jpg A caption without a tab .",
        "1.jpg#1\t",
    ]
    (tmp_path / name).write_bytes(end.join(lines).encode())
    source = read(tmp_path, name)
    assert texts(source) == [("1", '"A dog , 3 # 4 , runs .'), ("2_b#c", "A cat\tor two ."), ("3.jpg", "A cow .")]
    file, expected = str(tmp_path / name), "expected image#number, a tab and a caption"
    assert [(rejected.where, rejected.reason) for rejected in source.rejected] == [
        (file, f"holds '4.jpg#x\\tNo number .' at line 5; {expected}"),
        (file, f"holds '4.jpg A caption without a tab .' at line 6; {expected}"),
        (f"{file}: row 7", "column 'caption' holds ''; expected a text"),
    ]


def test_json_lines_are_read(tmp_path: Path) -> None:
    records = [
        {"file_name": "1.jpg", "text": "a dog\u2028runs", "split": "train", "width": 3},
        {"split": "validation", "text": ["a cat", 7, "it sleeps"], "file_name": "2.jpg"},
        "",
        "{'file_name': 3}",
        "[1]",
        '"a text"',
        {"file_name": "4.jpg", "split": "test"},
        {"file_name": {"path": "5.jpg"}, "text": "a cow", "split": "test"},
        '{"file_name": "6.jpg", "text": "a cow", "split": "\\ud83d"}',
    ]
    write_lines(tmp_path / "metadata.jsonl", records)
    source = read(tmp_path, "metadata.jsonl")
    assert texts(source) == [("1", "a dog\u2028runs"), ("2", "a cat"), ("2", "it sleeps")]
    assert [image.split for image in source.images] == ["train", "val"]
    name = tmp_path / "metadata.jsonl"
    assert [str(rejected).split(";")[0] for rejected in source.rejected] == [
        f"{name}: row 2: column 'caption' holds 7",
        f"{name}: is not JSON at line 4: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        f"{name}: holds [1] at line 5",
        f"{name}: holds 'a text' at line 6",
        f"{name}: row 7: column 'caption' holds None",
        f"{name}: row 8: column 'image' holds {{'path': '5.jpg'}}",
        f"{name}: row 9: column 'split' holds '\\ud83d'",
    ]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "column 'image' is there 0 times; expected the columns"),
        ([{"image": "1.jpg"}], "column 'caption' is there 0 times; expected the columns"),
        (["[]"], r"holds \[\] at line 1; expected a JSON object in each line"),
        (['[{"image": "1.jpg", "caption": "a dog"}]'], "at line 1; expected a JSON object in each line"),
        (["{", '"image": "1.jpg", "caption": "a dog"', "}"], "not JSON at line 1: .*; expected a JSON object in each"),
    ],
)
def test_json_lines_without_the_columns_are_refused(tmp_path: Path, records: list[Any], said: str) -> None:
    write_lines(tmp_path / "t.jsonl", records)
    with pytest.raises(InputError, match=rf"t\.jsonl: .*{said}"):
        read(tmp_path, "t.jsonl")


@pytest.mark.parametrize("header", ["file_name,text", "filepath\ttitle", "filename;Captions", "image,text"])
def test_the_names_that_others_give_the_columns(tmp_path: Path, header: str) -> None:
    delimiter = next(sign for sign in ",;\t" if sign in header)
    (tmp_path / "t.csv").write_text(f"{header}\n1.jpg{delimiter}a dog\n", encoding="utf-8")
    assert texts(read(tmp_path, "t.csv")) == [("1", "a dog")]


@pytest.mark.parametrize(
    "header", ["image_name,comment,title", "image,comment,text", "image_name,caption,filepath", "Image,Caption,Title"]
)
def test_names_that_were_read_before_go_first(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n1.jpg,a dog,other\n", encoding="utf-8")
    assert texts(read(tmp_path, "t.csv")) == [("1", "a dog")]


def test_two_columns_that_may_be_meant_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file_name,filepath,caption\na.jpg,b/a.jpg,a dog\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"column 'image' is there 2 times.*found file_name, filepath, caption"):
        read(tmp_path, "t.csv")


@pytest.mark.parametrize(
    "written", ["['a dog', \"it's here\"]", '["a dog", "it runs"]', "['a dog' 'it runs']", ' ["a dog"] ']
)
def test_a_list_that_a_csv_holds_as_text_is_no_caption(tmp_path: Path, written: str) -> None:
    """As pandas writes a column of lists: all captions of a picture would become one."""
    cell = '"' + written.replace('"', '""') + '"'
    (tmp_path / "t.csv").write_text(f'image,caption\n1.jpg,{cell}\n2.jpg,[a cat]\n3.jpg,"""Hi"" says [one]"\n')
    source = read(tmp_path, "t.csv")
    assert texts(source) == [("2", "[a cat]"), ("3", '"Hi" says [one]')]
    (rejected,) = source.rejected
    assert "row 1: column 'caption' holds a list as text, " in str(rejected)
    assert str(rejected).endswith("expected one caption in each row")


def test_a_group_that_is_not_a_number_is_none(tmp_path: Path) -> None:
    """As NumPy has it where a number is missing."""
    columns = {"image": ["1.jpg", "2.jpg"], "caption": ["a", "b"], "group": pa.array([3.0, float("nan")])}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert [image.group for image in read(tmp_path, "t.parquet").images] == ["3", ""]


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ('image,caption,split\n1.jpg,"hello,train\n9.jpg,x,train\n8.jpg,a dog",train\n', "lines 2 to 4"),
        ('image,caption,split\n1.jpg,"hello,train\n8.jpg,a dog",train\n', "lines 2 to 3"),
        ('caption;image\n"hello;1.jpg\na dog";8.jpg\n', "lines 2 to 3"),
        ('image,caption\n1.jpg,"hello\n\ndogs, cats"\n', ""),
        ('caption,image\n"hello, you\ndogs",1.jpg\n', ""),
    ],
)
def test_rows_that_a_quote_swallows_are_set_aside_with_their_lines(tmp_path: Path, rows: str, lines: str) -> None:
    (tmp_path / "captions.csv").write_text(rows)
    (row,) = read_rows(tmp_path / "captions.csv")[1]
    assert isinstance(row, str) == bool(lines)
    assert not lines or f"is not a CSV at {lines} (row 1): a cell holds further rows; expected" in row
