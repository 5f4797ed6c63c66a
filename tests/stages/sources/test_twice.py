"""A picture that is listed twice: its second record goes, with all that belongs to it."""

import json
from pathlib import Path
from typing import Any

from stages.params.dataset import DatasetParams
from stages.sources import coco, karpathy
from stages.sources.base import Source


def texts(source: Source) -> list[tuple[str, str]]:
    return [(caption.image_id, caption.text) for caption in source.captions]


def test_captions_of_a_second_karpathy_record_go_with_it(tmp_path: Path) -> None:
    def record(imgid: int, name: str, split: str, text: str) -> dict[str, Any]:
        return {"imgid": imgid, "filename": name, "split": split, "sentences": [{"raw": text}]}

    records = [record(0, "1.jpg", "test", "one"), record(1, "2.jpg", "train", "two"), record(2, "1.jpg", "train", "no")]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": records}))
    source = karpathy.read_source(DatasetParams(source="karpathy", root=str(tmp_path)), tmp_path / "unused")
    assert [(image.image_id, image.split) for image in source.images] == [("1", "test"), ("2", "train")]
    assert texts(source) == [("1", "one"), ("2", "two")]
    (row,) = source.rejected
    assert (row.what, row.where) == ("image", f"{tmp_path}/dataset.json: images[2]")
    assert row.reason == "the picture 'images/1.jpg' is there twice, first at images[0]"


def test_captions_and_boxes_of_a_second_coco_record_go_with_it(tmp_path: Path) -> None:
    """Twice in one file under two ids, and once more in another file."""

    def write(name: str, images: dict[int, str]) -> None:
        content = {
            "images": [{"id": i, "file_name": file, "width": 9, "height": 9} for i, file in images.items()],
            "annotations": [{"image_id": i, "caption": f"text {i}"} for i in images],
        }
        (tmp_path / name).write_text(json.dumps(content))

    write("train.json", {1: "1.jpg", 2: "2.jpg", 3: "1.jpg"})
    write("val.json", {4: "2.jpg", 5: "5.jpg"})
    boxes = [{"image_id": i, "category_id": 1, "bbox": [0, 0, i, i]} for i in (1, 3, 4)]
    instances = {"categories": [{"id": 1, "name": "dog"}], "annotations": boxes}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    parts = [
        {"split": split, "images": "images", "captions": f"{split}.json", "instances": "instances.json"}
        for split in ("train", "val")
    ]
    params = DatasetParams.from_dict({"source": "coco", "root": str(tmp_path), "coco": {"parts": parts}})
    source = coco.read_source(params, tmp_path / "unused")
    assert [image.image_id for image in source.images] == ["1", "2", "5"]
    assert texts(source) == [("1", "text 1"), ("2", "text 2"), ("5", "text 5")]
    assert [(box.image_id, box.box) for box in source.boxes] == [("1", (0, 0, 1, 1))]
    assert [(row.what, row.where, row.reason) for row in source.rejected] == [
        ("image", f"{tmp_path}/train.json: images[2].file_name",
         f"'images/1.jpg' is there twice, first at {tmp_path}/train.json: images[0]"),
        ("image", f"{tmp_path}/val.json: images[0].file_name",
         f"'images/2.jpg' is there twice, first at {tmp_path}/train.json: images[1]"),
    ]  # fmt: skip
