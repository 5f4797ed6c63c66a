"""Pictures and captions in Parquet and tar files become a table that the pipeline reads."""

import csv
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.unpack import unpack
from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.sources import table

ROOT = Path(__file__).parents[2]


def picture(colour: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(file, kind)
    return file.getvalue()


RED, BLUE, PNG = picture("red"), picture("blue"), picture("green", "PNG")


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
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


def test_names_stay_in_the_folder_and_different_pictures_apart(tmp_path: Path) -> None:
    paths = ["../../a.jpg", "C:\\a.jpg", "A.jpg", "..", "a\nb.jpg", "ü" * 200 + ".jpg", "b.JPG"]
    contents = [RED, RED, BLUE, BLUE, PNG, PNG, PNG]
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
    assert {path.name for path in tmp_path.iterdir()} == {"data.parquet", "raw"}


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


def test_a_webdataset(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "00000.tar", {
        "a/000000001.jpg": RED, "a/000000001.txt": b"one", "a/000000001.json": b'{"caption": "not this"}',
        "000000002.PNG": PNG, "000000002.json": json.dumps({"captions": ["two", "zwei"]}).encode(),
        "000000003.txt": b"three", "000000004.jpg": BLUE, "000000004.json": b"{", "000000005.jpg": BLUE,
        "000000005.txt": b"\xff",
    })  # fmt: skip
    pictures, captions, rejected = unpack([file], tmp_path / "raw")
    assert (pictures, captions, len(rejected)) == (2, 3, 4)
    assert [tuple(row.values()) for row in rows(tmp_path / "raw")] == [
        ("pictures/000000001.jpg", "one"), ("pictures/000000002.png", "two"), ("pictures/000000002.png", "zwei"),
    ]  # fmt: skip


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
    for files, says in (
        ([good, other], r"more\.parquet: row 1: states no split, unlike .*train-0\.parquet; expected one for all or"),
        ([urls], r"urls\.parquet: expected a column of pictures .* found url \(string\), caption \(string\)"),
        ([bare], r"bare\.parquet: expected a column of pictures .* and one of captions"),
        ([empty], r"empty\.parquet: holds no picture with a caption; .*row 1: has no picture"),
        ([torn], r"torn\.parquet: cannot be read as Parquet"),
        ([cut], r"cut\.tar: cannot be read as a tar file"),
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
