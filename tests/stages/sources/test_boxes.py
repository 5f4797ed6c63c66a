"""Sizes and boxes of turned and shrunk pictures: all in pixels of the picture as it is seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, ImageOps

from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.prepare_dataset import prepare_dataset

WIDTH, HEIGHT = 60, 36
BOX = (6, 3, 18, 12)  # white, of the stored picture


def turned(file: Path, orientation: int, mark: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[int]:
    """Save a black picture with a white box, stored unturned; where the box lies in the upright picture."""
    image = Image.new("L", size)
    image.paste(255, BOX)
    image.putpixel((size[0] - 1, size[1] - 1), mark)  # no two files alike
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, exif=exif)
    with Image.open(file) as opened:
        rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(opened)) > 200)
    return [int(side) for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def prepare(root: Path, images: list[dict[str, Any]], boxes: dict[int, tuple[float, ...]], **more: Any) -> Path:
    """The stage over a COCO file of those images, whose boxes (XYXY) are given by image."""
    root.mkdir(exist_ok=True)
    for number, split in enumerate(("train", "val", "test")):
        turned(root / f"images/{split}.png", 1, 10 + number)
    parts = []
    for split in ("train", "val", "test"):
        own = [{"id": 1000, "file_name": f"{split}.png"}, *(images if split == "train" else [])]
        captions = [{"image_id": image["id"], "caption": "x"} for image in own]
        (root / f"{split}.json").write_text(json.dumps({"images": own, "annotations": captions}))
        parts.append({"split": split, "images": "images", "captions": f"{split}.json"})
    annotations = [
        {"image_id": image_id, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for image_id, (x0, y0, x1, y1) in boxes.items()
    ]
    content = {"categories": [{"id": 1, "name": "dog"}], "annotations": annotations}
    (root / "instances.json").write_text(json.dumps(content | {"images": more.pop("instance_images", [])}))
    parts[0]["instances"] = "instances.json"
    tolerant = {"max_rejected_share": 1.0, "max_shared_share": 1.0}
    params = {"source": "coco", "root": str(root), "coco": {"parts": parts}} | tolerant | more
    prepare_dataset(DatasetParams.from_dict(params), root / "out")
    return root / "out"


def boxes_of(out: Path) -> dict[str, list[float]]:
    rows = pq.read_table(out / "boxes.parquet").to_pylist()
    return {row["image_id"]: [row[side] for side in ("x0", "y0", "x1", "y1")] for row in rows}


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_boxes_of_the_stored_frame_are_turned_with_the_picture(tmp_path: Path, ending: str) -> None:
    expected = {
        str(n): turned(tmp_path / f"images/{n}.{ending}", n, n, (64, 40) if ending == "jpg" else (WIDTH, HEIGHT))
        for n in range(1, 9)
    }
    size = (64, 40) if ending == "jpg" else (WIDTH, HEIGHT)
    images = [{"id": n, "file_name": f"{n}.{ending}", "width": size[0], "height": size[1]} for n in range(1, 9)]
    out = prepare(tmp_path, images, dict.fromkeys(range(1, 9), BOX))
    found = boxes_of(out)
    for name, box in expected.items():
        # A JPEG's edges are blurred: its white is a pixel off at most.
        assert found[name] == pytest.approx(box, abs=1.01 if ending == "jpg" else 0)
    for row in pq.read_table(out / "images.parquet").to_pylist():
        if row["image_id"].isdigit():
            orientation = int(row["image_id"])
            upright = size[::-1] if orientation > 4 else size
            assert (row["width"], row["height"], row["orientation"]) == (*upright, orientation)


def test_boxes_of_the_upright_frame_stay_and_half_turns_follow_the_quarter_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {n: turned(tmp_path / f"images/{n}.png", n, n) for n in (3, 6, 8)}
    images = [
        {"id": n, "file_name": f"{n}.png", "width": WIDTH if n < 5 else HEIGHT, "height": HEIGHT if n < 5 else WIDTH}
        for n in places
    ]
    out = prepare(tmp_path, images, {n: tuple(box) for n, box in places.items()})
    assert boxes_of(out) == {str(n): box for n, box in places.items()}
    assert "1 images are mirrored or turned by half: their boxes are taken as those of the picture as it is seen" in (
        capsys.readouterr().out
    )


def test_where_quarter_turns_contradict_one_another_a_half_turn_brings_no_boxes(tmp_path: Path) -> None:
    for number, orientation in ((1, 6), (2, 6), (3, 3)):
        turned(tmp_path / f"images/{number}.png", orientation, number)
    stated = {1: (WIDTH, HEIGHT), 2: (HEIGHT, WIDTH), 3: (WIDTH, HEIGHT)}
    images = [{"id": n, "file_name": f"{n}.png", "width": w, "height": h} for n, (w, h) in stated.items()]
    out = prepare(tmp_path, images, {1: BOX, 2: (1, 2, 3, 4), 3: BOX})
    assert boxes_of(out).keys() == {"1", "2"}
    (row,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert row["what"] == "boxes" and "images[3]" in row["where"]


def test_a_turned_square_contradicts_nothing(tmp_path: Path) -> None:
    """Its sides do not tell which frame it is in, but those of another picture do."""
    turned(tmp_path / "images/1.png", 6, 1, (36, 36))
    turned(tmp_path / "images/2.png", 6, 2)
    stored = turned(tmp_path / "images/3.png", 3, 3)
    stated = {1: (36, 36), 2: (HEIGHT, WIDTH), 3: (WIDTH, HEIGHT)}
    images = [{"id": n, "file_name": f"{n}.png", "width": w, "height": h} for n, (w, h) in stated.items()]
    assert boxes_of(prepare(tmp_path, images, {3: tuple(stored)})) == {"3": stored}
    images[1] |= {"width": WIDTH, "height": HEIGHT}
    assert boxes_of(prepare(tmp_path, images, {3: BOX})) == {"3": stored}


def test_boxes_of_a_shrunk_picture_are_scaled_and_of_a_cut_one_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = turned(tmp_path / "images/1.png", 6, 1)
    for number in (2, 3, 4):
        turned(tmp_path / f"images/{number}.png", 1, number)
    twice = tuple(2 * side for side in BOX)
    images = [
        {"id": 1, "file_name": "1.png", "width": 2 * WIDTH, "height": 2 * HEIGHT},
        {"id": 2, "file_name": "2.png", "width": 2 * WIDTH, "height": 2 * HEIGHT},
        {"id": 3, "file_name": "3.png", "width": 2 * WIDTH, "height": 2 * WIDTH},
        {"id": 4, "file_name": "4.png", "width": 77, "height": 7},  # the instance file's own size goes before
    ]
    out = prepare(tmp_path, images, dict.fromkeys(range(1, 5), twice), instance_images=[images[1] | {"id": 4}])
    assert boxes_of(out) == {"1": place, "2": list(BOX), "4": list(BOX)}
    (row,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert row["what"] == "boxes" and row["where"].endswith("images[3]")
    assert "frame of 120 x 120 pixels, the picture has 60 x 36" in row["reason"]
    assert "1 rejected (boxes 1):" in capsys.readouterr().out
    assert "3" in pq.read_table(out / "images.parquet")["image_id"].to_pylist()


def test_more_images_with_boxes_of_a_wrong_frame_than_may_be_stop_the_stage(tmp_path: Path) -> None:
    for number in range(1, 5):
        turned(tmp_path / f"images/{number}.png", 1, number)
    images = [
        {"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT if n > 2 else 64} for n in range(1, 5)
    ]
    boxes = dict.fromkeys(range(1, 4), BOX)  # the fourth image has none and does not count
    message = (
        r"2 of 3 images' boxes are rejected, more than dataset\.max_rejected_share: 0\.6 allows: .*images\[1\]: the"
    )
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, images, boxes, max_rejected_share=0.6)
    assert not (tmp_path / "out").exists()
    assert boxes_of(prepare(tmp_path, images, boxes, max_rejected_share=0.7)) == {"3": list(BOX)}


def test_a_turned_picture_of_no_stated_size_brings_no_boxes(tmp_path: Path) -> None:
    turned(tmp_path / "images/1.png", 6, 1)
    out = prepare(tmp_path, [{"id": 1, "file_name": "1.png"}], {1: BOX})
    assert boxes_of(out) == {}
    assert "no width and height say" in pq.read_table(out / "rejected.parquet")["reason"][0].as_py()


def test_boxes_of_no_stated_frame_that_reach_beyond_the_picture_are_refused(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.png"} for number in (1, 2, 3, 4)]
    for number in (1, 2, 3, 4):
        turned(tmp_path / f"images/{number}.png", 1, number)
    larger = tuple(4.0 * side for side in BOX)  # of the picture before it was shrunk
    out = prepare(tmp_path, images, {1: BOX, 2: larger, 3: (0.1, 0.1, 0.5, 1), 4: (0, 0, 1, 1)})
    assert boxes_of(out) == {"1": list(BOX), "4": [0, 0, 1, 1]}
    row, shares = pq.read_table(out / "rejected.parquet").to_pylist()
    assert shares["what"] == "boxes" and "expected pixels, not shares of the picture" in shares["reason"]
    assert row["what"] == "boxes" and "the boxes reach beyond the picture of" in row["reason"]


def test_boxes_that_reach_beyond_a_picture_of_the_stated_size_are_refused(tmp_path: Path) -> None:
    """As corners do that are read as left, top, width and height; less than two pixels are rounding."""
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2, 3, 4)]
    for number in (1, 2, 3, 4):
        turned(tmp_path / f"images/{number}.png", 1, number)
    corners = (30, 20, 30 + 50, 20 + 30)
    rounded = (-0.9, -0.4, WIDTH + 1.9, HEIGHT + 0.6)
    out = prepare(tmp_path, images, {1: BOX, 2: corners, 3: rounded, 4: (5, -2.1, 20, 20)})
    assert list(boxes_of(out)) == ["1", "3"]
    for row in (rejected := pq.read_table(out / "rejected.parquet").to_pylist()):
        assert row["what"] == "boxes" and row["reason"] == "the boxes reach beyond the picture of 60 x 36 pixels"
    assert len(rejected) == 2


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (str(2 * WIDTH), str(2 * HEIGHT), ""),
        ("wide", 2 * HEIGHT, "nan x 72 pixels is none; expected a width and a height above 0"),
        (10**400, [2 * HEIGHT], "nan x nan pixels is none"),
        (2**40, 2**40, "frame of 1.09951e+12 x 1.09951e+12 pixels, the picture has 60 x 36"),
    ],
)
@pytest.mark.parametrize("key", ["images", "instance_images"])
def test_a_stated_size_is_used_or_refused_and_never_passed_over(
    tmp_path: Path, key: str, width: Any, height: Any, reason: str
) -> None:
    turned(tmp_path / "images/1.png", 1, 1)
    image = {"id": 1, "file_name": "1.png"}
    twice = {1: tuple(2 * side for side in BOX)}
    out = prepare(tmp_path, **{"images": [image], "boxes": twice, key: [image | {"width": width, "height": height}]})
    assert boxes_of(out) == ({} if reason else {"1": list(BOX)})
    rejected = pq.read_table(out / "rejected.parquet").to_pylist() if reason else []
    assert all(row["what"] == "boxes" and reason in row["reason"] for row in rejected)


def test_captions_and_boxes_behind_those_of_an_unusable_record_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 3):
        turned(tmp_path / f"images/{number}.png", 1, number)
    images = [{"id": 1, "width": WIDTH}, {"id": 2, "file_name": "2.png"}]
    images.append({"id": 3, "file_name": "3.png", "width": 2 * WIDTH})  # half a size says nothing
    out = prepare(tmp_path, images, dict.fromkeys((1, 2, 3), BOX))
    assert boxes_of(out) == {"2": list(BOX), "3": list(BOX)}
    assert "train.json: 1 images state only one of width and height; their boxes are taken" in capsys.readouterr().out
    assert {"2", "3"} < set(pq.read_table(out / "captions.parquet")["image_id"].to_pylist())
    assert [row["what"] for row in pq.read_table(out / "rejected.parquet").to_pylist()] == ["image"]


def test_a_negative_box_is_set_aside_and_an_empty_one_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2, 3, 4, 5)]
    for number in (1, 2, 3, 4, 5):
        turned(tmp_path / f"images/{number}.png", 1, number)
    boxes = {1: (30, 20, 20, 10), 2: (5, 5, 5, 9), 3: BOX, 4: (5, 9, 9, 5), 5: (5, 9, 9, 9)}
    out = prepare(tmp_path, images, boxes)
    assert boxes_of(out) == {"3": list(BOX)}
    rows = pq.read_table(out / "rejected.parquet").to_pylist()
    assert [row["what"] for row in rows] == ["box", "box"]
    assert rows[0]["where"].endswith("annotations[0].bbox")
    assert rows[0]["reason"] == "[30, 20, -10, -10] has a negative side; expected left, top, width and height"
    assert "instances.json: 2 boxes without an area are left out" in capsys.readouterr().out
    with pytest.raises(InputError, match="2 of 3 box records are rejected"):
        prepare(tmp_path, images, boxes, max_rejected_share=0.5)


def test_a_picture_with_damaged_exif_is_listed_and_rejected_by_extraction(tmp_path: Path) -> None:
    turned(tmp_path / "images/1.jpg", 6, 1)
    content = bytearray((tmp_path / "images/1.jpg").read_bytes())
    at = content.index(b"Exif\0\0") + 6
    content[at : at + 4] = b"\xff\xff\xff\xff"  # no byte order
    (tmp_path / "images/1.jpg").write_bytes(content)
    out = prepare(tmp_path, [{"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}], {1: BOX})
    row = next(row for row in pq.read_table(out / "images.parquet").to_pylist() if row["image_id"] == "1")
    assert (row["width"], row["height"]) in {(WIDTH, HEIGHT), (0, 0)} and row["sha256"]


def test_a_picture_whose_size_cannot_be_read_keeps_its_boxes_and_those_behind_it_are_turned(tmp_path: Path) -> None:
    expected = turned(tmp_path / "images/2.png", 6, 2)
    (tmp_path / "images/1.png").write_bytes(b"no picture")
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2)]
    assert boxes_of(prepare(tmp_path, images, {1: BOX, 2: BOX})) == {"1": list(BOX), "2": expected}


def test_a_box_that_is_none_is_set_aside(tmp_path: Path) -> None:
    turned(tmp_path / "images/1.png", 1, 1)
    image = {"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}
    nan = (float("nan"), 0, 5, 5)
    out = prepare(tmp_path, [image], {1: nan}, max_rejected_share=1.0)
    (row,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert row["what"] == "box" and "bbox: [nan, 0, nan, 5] is not four numbers" in f"{row['where']}: {row['reason']}"


def test_without_files_the_stated_size_is_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = {"id": 1, "file_name": "1.png", "width": 640, "height": 480}
    root = tmp_path / "coco"
    prepare(root, [], {})
    content = json.loads((root / "train.json").read_text())
    content["images"].append(image)
    content["annotations"].append({"image_id": 1, "caption": "x"})
    (root / "train.json").write_text(json.dumps(content))
    parts = [{"split": split, "images": "images", "captions": f"{split}.json"} for split in ("train", "val", "test")]
    params = DatasetParams.from_dict({"source": "coco", "root": str(root), "coco": {"parts": parts}})
    prepare_dataset(params, tmp_path / "out", pictures=False)
    row = next(row for row in pq.read_table(tmp_path / "out/images.parquet").to_pylist() if row["image_id"] == "1")
    assert (row["width"], row["height"], row["sha256"], row["orientation"]) == (640, 480, "", 1)


def test_boxes_that_are_left_out_are_counted_and_another_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2, 3)]
    for number in (1, 2, 3):
        turned(tmp_path / f"images/{number}.png", 1, number)
    assert boxes_of(prepare(tmp_path, images, {1: BOX, 7: BOX, 8: BOX})) == {"1": list(BOX)}
    said = capsys.readouterr().out
    assert "instances.json: 2 boxes of images that the caption file does not list are left out" in said
    for boxes in ({7: BOX, 8: BOX}, {7: (30, 20, 20, 10), 8: BOX}):
        with pytest.raises(InputError, match=r"instances\.json: annotations: all boxes are of images that .* not list"):
            prepare(tmp_path, images, boxes)
