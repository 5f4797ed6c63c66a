"""Stage prepare_dataset: the three tables, and that wrong input ends in one clear line and no output."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from stages.errors import InputError
from stages.params.dataset import DatasetParams, ScenesParams
from stages.prepare_dataset import prepare_dataset
from stages.sources.base import Source, SourceBox, SourceCaption, SourceImage
from stages.sources.checks import check_source
from stages.sources.pictures import measure_all
from stages.sources.tables import BOXES, CAPTIONS, IMAGES

ROWS = "image,caption,split\n1.jpg,a dog,train\n1.jpg,  it\truns ,train\n2.jpg,a cat,val\nsub/3.png,a bird,test\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root with three pictures and a table of captions."""
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "1.jpg")
    Image.new("RGB", (20, 50), (30, 200, 30)).save(folder / "2.jpg")
    Image.new("L", (7, 9)).save(folder / "sub/3.png")
    (folder / "captions.csv").write_text(ROWS)
    return folder


def params(root: Path, **more: Any) -> DatasetParams:
    return DatasetParams.from_dict({"source": "table", "root": str(root), **more})


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_the_tables(root: Path, tmp_path: Path) -> None:
    prepare_dataset(params(root), tmp_path / "dataset")
    out = tmp_path / "dataset"
    assert files(out) == ["boxes.parquet", "captions.parquet", "images.parquet"]
    for name, schema in (("images", IMAGES), ("captions", CAPTIONS), ("boxes", BOXES)):
        table = pq.read_table(out / f"{name}.parquet")
        assert table.schema.equals(schema)
        assert table.schema.metadata == {b"camp.format": f"dataset.{name}".encode(), b"camp.version": b"1"}
    images = pq.read_table(out / "images.parquet").to_pylist()
    assert [(row["image_id"], row["path"], row["split"], row["width"], row["height"]) for row in images] == [
        ("1", "1.jpg", "train", 40, 30), ("2", "2.jpg", "val", 20, 50), ("3", "sub/3.png", "test", 7, 9),
    ]  # fmt: skip
    assert images[2]["sha256"] == hashlib.sha256((root / "sub/3.png").read_bytes()).hexdigest()
    assert pq.read_table(out / "captions.parquet").to_pylist() == [
        {"caption_id": 0, "image_id": "1", "split": "train", "text": "a dog"},
        {"caption_id": 1, "image_id": "1", "split": "train", "text": "it runs"},
        {"caption_id": 2, "image_id": "2", "split": "val", "text": "a cat"},
        {"caption_id": 3, "image_id": "3", "split": "test", "text": "a bird"},
    ]
    assert pq.read_table(out / "boxes.parquet").num_rows == 0


def test_scenes_bring_pictures_boxes_and_ground_truth(tmp_path: Path) -> None:
    scenes = DatasetParams(scenes=ScenesParams(train=6, val=4, test=5, image_size=96))
    out = tmp_path / "dataset"
    prepare_dataset(scenes, out)
    first = {name: (out / name).read_bytes() for name in files(out) if name != "images"}
    images = pq.read_table(out / "images.parquet").to_pylist()
    assert len(images) == 15
    for row in images:
        file = scenes.image_root(out) / row["path"]
        assert (row["width"], row["height"]) == (96, 96)
        assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    boxes = pq.read_table(out / "boxes.parquet").to_pylist()
    assert {row["image_id"] for row in boxes} == {row["image_id"] for row in images}
    assert all(0 <= row["x0"] < row["x1"] <= 96 and len(row["attributes"]) == 3 for row in boxes)
    truth = pq.read_table(out / "scenes.parquet").to_pylist()
    texts = [caption["text"] for row in truth for caption in row["captions"]]
    assert texts == pq.read_table(out / "captions.parquet").column("text").to_pylist()
    prepare_dataset(scenes, out)  # over an earlier result
    assert {name: (out / name).read_bytes() for name in files(out) if name != "images"} == first


def test_coco_brings_boxes(coco_mini: Path, tmp_path: Path, repository: Path) -> None:
    coco = yaml.safe_load((repository / "presets/coco.yaml").read_text())["dataset"] | {"root": str(coco_mini)}
    prepare_dataset(DatasetParams.from_dict(coco), tmp_path / "dataset")
    sizes = {row["image_id"]: row for row in pq.read_table(tmp_path / "dataset/images.parquet").to_pylist()}
    boxes = pq.read_table(tmp_path / "dataset/boxes.parquet").to_pylist()
    assert len(sizes) > 100 and len(boxes) > 500
    for row in boxes:
        image = sizes[row["image_id"]]
        assert 0 <= row["x0"] < row["x1"] <= image["width"] + 1
        assert 0 <= row["y0"] < row["y1"] <= image["height"] + 1
    annotated = json.loads((coco_mini / "annotations/captions_train2017.json").read_text())["images"]
    for record in annotated:
        row = sizes[Path(record["file_name"]).stem]
        assert (row["width"], row["height"]) == (record["width"], record["height"])


def test_files_that_are_no_pictures_are_listed_with_size_zero(root: Path, tmp_path: Path) -> None:
    (root / "1.jpg").write_bytes(b"")
    (root / "2.jpg").write_text("no picture")
    prepare_dataset(params(root), tmp_path / "dataset")
    rows = pq.read_table(tmp_path / "dataset/images.parquet").to_pylist()
    assert [(row["width"], row["height"]) for row in rows] == [(0, 0), (0, 0), (7, 9)]
    assert rows[0]["sha256"] == hashlib.sha256(b"").hexdigest()


def test_a_picture_that_claims_a_vast_size_is_measured_and_not_decoded(tmp_path: Path) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    # The header's checksum has to fit, or the file is merely broken.
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(content)
    limit = Image.MAX_IMAGE_PIXELS
    assert measure_all([tmp_path / "bomb.png"])[0].frame[:2] == (60_000, 60_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def table(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "captions.csv").write_text(text) and None


def absolute_below(root: Path) -> None:
    table(ROWS.replace("2.jpg", str(root.absolute() / "2.jpg")))(root)


def escape_by_link(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "2.jpg")
    (root / "2.jpg").unlink()
    (root / "2.jpg").symlink_to(outside / "2.jpg")


def escape_by_folder_link(root: Path) -> None:
    outside = root.parent / "outside"
    (root / "sub").rename(outside)
    (root / "sub").symlink_to(outside)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("2.jpg"), r"captions\.csv: row 3: no image file .*raw/2\.jpg"),
        (
            table(ROWS.replace("2.jpg", "../raw/2.jpg")),
            r"captions\.csv: row 3: path '\.\./raw/2\.jpg' leaves the image",
        ),
        (table(ROWS.replace("2.jpg", "/etc/hostname")), r"row 3: path '/etc/hostname' leaves the image root"),
        (absolute_below, r"row 3: path '/.*raw/2\.jpg' is absolute; expected it as below"),
        (table(ROWS.replace("2.jpg", "sub")), r"row 3: no image file .*raw/sub"),
        (escape_by_link, r"row 3: path '2\.jpg' leaves the image root"),
        (escape_by_folder_link, r"row 4: path 'sub/3\.png' leaves the image root"),
        (table(ROWS.replace(",val", ",extra")), r"captions\.csv: row 3: split 'extra' is not one of train, val, test"),
        (table(ROWS.replace(",val", ",train")), r"the split val holds no image"),
        (table(ROWS.replace("a cat", "")), r"captions\.csv: row 3: column 'caption'"),
        (table("image,words\n1.jpg,x\n"), r"captions\.csv: column 'caption'"),
        (remove("captions.csv"), r"captions\.csv: no such file"),
    ],
)
def test_wrong_input_leaves_nothing(root: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(root)
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        prepare_dataset(params(root), tmp_path / "dataset")
    assert files(tmp_path) == before


def test_wrong_input_keeps_an_earlier_result(root: Path, tmp_path: Path) -> None:
    prepare_dataset(params(root), tmp_path / "dataset")
    before = {name: (tmp_path / "dataset" / name).read_bytes() for name in files(tmp_path / "dataset")}
    (root / "2.jpg").unlink()
    with pytest.raises(InputError):
        prepare_dataset(params(root), tmp_path / "dataset")
    assert {name: (tmp_path / "dataset" / name).read_bytes() for name in files(tmp_path / "dataset")} == before


def test_a_missing_image_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder; dataset\.root names it"):
        prepare_dataset(params(tmp_path / "nowhere"), tmp_path / "dataset")
    assert files(tmp_path) == []


def test_an_image_root_that_is_itself_a_link_is_fine(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    prepare_dataset(params(tmp_path / "link"), tmp_path / "dataset")
    assert pq.read_table(tmp_path / "dataset/images.parquet").num_rows == 3


def whole_source() -> Source:
    return Source(
        images=[SourceImage(name, f"{name}.jpg", split, f"f: images[{i}]")
                for i, (name, split) in enumerate((("a", "train"), ("b", "val"), ("c", "test")))],
        captions=[SourceCaption(name, "text", f"f: captions[{i}]") for i, name in enumerate("abc")],
        boxes=[SourceBox("a", (0, 0, 1, 1), "dog")],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.images.append(SourceImage("a", "x.jpg", "val", "f: images[3]")),
         r"f: images\[3\]: image id 'a' is there twice, first at f: images\[0\]"),
        (lambda s: s.captions.append(SourceCaption("d", "text", "f: captions[3]")),
         r"f: captions\[3\]: the caption names image 'd', which is not listed"),
        (lambda s: s.captions.append(SourceCaption("a", " \n", "f: captions[3]")), r"f: captions\[3\].*is empty"),
        (lambda s: s.captions.append(SourceCaption("a", "\ud800", "f: captions[3]")), r"f: captions\[3\].*surrogate"),
        (lambda s: s.captions.pop(), r"f: images\[2\]: image 'c' has no caption"),
        (lambda s: s.boxes.append(SourceBox("d", (0, 0, 1, 1), "dog")), r"a box names image 'd'"),
        (lambda s: (s.images.pop(), s.captions.pop()), r"the split test holds no image"),
    ],
)  # fmt: skip
def test_what_must_hold_of_every_source(edit: Callable[[Source], Any], message: str) -> None:
    source = whole_source()
    check_source(source)
    edit(source)
    with pytest.raises(InputError, match=message):
        check_source(source)


def run_stage(folder: Path, repository: Path, dataset: dict[str, Any], **more: Any) -> subprocess.CompletedProcess[str]:
    sections = {"dataset": dataset, "captions": {"lexicon": "photographs"}} | more
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "stages.prepare_dataset"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command(root: Path, tmp_path: Path, repository: Path) -> None:
    done = run_stage(tmp_path, repository, {"source": "table", "root": "raw"})
    assert done.returncode == 0, done.stderr
    assert "3 images (train 1, val 1, test 1), 4 captions, 0 boxes" in done.stdout
    assert files(tmp_path / "data") == ["dataset", *(f"dataset/{n}.parquet" for n in ("boxes", "captions", "images"))]


def test_the_command_needs_no_pictures_where_features_are_precomputed(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    (root / "2.jpg").unlink()
    detector = {"backend": "precomputed", "architecture": "npz", "weights": "features"}
    done = run_stage(tmp_path, repository, {"source": "table", "root": "raw"}, detector=detector)
    assert done.returncode == 0, done.stderr
    assert "1 images have no file; their regions are precomputed" in done.stdout
    # What was hashed is remembered in the workspace.
    assert (tmp_path / ".work/hashes.sqlite").is_file()


def test_the_command_fails_with_one_line(root: Path, tmp_path: Path, repository: Path) -> None:
    (root / "2.jpg").unlink()
    done = run_stage(tmp_path, repository, {"source": "table", "root": "raw"})
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: 1 of 3 image records are rejected, more than dataset.max_rejected_share: 0.01 allows: "
        "raw/captions.csv: row 3: no image file raw/2.jpg"
    )
    assert files(tmp_path / "data") == []


@pytest.mark.skipif(sys.platform != "linux", reason="the system sends the signal on Linux only")
def test_nothing_is_left_of_a_killed_stage(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("dataset: {source: scenes, scenes: {train: 3000}}")
    command = [sys.executable, "-m", "stages.prepare_dataset"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = b"-"
        while b"render scenes" not in said:
            assert said, "ended by itself"
            said = os.read(process.stdout.fileno(), 4096)
        time.sleep(1)
        assert len(psutil.Process(process.pid).children()) > 1
        process.kill()
        begun = time.monotonic()
        process.stdout.read()  # until the last process that holds the pipe is gone
    assert time.monotonic() - begun < 20
