"""Pictures and captions in Parquet and tar files become a table that the pipeline reads."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import unicodedata
from pathlib import Path
from typing import Literal

import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.unpack import ENDINGS, unpack
from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.sources import table
from stages.sources.formats import FORMATS, SUFFIXES

ROOT = Path(__file__).parents[2]


def picture(colour: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image = Image.new("RGB", (20, 16), colour)
    if kind == "HEIF":  # without registering it: what is tested reads by another library
        pillow_heif.from_pillow(image).save(file)
    else:
        image.save(file, kind)
    return file.getvalue()


RED, BLUE, PNG = picture("red"), picture("blue"), picture("green", "PNG")


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def write_tar(
    path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], mode: Literal["w", "w:gz", "w:xz"] = "w"
) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_data_set_of_hugging_face_goes_through_the_source_table(tmp_path: Path) -> None:
    images = [{"bytes": RED, "path": "x/red.jpg"}, {"bytes": BLUE, "path": "blue.jpg"}]
    train = write(
        tmp_path / "train-00000-of-00001.parquet", image=images, caption=[["A red, one.", 'A "red" two.'], ["b"]]
    )
    val = write(tmp_path / "validation-00000.parquet", image=[{"bytes": PNG, "path": None}], caption=[["line\nbreak"]])
    assert unpack([train, val], tmp_path / "raw") == (3, 4, [])

    params = DatasetParams.from_dict({"source": "table", "root": str(tmp_path / "raw")})
    source = table.read_source(params, tmp_path / "unused")
    assert not source.rejected
    assert [(image.path, image.split) for image in source.images[:2]] == [
        ("pictures/red.jpg", "train"), ("pictures/blue.jpg", "train"),
    ]  # fmt: skip
    assert source.images[2].split == "val" and source.images[2].path.endswith(".png")
    assert [caption.text for caption in source.captions] == ["A red, one.", 'A "red" two.', "b", "line\nbreak"]
    contents = [(tmp_path / "raw" / image.path).read_bytes() for image in source.images]
    assert contents == [RED, BLUE, PNG]


def test_numbered_captions_a_column_of_bytes_and_a_column_split(tmp_path: Path) -> None:
    file = write(
        tmp_path / "test-00000.parquet", jpg=pa.array([RED, BLUE], pa.binary()), filename=["1.jpg", "2"],
        caption_0=["a", "b"], caption_1=["c", "d"], split=["restval", "dev"], rank=[1, 2],
    )  # fmt: skip
    assert unpack([file], tmp_path / "raw") == (2, 4, [])
    assert [tuple(row.values()) for row in rows(tmp_path / "raw")] == [
        ("pictures/1.jpg", "a", "train"), ("pictures/1.jpg", "c", "train"),
        ("pictures/2.jpg", "b", "val"), ("pictures/2.jpg", "d", "val"),
    ]  # fmt: skip
    both = write(tmp_path / "b.parquet", jpg=pa.array([RED], pa.binary()), caption=[["a", "b"]], caption_1=["c"])
    assert unpack([both], tmp_path / "both") == (1, 3, [])


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        *((picture("red", kind), ending) for kind, ending in ENDINGS.items()),
        (picture("red", "MPO"), ".jpg"),
        (b"P6 99999 99999 255\n", ".ppm"),  # more pixels than Pillow opens unasked
        (b"<svg/>", ".jpg"),
    ],
)
def test_a_picture_without_an_ending_gets_that_of_its_content(tmp_path: Path, content: bytes, ending: str) -> None:
    unpack([write(tmp_path / "d.parquet", image=pa.array([content]), filename=["1"], text=["a"])], tmp_path / "raw")
    assert rows(tmp_path / "raw")[0]["image"] == f"pictures/1{ending}"


def test_every_format_that_is_read_has_an_ending() -> None:
    assert set(ENDINGS) == set(FORMATS) and set(ENDINGS.values()) <= SUFFIXES


def test_names_stay_in_the_folder_and_different_pictures_apart(tmp_path: Path) -> None:
    paths = ["../../a.jpg", "C:\\a.jpg", "A.jpg", "..", "a\nb.jpg", "ü" * 200 + ".jpg", "b.JPG"]
    contents = [RED, RED, BLUE, BLUE, PNG, PNG, PNG]
    accents = [{"bytes": RED, "path": "\u00fc.jpg"}, {"bytes": BLUE, "path": "u\u0308.jpg"}]  # one name on some disks
    unpack([write(tmp_path / "accents.parquet", image=accents, text=["a", "b"])], tmp_path / "accents")
    composed = {unicodedata.normalize("NFC", path.name) for path in (tmp_path / "accents/pictures").iterdir()}
    assert len(composed) == 2
    images = [{"bytes": content, "path": path} for content, path in zip(contents, paths, strict=True)]
    file = write(tmp_path / "data.parquet", image=images, text=[f"caption {i}" for i in range(7)])
    unpack([file], tmp_path / "raw")
    written = rows(tmp_path / "raw")
    assert "split" not in written[0]
    names = [row["image"].removeprefix("pictures/") for row in written]
    assert names[:2] == ["a.jpg", "a.jpg"] and names[2].startswith("A-") and names[6] == "b.JPG"
    assert all(name.isascii() and "/" not in name and name.endswith((".jpg", ".png", ".JPG")) for name in names)
    assert [(tmp_path / "raw" / row["image"]).read_bytes() for row in written] == contents
    assert {path.name for path in (tmp_path / "raw" / "pictures").iterdir()} == set(names)
    assert {path.name for path in tmp_path.iterdir()} == {"accents.parquet", "accents", "data.parquet", "raw"}


def test_what_cannot_be_used_is_set_aside_and_told_of(tmp_path: Path) -> None:
    images = [{"bytes": content, "path": f"{i}.jpg"} for i, content in enumerate([RED, None, BLUE, PNG, b"", RED])]
    broken = pa.array([[b"a", b"caf\xe9", b""], [b"b"], [b" "], [b"d"], [b"e"], [b"f"]]).cast(pa.list_(pa.binary()))
    captions = pa.ListArray.from_arrays(broken.offsets, pa.Array.from_buffers(
        pa.string(), len(broken.values), broken.values.buffers()
    ))  # fmt: skip
    splits = ["train", "train", "train", "train", "train", "holdout"]
    file = write(tmp_path / "d.parquet", image=images, caption=captions, split=splits)
    pictures, count, rejected = unpack([file], tmp_path / "raw")
    assert (pictures, count) == (2, 2)
    assert [line.removeprefix(f"{file}: ") for line in rejected] == [
        "row 1: b'caf\\xe9' is not a caption", "row 1: '' is not a caption", "row 2: has no picture",
        "row 3: ' ' is not a caption", "row 3: has no caption", "row 5: has no picture",
        "row 6: split 'holdout' is not one of train, val, test",
    ]  # fmt: skip


def test_a_webdataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tar(tmp_path / "00000.tar", {
        "a/000000001.jpg": RED, "a/000000001.txt": b"one", "a/000000001.json": b'{"caption": "not this"}',
        "000000002.PNG": PNG, "000000002.json": json.dumps({"captions": ["two", "zwei"]}).encode(),
        "000000003.txt": b"three", "000000004.jpg": BLUE, "000000004.json": b"{", "000000005.jpg": BLUE,
        "000000005.txt": b"\xff",
    })  # fmt: skip
    pictures, captions, rejected = unpack([file], tmp_path / "raw")
    assert (pictures, captions, len(rejected)) == (2, 3, 4)
    assert f"{file}: 1 captions in .json files are not read, because a .txt" in capsys.readouterr().out
    assert [tuple(row.values()) for row in rows(tmp_path / "raw")] == [
        ("pictures/000000001.jpg", "one"), ("pictures/000000002.png", "two"), ("pictures/000000002.png", "zwei"),
    ]  # fmt: skip


def test_files_of_a_webdataset_that_belong_together(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "0.tar", [
        ("1.mask.png", PNG), ("1.jpg", RED), ("1.txt", b"\xef\xbb\xbfone"),  # a picture of another kind
        ("1.jpg", BLUE), ("1.txt", b"two"),  # another record of the same name
        ("a.2/._3.JPG", b"x"), ("a.2/3.JPG", RED), ("a.2/._3.txt", b"x"), ("a.2/3.txt", b"three"),  # by macOS
        ("4.10.2020.jpg", PNG), ("4.10.2020.txt", b"four"),  # the only picture of its record
        ("5.1.jpg", RED), ("5.1.txt", b"five"), ("5.2.jpg", BLUE), ("5.2.txt", b"six"),
        ("6.jpg", RED), ("6.json", b"[" * 100_000), ("7", b"no"), ("7.jpg", RED),
        ("8.png", PNG), ("8.jpg", RED), ("8.txt", b"eight"),
    ])  # fmt: skip
    pictures, captions, rejected = unpack([file], tmp_path / "raw")
    assert (pictures, captions) == (4, 4)
    written = [((tmp_path / "raw" / row["image"]).read_bytes(), row["caption"]) for row in rows(tmp_path / "raw")]
    assert written == [(RED, "one"), (BLUE, "two"), (RED, "three"), (PNG, "four")]
    assert [line.removeprefix(f"{file}: ") for line in rejected] == [
        "5: has no picture",
        "6: has no caption",
        "7: has no caption",
        "8: has 2 pictures, .png, .jpg; expected one",
    ]


def test_a_compressed_tar_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [(f"{i}{ending}", os.urandom(50_000)) for i in range(9) for ending in (".jpg", ".json")]
    rewinds = []
    rewind = gzip._GzipReader._rewind  # type: ignore[attr-defined]
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda self: (rewinds.append(1), rewind(self)))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="holds no picture with a caption"):
        unpack([write_tar(tmp_path / "0.tar", members, "w:gz")], tmp_path / "raw")
    assert len(rewinds) < 5


def test_a_row_without_a_split_beside_rows_with_one_is_set_aside(tmp_path: Path) -> None:
    file = write(
        tmp_path / "d.parquet", image=pa.array([RED, BLUE], pa.binary()), caption=["a", "b"], split=[None, "x"]
    )
    more = write(tmp_path / "e.parquet", image=pa.array([PNG], pa.binary()), caption=["c"], split=["test"])
    pictures, captions, rejected = unpack([file, more], tmp_path / "raw")
    assert (pictures, captions, len(rejected)) == (1, 1, 2)
    assert rejected[0] == f"{file}: row 1: split '' is not one of train, val, test"


def test_forms_of_columns(tmp_path: Path) -> None:
    for number, image in enumerate((
        pa.array([RED, BLUE, RED], pa.large_binary()), pa.array([RED, BLUE, RED], pa.binary()).dictionary_encode(),
        pa.array([RED, BLUE, RED], pa.binary_view()), [{"bytes": one, "path": None} for one in (RED, BLUE, RED)],
    )):  # fmt: skip
        file = write(tmp_path / f"{number}.parquet", image=image, caption=pa.array(list("aba")).dictionary_encode())
        assert unpack([file], tmp_path / f"raw{number}") == (2, 3, [])
    sentences = [[{"raw": "a", "sentid": 1}, {"raw": "b", "sentid": 2}], [{"raw": None, "sentid": 3}]]
    file = write(tmp_path / "s.parquet", image=pa.array([RED, BLUE], pa.binary()), sentences=sentences)
    assert unpack([file], tmp_path / "raw")[:2] == (1, 2)


def test_wrong_files_are_errors_and_leave_no_table(tmp_path: Path) -> None:
    good = write(tmp_path / "train-0.parquet", image=pa.array([RED], pa.binary()), caption=["a"])
    other = write(tmp_path / "more.parquet", image=pa.array([BLUE], pa.binary()), caption=["a"])
    urls = write(tmp_path / "urls.parquet", url=["http://a"], caption=["a"])
    bare = write(tmp_path / "bare.parquet", image=pa.array([RED], pa.binary()), url=["http://a"])
    empty = write(tmp_path / "empty.parquet", image=pa.array([None], pa.binary()), caption=["a"])
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(good.read_bytes()[:-20])
    tar = write_tar(tmp_path / "t.tar", {"1.jpg": RED * 20, "1.txt": b"a"})
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar.read_bytes()[:4000])
    damaged = tmp_path / "damaged.tar"  # the header of its second picture
    content = bytearray(write_tar(tmp_path / "h.tar", {"1.jpg": RED, "1.txt": b"a", "2.jpg": RED}).read_bytes())
    content[content.index(b"2.jpg")] = 255
    damaged.write_bytes(content)
    torn_xz = tmp_path / "torn_xz.tar"
    content = bytearray(write_tar(tmp_path / "x.tar", {"1.jpg": RED * 20, "1.txt": b"a"}, "w:xz").read_bytes())
    content[60:90] = bytes(30)
    torn_xz.write_bytes(content)
    twice = tmp_path / "twice.parquet"
    columns = [pa.array([RED], pa.binary()), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "caption", "caption"]), twice)
    for files, says in (
        ([good, other], r"more\.parquet: row 1: states no split, unlike .*train-0\.parquet; expected one for all or"),
        ([urls], r"urls\.parquet: expected a column of pictures .* found url \(string\), caption \(string\)"),
        ([bare], r"bare\.parquet: expected a column of pictures .* and one of captions"),
        ([empty], r"empty\.parquet: holds no picture with a caption; .*row 1: has no picture"),
        ([torn], r"torn\.parquet: cannot be read as Parquet"),
        ([cut], r"cut\.tar: cannot be read as a tar file"),
        ([damaged], r"damaged\.tar: cannot be read as a tar file: a header is damaged at byte "),
        ([torn_xz], r"torn_xz\.tar: cannot be read as a tar file"),
        ([twice], r"twice\.parquet: cannot be read as Parquet: .*\"caption\" exists 2 times"),
        ([tmp_path / "none.parquet"], r"none\.parquet: is not a file that ends in \.parquet or \.tar"),
        ([tmp_path], r"is not a file that ends in"),
    ):
        with pytest.raises(InputError, match=says):
            unpack(files, tmp_path / "raw")
        assert not (tmp_path / "raw" / "captions.csv").exists()


def test_the_command_takes_paths_of_the_folder_that_it_is_called_in(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", image=pa.array([RED, None], pa.binary()), caption=["a", "b"])
    command = [sys.executable, "-m", "pipelines.camp", "--repository", str(ROOT), "unpack", "train-0.parquet"]

    def run() -> "subprocess.CompletedProcess[str]":
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            [*command, "--into", "mine"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert "train-0.parquet: row 2: has no picture\n" in done.stdout
    assert done.stdout.endswith("mine/captions.csv: 1 captions of 1 pictures, 1 set aside\n")
    assert len(rows(tmp_path / "mine")) == 1
    again = run()
    assert again.returncode == 2 and "mine/captions.csv: is there already; move it away" in again.stderr
