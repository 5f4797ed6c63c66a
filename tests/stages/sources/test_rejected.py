"""Bad rows among good ones: all of them are named, the good ones are written, and too many are an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.contracts import read_lines
from stages.errors import InputError, shown
from stages.params.dataset import DatasetParams
from stages.prepare_dataset import prepare_dataset
from tests.stages.sources.conftest import GOOD, picture

BAD = (
    "4.jpg,,train\n"  # no caption: the picture of the row has another one
    "4.jpg,four,train\n"
    "missing.jpg,none,train\nmissing.jpg,none either,train\n"
    "5.jpg,five,extra\n"
    "1.jpg,one again,val\n"
    "../raw/6.jpg,six,train\n"
)


def test_every_bad_row_is_named_and_the_others_are_written(
    prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare(GOOD + BAD, max_rejected_share=0.5)
    rows = pq.read_table(out / "rejected.parquet").to_pylist()
    assert [(row["what"], row["where"].rpartition(": ")[2]) for row in rows] == [
        ("caption", "row 4"), ("caption", "row 8"), ("caption", "row 9"), ("image", "row 6"), ("image", "row 10"),
    ]  # fmt: skip
    for row, reason in zip(
        rows,
        ("column 'caption' holds ''", "split 'extra' is not one of", "in the split 'val' here and in 'train' at",
         "no image file", "leaves the image root"),
        strict=True,
    ):  # fmt: skip
        assert reason in row["reason"]
    assert pq.read_table(out / "images.parquet")["image_id"].to_pylist() == ["1", "2", "3", "4"]
    captions = pq.read_table(out / "captions.parquet")
    assert captions["text"].to_pylist() == ["one", "two", "three", "four"]
    assert captions["caption_id"].to_pylist() == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert "5 rejected (caption 3, image 2):" in said and "row 10: path" in said


def test_a_row_that_names_no_picture_changes_no_id(prepare: Callable[..., Path]) -> None:
    # Each would share its stem with, or be the stem of, a picture that is there.
    bad = "1.png,no file,train\n2,no file,train\nelsewhere/3.jpg,no file,test\n../3.png,outside,val\n"
    out = prepare(GOOD + bad, max_rejected_share=0.9)
    captions = pq.read_table(out / "captions.parquet").to_pylist()
    assert [(row["image_id"], row["text"]) for row in captions] == [("1", "one"), ("2", "two"), ("3", "three")]
    assert pq.read_table(out / "images.parquet")["path"].to_pylist() == ["1.jpg", "2.jpg", "3.jpg"]


def test_more_than_the_share_stops_and_leaves_nothing(
    prepare: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = "".join(f"none{number}.jpg,x,train\n" for number in range(30))
    with pytest.raises(InputError) as caught:
        prepare(GOOD + many, max_rejected_share=0.9)
    message = str(caught.value)
    assert "30 of 33 image records are rejected, more than dataset.max_rejected_share: 0.9" in message
    assert "row 4: no image file" in message and len(message) < 1500
    assert not (tmp_path / "dataset").exists()
    said = capsys.readouterr().out
    assert "30 rejected (image 30):" in said and "row 13: no" in said and "row 14" not in said and "20 more" in said
    assert len(pq.read_table(prepare(max_rejected_share=0.91) / "rejected.parquet")) == 30


def test_rows_whose_absence_leaves_a_split_empty_are_told(
    prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="the split val holds no image"):
        prepare(GOOD.replace(",val", ",evaluation"), max_rejected_share=0.5)
    assert "row 2: split 'evaluation' is not one of train, val, test" in capsys.readouterr().out


def test_a_picture_that_cannot_be_measured_is_listed_and_named(prepare: Callable[..., Path], tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "raw/1.jpg", "TGA")  # not read: it has no first bytes to be known by
    out = prepare(GOOD)
    assert pq.read_table(out / "images.parquet")["width"].to_pylist() == [0, 20, 20]
    (row,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert row["what"] == "size" and "1.jpg: its size cannot be read: is none of JPEG, PNG, " in row["reason"]


def test_a_karpathy_record_or_sentence_is_set_aside_alone(tmp_path: Path) -> None:
    records: list[Any] = [
        {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": f"text {number}"}]}
        for number, split in enumerate(("train", "val", "test"))
    ]
    records[0]["sentences"] += [{"raw": 5}, {"raw": "  "}, "text", {"raw": "a \ud800"}]
    records += [{"filename": "0.jpg", "split": "val", "sentences": [{"raw": "again"}]}, "text", {"split": "train"}]
    for number in range(3):
        picture(tmp_path / f"images/{number}.jpg", number)
    (tmp_path / "dataset.json").write_text(json.dumps({"images": records}))
    params = DatasetParams(source="karpathy", root=str(tmp_path), max_rejected_share=0.8)
    prepare_dataset(params, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert [(row["what"], row["where"].partition("images[")[2]) for row in rows] == [
        ("image", "4]"), ("image", "5].filename"), ("caption", "0].sentences[1].raw"), ("caption", "0].sentences[3]"),
        ("image", "3]"), ("caption", "0].sentences[2]"), ("caption", "0].sentences[4]"),
    ]  # fmt: skip
    assert len(pq.read_table(tmp_path / "out/images.parquet")) == 3


def test_a_split_that_bad_rows_have_emptied_says_which(
    prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="the split val holds no image"):
        prepare(GOOD.replace("2.jpg", "gone.jpg"), max_rejected_share=1.0)
    assert "1 rejected (image 1):" in (said := capsys.readouterr().out) and "row 2: no image file" in said


def test_no_pictures_are_needed_where_regions_are_precomputed(
    prepare: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 3):
        (tmp_path / f"raw/{number}.jpg").unlink()
    out = prepare(GOOD, pictures=False)
    rows = pq.read_table(out / "images.parquet").to_pylist()
    assert [(row["width"], row["height"], bool(row["sha256"])) for row in rows] == [
        (20, 10, True), (0, 0, False), (0, 0, False),
    ]  # fmt: skip
    assert "2 images have no file" in capsys.readouterr().out
    assert not (out / "rejected.parquet").exists()
    prepare(GOOD, pictures=False, table={"images": "nowhere"})
    with pytest.raises(InputError, match="leaves the image root"):
        prepare(GOOD.replace("2.jpg", "../2.jpg"), pictures=False)


def test_only_a_newline_ends_a_row(prepare: Callable[..., Path], tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x0cd\x0be\x1ef\rg"
    text = GOOD.replace("two", odd).replace("three", f'"one, {odd}\nand ""more"""').replace("\n2", "\r\n2")
    (tmp_path / "raw/captions.csv").write_bytes(text.encode())
    texts = pq.read_table(prepare() / "captions.parquet")["text"].to_pylist()
    assert texts == ["one", "a b c d e f g", 'one, a b c d e f g and "more"']
    (tmp_path / "lines.txt").write_bytes(f"{odd}\r\n\n{odd}\n".encode())
    assert read_lines(tmp_path / "lines.txt") == [odd, "", odd]
    (tmp_path / "lines.txt").write_bytes(b"one\ntwo")
    assert read_lines(tmp_path / "lines.txt") == ["one", "two"]


def test_a_latin_1_byte_is_named_with_its_line(prepare: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "raw/captions.csv").write_bytes(GOOD.replace("two", "caf\xe9").encode("latin-1"))
    with pytest.raises(InputError, match=r"captions\.csv: is not a CSV in UTF-8: line 3: byte 9 is 0xe9, not UTF-8"):
        prepare()
    (tmp_path / "raw/dataset.json").write_bytes(b'{\n"a": "\xe9"}')
    with pytest.raises(InputError, match=r"dataset\.json: is not JSON: line 2: byte 6 is 0xe9"):
        prepare(source="karpathy")
    (tmp_path / "lines.txt").write_bytes("one\u2028\ntwo\n".encode() + b"thr\xe9e\n")
    with pytest.raises(InputError, match=r"lines\.txt: line 3: byte 3 is 0xe9, not UTF-8"):
        read_lines(tmp_path / "lines.txt")


def test_no_message_holds_a_value_whole(
    prepare: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = "x" * 800_000
    frame = pd.DataFrame({"image": [{"bytes": huge.encode(), "path": "1.jpg"}] * 3, "caption": "a", "split": "train"})
    frame.to_parquet(tmp_path / "raw/t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: column 'image' holds struct<bytes") as caught:
        prepare(table={"file": "t.parquet"})
    assert len(str(caught.value)) < 500
    frame.assign(image=[1, 2, 3]).to_parquet(tmp_path / "raw/t.parquet")
    with pytest.raises(InputError, match=r"row 1: column 'image' holds 1; expected a text"):
        prepare(table={"file": "t.parquet"})
    for rows in (GOOD.replace("2.jpg", huge), GOOD.replace("val", huge), GOOD.replace("caption", huge), huge):
        with pytest.raises(InputError) as caught:
            prepare(rows)
        assert len(str(caught.value)) < 1500
    assert len(capsys.readouterr().out) < 5000
    for value in (huge, huge.encode(), {"bytes": huge.encode()}, [huge] * 1000, {n: huge for n in range(1000)}):
        assert len(shown(value)) <= 120
    assert shown("it's") == '"it\'s"' and shown(None) == "None"
