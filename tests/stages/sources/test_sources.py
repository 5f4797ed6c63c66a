"""The sources that read a person's files: what they bring, and what they say of wrong files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.sources import coco, karpathy
from stages.sources.base import Source, check_folder, image_ids, join_path
from stages.sources.checks import check_rejected
from stages.sources.tables import tables


def read(module: Any, root: Path, **options: Any) -> Source:
    name = module.__name__.rpartition(".")[2]
    params = DatasetParams.from_dict({"source": name, "root": str(root), name: options})
    source = module.read_source(params, root / "unused")
    for key, folder in source.folders.items():
        check_folder(folder, key)
    check_rejected(source, 0.0)  # as prepare_dataset does with dataset.max_rejected_share: 0
    return source


def splits(source: Source) -> dict[str, str]:
    return {image.image_id: image.split for image in source.images}


def test_ids_are_stems_and_whole_paths_where_stems_collide() -> None:
    paths = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg", "b/3.png"]
    assert image_ids(paths) == ["a/1.jpg", "b/1.jpg", "2", "b/3.jpg", "b/3.png"]
    assert image_ids(["a/1.jpg", "a/1.jpg"]) == ["1", "1"]  # the same file twice is found by its id
    # The stem of the last is the whole path of the first.
    assert image_ids(["dog.jpg", "dog.png", "dog.jpg.png", "cat"]) == ["dog.jpg", "dog.png", "dog.jpg.png", "cat"]


def test_paths_are_joined_without_losing_what_the_check_needs() -> None:
    assert join_path("images", "", "1.jpg") == "images/1.jpg"
    assert join_path(".", "a\\1.jpg") == "a/1.jpg"
    assert join_path("images", "..", "1.jpg") == "images/../1.jpg"
    assert join_path("images", "/etc/1.jpg") == "/etc/1.jpg"


# --- karpathy


def sentence(text: str) -> dict[str, Any]:
    return {"raw": text, "tokens": text.lower().split()}


@pytest.fixture
def split_json(tmp_path: Path) -> Callable[..., Path]:
    """Writes a split JSON and its pictures; `edit` gets the records before they are written."""

    def write(edit: Callable[[list[dict[str, Any]]], Any] = lambda records: None) -> Path:
        records = [
            {"imgid": 0, "filename": "1.jpg", "split": "train", "sentences": [sentence("A dog."), sentence("It runs")]},
            {"imgid": 1, "filename": "2.jpg", "split": "restval", "sentences": [sentence("A cat")]},
            {
                "imgid": 2,
                "filename": "3.jpg",
                "filepath": "val2014",
                "split": "val",
                "sentences": [sentence("Two cats")],
            },
            {"imgid": 3, "filename": "4.jpg", "split": "test", "sentences": [{"tokens": ["no", "raw", "text"]}] * 1},
        ]
        edit(records)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "dataset.json").write_text(json.dumps({"images": records, "dataset": "made"}))
        return tmp_path

    return write


def test_karpathy(split_json: Callable[..., Path]) -> None:
    source = read(karpathy, split_json())
    assert splits(source) == {"1": "train", "2": "train", "3": "val", "4": "test"}
    assert [image.path for image in source.images] == [
        "images/1.jpg", "images/2.jpg", "images/val2014/3.jpg", "images/4.jpg",
    ]  # fmt: skip
    assert [(caption.image_id, caption.text) for caption in source.captions] == [
        ("1", "A dog."), ("1", "It runs"), ("2", "A cat"), ("3", "Two cats"), ("4", "no raw text"),
    ]  # fmt: skip


@pytest.mark.parametrize(("restval", "expected"), [("val", "val"), ("test", "test"), ("skip", None)])
def test_karpathy_restval(
    split_json: Callable[..., Path], restval: str, expected: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert splits(read(karpathy, split_json(), restval=restval)).get("2") == expected
    said = "1 images of the split restval are skipped (dataset.karpathy.restval)"
    assert (said in capsys.readouterr().out) == (restval == "skip")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r[1].pop("split"), r"dataset\.json: images\[1\]\.split: is missing"),
        (lambda r: r[1].update(split="extra"), r"images\[1\]\.split: 'extra' is not one of train, val, test, restval"),
        (lambda r: r[2].pop("filename"), r"images\[2\]\.filename: is missing"),
        (lambda r: r[2].update(filename=7), r"images\[2\]\.filename: 7 is not a text"),
        (lambda r: r[0].pop("sentences"), r"images\[0\]\.sentences: is missing"),
        (lambda r: r[0].update(sentences=["text"]), r"images\[0\]\.sentences\[0\]"),
        (lambda r: r[0]["sentences"][1].clear(), r"images\[0\]\.sentences\[1\]\.raw: is missing"),
        (lambda r: r[3].update(imgid=1), r"images\[3\]\.imgid: 1 is there twice, first at images\[1\]"),
        (lambda r: r.append("text"), r"images\[4\]: is not a JSON object"),
    ],
)
def test_karpathy_wrong_records(split_json: Callable[..., Path], edit: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(karpathy, split_json(edit))


def test_captions_have_the_ids_of_their_source_where_it_gives_each_one(split_json: Callable[..., Path]) -> None:
    def ids(*numbers: Any) -> list[int]:
        def edit(records: list[dict[str, Any]]) -> None:
            sentences = [sentence for record in records for sentence in record["sentences"]]
            for record, number in zip(sentences, numbers, strict=True):
                record["sentid"] = number

        return tables(read(karpathy, split_json(edit)))["captions"]["caption_id"].to_pylist()

    assert ids(770337, 5, 12, 2**62, 0) == [770337, 5, 12, 2**62, 0]
    for wrong in (5, None, "6", -1, 2**63, 1.0, True):
        assert ids(770337, 5, 12, 7, wrong) == [0, 1, 2, 3, 4]


def test_karpathy_wrong_files(split_json: Callable[..., Path]) -> None:
    root = split_json()
    with pytest.raises(InputError, match=r"other\.json: cannot be read .*dataset\.karpathy\.annotations"):
        read(karpathy, root, annotations="other.json")
    with pytest.raises(InputError, match=r"pictures: no such folder; dataset\.karpathy\.images"):
        read(karpathy, root, images="pictures")
    (root / "dataset.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"dataset\.json: is not JSON"):
        read(karpathy, root)
    (root / "dataset.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"dataset\.json: is not JSON"):
        read(karpathy, root)
    (root / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match=r"dataset\.json: is not a JSON object"):
        read(karpathy, root)


# --- coco


@pytest.fixture
def coco_files(tmp_path: Path) -> Callable[..., Path]:
    """Writes two caption files and an instance file; `edit` gets the three contents by name."""

    def write(edit: Callable[[dict[str, Any]], Any] = lambda contents: None) -> Path:
        contents: dict[str, Any] = {
            name: {
                "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids],
                "annotations": [{"image_id": i, "id": 10 * i, "caption": f"Picture {i}"} for i in ids],
            }
            for name, ids in (("captions_train", range(1, 4)), ("captions_val", range(100, 140)))
        }
        contents["instances_train"] = {
            "categories": [{"id": 18, "name": "dog"}],
            "annotations": [
                {"image_id": 1, "category_id": 18, "bbox": [10.5, 20, 30, 40], "iscrowd": 0},
                {"image_id": 1, "category_id": 18, "bbox": [0, 0, 9, 9], "iscrowd": 1},
                {"image_id": 2, "category_id": 18, "bbox": [5, 5, 0, 9], "iscrowd": 0},
                {"image_id": 77, "category_id": 18, "bbox": [5, 5, 8, 9], "iscrowd": 0},
            ],
        }
        edit(contents)
        for folder in ("train", "val"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, content in contents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


TRAIN = {"split": "train", "images": "train", "captions": "captions_train.json", "instances": "instances_train.json"}
VAL = {"split": "val", "images": "val", "captions": "captions_val.json"}


def test_coco(coco_files: Callable[..., Path]) -> None:
    source = read(coco, coco_files(), parts=[TRAIN, VAL], test_share=0.5)
    found = splits(source)
    assert [found[f"{i:012d}"] for i in (1, 2, 3)] == ["train"] * 3
    val = {image_id for image_id, split in found.items() if split == "val"}
    test = {image_id for image_id, split in found.items() if split == "test"}
    assert len(val) + len(test) == 40
    assert 10 <= len(test) <= 30
    assert source.images[0].path == "train/000000000001.jpg"
    assert (source.captions[0].image_id, source.captions[0].text) == ("000000000001", "Picture 1")
    # Left, top, width, height became corners; the crowd, the empty box and the unlisted image are left out.
    assert [(box.image_id, box.box, box.category) for box in source.boxes] == [
        ("000000000001", (10.5, 20, 40.5, 60), "dog")
    ]


def test_coco_test_images_stay_when_others_leave(coco_files: Callable[..., Path]) -> None:
    before = splits(read(coco, coco_files(), parts=[TRAIN, VAL]))

    def fewer(contents: dict[str, Any]) -> None:
        for key in ("images", "annotations"):
            del contents["captions_val"][key][::2]

    after = splits(read(coco, coco_files(fewer), parts=[TRAIN, VAL]))
    assert len(after) == 23
    assert after.items() <= before.items()


def test_coco_test_part_leaves_val_whole(coco_files: Callable[..., Path]) -> None:
    def third(contents: dict[str, Any]) -> None:
        contents["captions_test"] = {
            "images": [{"id": 5, "file_name": "5.jpg"}],
            "annotations": [{"image_id": 5, "caption": "Five"}],
        }

    test = {"split": "test", "images": "val", "captions": "captions_test.json"}
    found = splits(read(coco, coco_files(third), parts=[TRAIN, VAL, test]))
    assert sorted(split for split in found.values()) == ["test"] + ["train"] * 3 + ["val"] * 40


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["captions_train"]["annotations"][1].update(image_id=9),
         r"captions_train\.json: annotations\[1\]\.image_id: 9 is not in images"),
        (lambda c: c["captions_train"]["images"][2].update(id=1),
         r"captions_train\.json: images\[2\]\.id: 1 is there twice, first at .*images\[0\]"),
        (lambda c: c["captions_val"].pop("images"), r"captions_val\.json\.images: is missing"),
        (lambda c: c["captions_val"].pop("annotations"), r"captions_val\.json\.annotations: is missing"),
        (lambda c: c["captions_val"]["annotations"][0].pop("caption"), r"annotations\[0\]\.caption: is missing"),
        (lambda c: c["captions_val"]["annotations"][0].update(caption=None),
         r"annotations\[0\]\.caption: None is not a"),
        (lambda c: c["captions_val"]["images"][3].pop("file_name"), r"images\[3\]\.file_name: is missing"),
        (lambda c: c["instances_train"]["categories"][0].update(name="\ud800"),
         r"instances_train\.json: categories\[0\]\.name: .* holds half a character"),
        (lambda c: c["instances_train"]["categories"].append({"id": c["instances_train"]["categories"][0]["id"],
                                                              "name": "another"}),
         r"instances_train\.json: categories\[\d\]\.id: \d+ is '\w+' already, here 'another'"),
        (lambda c: c["instances_train"]["annotations"][0].update(category_id=5),
         r"instances_train\.json: annotations\[0\]\.category_id: 5 is not in categories"),
        (lambda c: c["instances_train"]["annotations"][0].update(bbox=[1, 2, 3]),
         r"bbox: \[1, 2, 3\] is not four numbers"),
        (lambda c: c["instances_train"].pop("categories"), r"instances_train\.json\.categories: is missing"),
    ],
)  # fmt: skip
def test_coco_wrong_records(coco_files: Callable[..., Path], edit: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(coco, coco_files(edit), parts=[TRAIN, VAL])


def test_coco_wrong_files(coco_files: Callable[..., Path]) -> None:
    root = coco_files()
    with pytest.raises(InputError, match=r"dataset\.coco\.parts: is empty"):
        read(coco, root, parts=[])
    with pytest.raises(InputError, match=r"photos: no such folder; dataset\.coco\.parts\.images"):
        read(coco, root, parts=[VAL | {"images": "photos"}])
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read(coco, root, parts=[VAL | {"captions": "none.json"}])
    with pytest.raises(InputError, match=r"none\.json: cannot be read .*dataset\.coco\.parts\.instances"):
        read(coco, root, parts=[VAL | {"instances": "none.json"}])


def test_coco_on_real_annotations(coco_mini: Path) -> None:
    parts = [
        {"split": split, "images": f"{split}2017", "captions": f"annotations/captions_{split}2017.json",
         "instances": f"annotations/instances_{split}2017.json"}
        for split in ("train", "val")
    ]  # fmt: skip
    source = read(coco, coco_mini, parts=parts)
    assert set(splits(source).values()) == {"train", "val", "test"}
    assert len(source.captions) >= 5 * len(source.images) > 500
    assert all((coco_mini / image.path).is_file() for image in source.images)
    assert {"person", "dog", "car"} <= {box.category for box in source.boxes}
