"""The source `table`: what it reads, and what it says of wrong tables."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.sources import table
from stages.sources.base import Source, check_folder
from stages.sources.checks import check_rejected
from tests.stages.sources.conftest import GOOD


def read(root: Path, **options: Any) -> Source:
    params = DatasetParams.from_dict({"source": "table", "root": str(root), "table": options})
    source = table.read_source(params, root / "unused")
    for key, folder in source.folders.items():
        check_folder(folder, key)
    check_rejected(source, 0.0)  # as prepare_dataset does with dataset.max_rejected_share: 0
    return source


ROWS = [
    ("a/1.jpg", "A dog, running", "train"),
    ("a/1.jpg", "NA", "train"),
    ("b/1.jpg", 'He said "hi"', "val"),
    ("2.jpg", "null", "test"),
    ("2.jpg", "Ein Fußgänger", "test"),
]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(ROWS, columns=["image", "caption", "split"]).assign(extra=1)
    file = tmp_path / f"captions.{suffix}"
    frame.to_csv(file, index=False) if suffix == "csv" else frame.to_parquet(file)
    source = read(tmp_path, file=file.name)
    assert {image.image_id: image.split for image in source.images} == {
        "a/1.jpg": "train",
        "b/1.jpg": "val",
        "2": "test",
    }
    assert [image.path for image in source.images] == ["a/1.jpg", "b/1.jpg", "2.jpg"]
    assert [caption.text for caption in source.captions] == [caption for _, caption, _ in ROWS]


def test_table_with_byte_order_mark_and_other_column_order(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("split,image,caption\ntrain,1.jpg,Über\n", encoding="utf-8-sig")
    source = read(tmp_path, file="t.csv")
    assert (source.images[0].split, source.captions[0].text) == ("train", "Über")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"captions\.csv: is not a CSV"),
        ("\u200bimage,caption\n1.jpg,x\n", r"column 'image' is there 0 times; .*found '.u200bimage', caption"),
        ("image,split\n1.jpg,x\n", r"captions\.csv: column 'caption' is there 0 times; .*found image, split"),
        ("image,caption,split,split\n1.jpg,x,val,val\n", r"column 'split' is there 2 times"),
        ("image,caption,split\n1.jpg,a dog, running,train\n", r"captions\.csv: is not a CSV .*line 2"),
        ("image,caption,split\n1.jpg,x,val\n2.jpg,x\n", r"captions\.csv: row 2: column 'split' holds"),
        ("image,caption,split\n1.jpg,x,val\n2.jpg,  ,val\n", r"captions\.csv: row 2: column 'caption' holds '  '"),
        ("image,caption,split\n,x,val\n", r"row 1: column 'image' holds"),
        ("image,caption,split\n1.jpg,x,val\n1.jpg,y,train\n",
         r"row 2: image '1\.jpg' is in the split 'train' here and in 'val' at .*row 1"),
        ('image,caption,split\n1.jpg,"x,val\n', r"captions\.csv: is not a CSV"),
    ],
)  # fmt: skip
def test_table_wrong_csv(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "captions.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_table_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"captions\.csv: no such file; dataset\.table\.file"):
        read(tmp_path)
    with pytest.raises(
        InputError, match=r"captions\.xlsx: dataset\.table\.file must end in \.csv, \.tsv, \.txt, \.token, \.parquet"
    ):
        read(tmp_path, file="captions.xlsx")
    (tmp_path / "captions.csv").write_bytes(b"image,caption,split\n1.jpg,\xff\xfe,val\n")
    with pytest.raises(InputError, match=r"captions\.csv: is not a CSV in UTF-8"):
        read(tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption,split\n1.jpg,x,val\n")
    with pytest.raises(InputError, match=r"photos: no such folder; dataset\.table\.images"):
        read(tmp_path, images="photos")


def test_table_wrong_parquet(tmp_path: Path) -> None:
    file = tmp_path / "captions.parquet"
    frame = pd.DataFrame(ROWS, columns=["image", "caption", "split"])
    frame.to_parquet(file)
    whole = file.read_bytes()
    for corrupt in (b"", whole[: len(whole) // 2], b"PAR1" + bytes(200) + b"PAR1", whole[:4] + bytes(len(whole) - 4)):
        file.write_bytes(corrupt)
        with pytest.raises(InputError, match=r"captions\.parquet: is not a Parquet file"):
            read(tmp_path, file=file.name)
    frame.drop(columns="caption").to_parquet(file)
    with pytest.raises(InputError, match=r"captions\.parquet: column 'caption' is there 0 times"):
        read(tmp_path, file=file.name)
    frame.assign(caption=[None, *frame.caption[1:]]).to_parquet(file)
    with pytest.raises(InputError, match=r"captions\.parquet: row 1: column 'caption' holds None"):
        read(tmp_path, file=file.name)
    frame.assign(split=1).to_parquet(file)
    with pytest.raises(InputError, match=r"row 1: column 'split' holds 1; expected a text"):
        read(tmp_path, file=file.name)


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("indices", [None, pa.int8(), pa.int32()])  # a dictionary's, as pandas writes a categorical
def test_texts_of_a_parquet_that_are_not_utf8_cost_their_rows_alone(
    tmp_path: Path, indices: pa.DataType | None, encoded: bool
) -> None:
    captions = pa.array([b"a dog", "Stra\xdfe".encode("latin-1"), None]).view(pa.string())
    if indices is not None:
        captions = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], indices), captions[:2])
    columns = {"image": ["1.jpg", "2.jpg", "3.jpg"], "caption": captions, "split": ["train", "val", "test"]}
    written = pa.table(columns)
    pq.write_table(written, tmp_path / "t.parquet", use_dictionary=encoded)
    params = DatasetParams.from_dict({"source": "table", "root": str(tmp_path), "table": {"file": "t.parquet"}})
    source = table.read_source(params, tmp_path / "unused")
    assert [caption.text for caption in source.captions] == ["a dog"]
    assert [row.reason for row in source.rejected] == [
        r"column 'caption' holds b'Stra\xdfe'; expected a text",
        "column 'caption' holds None; expected a text",
    ]


@pytest.mark.parametrize("text", ["image,caption,split\n", "image,caption,split\r1.jpg,a dog,val\r"])
def test_a_table_without_rows_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "captions.csv").write_bytes(text.encode())
    with pytest.raises(InputError, match=r"captions\.csv: holds no rows; expected one for each caption"):
        read(tmp_path)


def test_a_row_with_a_comma_too_many_is_set_aside_alone(tmp_path: Path) -> None:
    lines = ["1.jpg,one,train", "4.jpg,red, and blue,train", '2.jpg,"two, quoted",val', "5.jpg,,train", "6.jpg,a,b,c,d"]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *lines]))
    source = table.read_source(DatasetParams.from_dict({"source": "table", "root": str(tmp_path)}), tmp_path)
    expected = ("is not a CSV at line 3 (row 2): 4 cells", "row 4: column 'caption'", "at line 6 (row 5): 5 cells")
    for row, said in zip(source.rejected, expected, strict=True):
        assert said in str(row)
    assert [caption.text for caption in source.captions] == ["one", "two, quoted"]


WRITERS: dict[str, Callable[..., None]] = {
    "t.parquet": pd.DataFrame.to_parquet,
    "t.csv": partial(pd.DataFrame.to_csv, index=False),
    "t.jsonl": partial(pd.DataFrame.to_json, orient="records", lines=True),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("numbers", [[7, 7, 7, 8, 9, 10], [7.0, 7.0, 7.0, 8.0, None, None]])
def test_groups_may_be_numbers(tmp_path: Path, numbers: list[float | None], name: str) -> None:
    frame = pd.DataFrame({"image": [f"{i}.jpg" for i in range(6)], "caption": ["x"] * 6, "group": numbers})
    WRITERS[name](frame, tmp_path / name)
    source = read(tmp_path, file=name)
    assert [image.group for image in source.images] == [str(int(n)) if n is not None else "" for n in numbers]


LONE_QUOTES = """image,caption,split
1.jpg,a cat,train
2.jpg,"cause it rains,train
3.jpg,a bird,train
4.jpg,"tis a boat,train
"""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (LONE_QUOTES, "lines 3 to 5"),
        ('image,caption,split\n1.jpg,"Hello" says the dog,train\n', "line 2"),
        ('image,caption,split\n1.jpg,a cat,train\n2.jpg,"tis a boat,train\n3.jpg,a bird,val\n', "lines 3 to 4"),
    ],
)
def test_no_lone_quote_swallows_rows(tmp_path: Path, text: str, lines: str) -> None:
    (tmp_path / "captions.csv").write_text(text)
    with pytest.raises(
        InputError, match=rf"captions\.csv: is not a CSV at {lines}: .* expected a cell that begins with"
    ):
        read(tmp_path)


def test_quotes_that_are_right_are_read(tmp_path: Path) -> None:
    rows = ['1.jpg,"""Hello"" says the dog",train', '2.jpg,he said "hi",train', '3.jpg,"two\nlines, one cell",val']
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    texts = [caption.text for caption in read(tmp_path).captions]
    assert texts == ['"Hello" says the dog', 'he said "hi"', "two\nlines, one cell"]


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolon"), ("\t", "tab"), ("|", "vertical bar")])
def test_semicolons_and_tabs_of_excel_are_read(tmp_path: Path, delimiter: str, name: str) -> None:
    rows = [("image", "caption", "split"), ("1.jpg", "red, and blue", "train"), ("2.jpg", f'"a{delimiter} b"', "val")]
    lines = [delimiter.join(row) for row in (*rows, ("3.jpg", f"c{delimiter} d", "test"))]
    (tmp_path / "captions.csv").write_bytes("\r\n".join([*lines, ""]).encode("utf-8-sig"))
    source = table.read_source(DatasetParams.from_dict({"source": "table", "root": str(tmp_path)}), tmp_path)
    assert [caption.text for caption in source.captions] == ["red, and blue", f"a{delimiter} b"]
    assert [image.split for image in source.images] == ["train", "val"]
    assert f"line 4 (row 3): 4 cells; expected 3, and double quotes around a text that holds a {name}" in str(
        source.rejected[0]
    )


def test_the_csv_of_flickr30k_is_read_as_it_goes_around(tmp_path: Path) -> None:
    """With a row that lacks a bar, as the real one does."""
    lines = ["image_name| comment_number| comment", '1.jpg| 0| Two "friends" , outside .', "1.jpg| 1   A dog runs ."]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    params = {"source": "table", "root": str(tmp_path), "table": {"file": "results.csv"}}
    source = table.read_source(DatasetParams.from_dict(params), tmp_path)
    assert [caption.text.strip() for caption in source.captions] == ['Two "friends" , outside .']
    assert [image.path for image in source.images] == ["1.jpg"]
    assert "row 2: column 'caption' holds ''" in str(source.rejected[0])


@pytest.mark.parametrize("header", ["Image,Caption,Comment", "Image,Caption,image_name"])
def test_a_column_that_is_also_called_so_is_another_where_the_name_is_there(tmp_path: Path, header: str) -> None:
    (tmp_path / "captions.csv").write_text(f"{header},split\n1.jpg,a dog,other,val\n")
    source = read(tmp_path)
    assert (source.images[0].path, source.captions[0].text) == ("1.jpg", "a dog")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "parquet"])
def test_usual_names_of_splits_and_none_at_all(tmp_path: Path, suffix: str) -> None:
    def write(splits: list[str | None]) -> str:
        rows = [(f"{number}.jpg", "a dog", split) for number, split in enumerate(splits)]
        frame, file = pd.DataFrame(rows, columns=["image", "caption", "split"]), tmp_path / f"captions.{suffix}"
        frame.to_parquet(file) if suffix == "parquet" else frame.to_csv(
            file, index=False, sep="\t" if suffix == "tsv" else ","
        )
        return file.name

    source = read(tmp_path, file=write(["Train", "validation", "DEV", "valid", "TEST"]))
    assert [image.split for image in source.images] == ["train", "val", "val", "val", "test"]
    source = read(tmp_path, file=write([None, None]))
    assert [image.split for image in source.images] == ["", ""] and source.hashed_splits, "a hash decides"
    with pytest.raises(InputError, match=r"row 2: split '' is not one of train, val, test|row 2: column 'split' holds"):
        read(tmp_path, file=write(["train", None]))


def test_names_of_columns_may_be_in_capitals_and_between_spaces(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("Image, Caption ,SPLIT\n1.jpg,a dog,val\n")
    source = read(tmp_path)
    assert (source.images[0].split, source.captions[0].text) == ("val", "a dog")
    (tmp_path / "captions.csv").write_text("Image,caption,image,split\n1.jpg,a dog,2.jpg,val\n")
    assert read(tmp_path).images[0].path == "2.jpg", "the very name goes before"
    (tmp_path / "captions.csv").write_text("Image,IMAGE,caption\n1.jpg,2.jpg,a dog\n")
    with pytest.raises(InputError, match="column 'image' is there 2 times; .* divided by commas, found Image, IMAGE"):
        read(tmp_path)
    pd.DataFrame(ROWS, columns=["Image", "Caption", "Split"]).to_parquet(tmp_path / "t.parquet")
    assert len(read(tmp_path, file="t.parquet").captions) == len(ROWS)


def test_empty_lines_and_newlines_in_cells_shift_no_number(tmp_path: Path) -> None:
    lines = ["image,caption,split", "", '1.jpg,"two', 'lines",train', "2.jpg,,val", "3.jpg,red, and blue,test", "", ""]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    source = table.read_source(DatasetParams.from_dict({"source": "table", "root": str(tmp_path)}), tmp_path)
    assert [caption.where.rpartition(": ")[2] for caption in source.captions] == ["row 2"]
    assert [str(row).removeprefix(f"{tmp_path}/captions.csv: ")[:31] for row in source.rejected] == [
        "row 3: column 'caption' holds '",
        "is not a CSV at line 6 (row 4):",
    ]


def test_captions_that_are_there_again_are_counted(
    prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare(GOOD + GOOD.partition("\n")[2])
    assert len(pq.read_table(out / "captions.parquet")) == 6
    assert "3 captions repeat another caption of the same picture; all of them are kept" in capsys.readouterr().out


def test_a_blank_row_before_the_header_is_none(tmp_path: Path) -> None:
    """As Excel writes it."""
    for blank, sign in ((",,", ","), (" , ,", ","), (";;", ";")):
        rows = f"image{sign}caption{sign}split\n1.jpg{sign}a dog{sign}train\n"
        (tmp_path / "captions.csv").write_text(f"{blank}\n{rows}")
        assert [
            caption.text
            for caption in table.read_source(DatasetParams(source="table", root=str(tmp_path)), tmp_path).captions
        ] == ["a dog"]


def test_another_sign_between_cells_is_said_before_quotes_that_it_makes_wrong(prepare: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="column 'image' is there 0 times; .* divided by commas, found image"):
        prepare(GOOD.replace(",", "~") + '4.jpg~"a dog", he says~train\n')
