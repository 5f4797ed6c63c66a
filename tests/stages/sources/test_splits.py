"""A table without splits is split by its pictures; none is in two splits unseen."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.prepare_dataset import prepare_dataset
from tests.stages.sources.conftest import GOOD, picture, splits


def without_split(count: int, columns: str = "") -> str:
    header = f"image,caption{',group' if columns else ''}\n"
    return header + "".join(f"{n}.jpg,text {n}{columns.format(n // 4) if columns else ''}\n" for n in range(count))


def test_a_table_without_splits_is_split_by_the_pictures(prepare: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(300):
        picture(tmp_path / f"raw/{number}.jpg", number)
    first = splits(prepare(without_split(300), table={"val_share": 0.2, "test_share": 0.3}))
    shares = [list(first.values()).count(split) / 300 for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.08)
    # Whatever else is there, and whatever it is called, a picture stays where it is; and copies are together.
    (tmp_path / "raw/0.jpg").rename(tmp_path / "raw/other.jpg")
    (tmp_path / "raw/1 copy.jpg").write_bytes((tmp_path / "raw/1.jpg").read_bytes())
    rows = without_split(150).replace("0.jpg,text 0\n", "other.jpg,text 0\n1 copy.jpg,text\n", 1)
    again = splits(prepare(rows, table={"val_share": 0.2, "test_share": 0.3}))
    assert again.pop("other") == first["0"] and again.pop("1 copy") == first["1"]
    assert again.items() <= first.items() and len(again) == 149


def test_a_group_is_never_cut(prepare: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(120):
        picture(tmp_path / f"raw/{number}.jpg", number)
    together = splits(prepare(without_split(120, ",product {}")))
    assert set(together.values()) == {"train", "val", "test"}
    for first in range(0, 120, 4):
        assert len({together[str(first + view)] for view in range(4)}) == 1
    with pytest.raises(InputError, match=r"in the group 'b' here and in 'a' at .*row 1"):
        prepare("image,caption,group\n1.jpg,x,a\n1.jpg,y,b\n2.jpg,z,\n")


def test_a_group_that_stated_splits_cut_is_said(
    prepare: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("train", "a"), ("val", "a"), ("test", "b"), ("train", "c"), ("train", "c"), ("test", "")]
    for number in range(len(rows)):
        picture(tmp_path / f"raw/{number}.jpg", number)
    table = "".join(f"{number}.jpg,x {number},{split},{group}\n" for number, (split, group) in enumerate(rows))
    prepare(f"image,caption,split,group\n{table}")
    said = "1 of 3 groups are in several splits; stated splits go first: 'a' (train, val)\n"
    assert said in capsys.readouterr().out


def test_shares_that_leave_no_training_images_are_an_error() -> None:
    with pytest.raises(InputError, match=r"dataset\.table"):
        DatasetParams.from_dict({"table": {"val_share": 0.5, "test_share": 0.5}})


def test_one_picture_in_two_splits_is_counted_and_named(
    prepare: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw/2.jpg").write_bytes((tmp_path / "raw/1.jpg").read_bytes())
    (tmp_path / "raw/4.jpg").write_bytes((tmp_path / "raw/3.jpg").read_bytes())
    rows = GOOD + "4.jpg,four,test\n"
    with pytest.raises(InputError, match=r"2 of 4 images are the same picture in two splits: '1' \(train\), '2' \(val"):
        prepare(rows)
    assert len(splits(prepare(rows, max_shared_share=0.5))) == 4
    said = capsys.readouterr().out
    assert "2 of 4 images are the same picture in two splits" in said
    assert "1 of 4 images are the same picture as another of their split" in said and "'4' and '3' (test)" in said


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("de", r"dataset\.table\.val_share: 0\.1 left the split val empty, of 2 images in all; raise it, or give"),
        ("dc", r"dataset\.table\.test_share: 0\.1 left the split test empty, of 2 images in all; raise it, or give"),
        (
            "bc",
            r"dataset\.table\.val_share: 0\.1 and test_share: 0\.1 left the split train empty, .*; lower them, or give",
        ),
    ],
)
def test_a_split_that_a_hash_leaves_empty_says_what_fills_it(
    prepare: Callable[..., Path], groups: str, said: str
) -> None:
    """By their hashes b is a group of the first tenth, which is test, c of the second, val; d and e are train."""
    rows = "".join(f"{number}.jpg,text,{group}\n" for number, group in enumerate(groups, start=1))
    with pytest.raises(InputError, match=rf"^{said} .*captions\.csv a column split$"):
        prepare(f"image,caption,group\n{rows}")


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("bccde", r"dataset\.table\.test_share: 0\.1 left the split test a single image, of 5 images in all; raise it"),
        ("bbcde", r"dataset\.table\.val_share: 0\.1 left the split val a single image, of 5 images in all; raise it"),
        ("bbccd", r"dataset\.table\.val_share: 0\.1 and test_share: 0\.1 left the split train a single image.*; lower"),
    ],
)
def test_a_split_that_a_hash_leaves_one_image_is_said_before_anything_is_trained(
    prepare: Callable[..., Path], tmp_path: Path, groups: str, said: str
) -> None:
    """One image has no other to be compared with: train and evaluate take two or more."""
    for number in range(1, 7):
        picture(tmp_path / f"raw/{number}.jpg", number)
    rows = "".join(f"{number}.jpg,text,{group}\n" for number, group in enumerate(groups, start=1))
    with pytest.raises(InputError, match=rf"^{said}"):
        prepare(f"image,caption,group\n{rows}")
    assert len(splits(prepare("image,caption,group\n" + "".join(
        f"{number}.jpg,text,{group}\n" for number, group in enumerate("bbccde", start=1)
    )))) == 6  # fmt: skip


@pytest.mark.parametrize(("share", "split", "remedy"), [(0, "test", "raise"), (1, "val", "lower")])
def test_a_split_that_the_share_of_coco_leaves_empty_says_so(
    tmp_path: Path, share: float, split: str, remedy: str
) -> None:
    for number, part in enumerate(("train", "val")):
        picture(tmp_path / f"images/{number}.jpg", number)
        content = {
            "images": [{"id": 1, "file_name": f"{number}.jpg"}],
            "annotations": [{"image_id": 1, "caption": "x"}],
        }
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    parts = [{"split": part, "images": "images", "captions": f"{part}.json"} for part in ("train", "val")]
    coco = {"parts": parts, "test_share": share}
    params = DatasetParams.from_dict({"source": "coco", "root": str(tmp_path), "coco": coco})
    said = f"^dataset.coco.test_share: {share} left the split {split} empty, of 2 images in all; {remedy} it, or add"
    with pytest.raises(InputError, match=said):
        prepare_dataset(params, tmp_path / "out")
