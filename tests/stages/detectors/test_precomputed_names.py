"""Whose features a published file holds is told by its name, or by its number where that can mean one image alone."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.detectors.precomputed_names import ImageNames
from stages.errors import InputError

COCO = "COCO_val2014_000000000042"
Match = Callable[[list[str], list[str]], dict[str, str]]


@pytest.fixture
def match(tmp_path: Path) -> Match:
    """A function (paths of the dataset's pictures, names) -> what is found; an id is a stem, or a path if that is."""

    def find(paths: list[str], names: list[str]) -> dict[str, str]:
        stems = [Path(path).stem for path in paths]
        ids = [stem if stems.count(stem) == 1 else path for stem, path in zip(stems, paths, strict=True)]
        pq.write_table(pa.table({"image_id": ids, "path": paths}), tmp_path / "images.parquet")
        return ImageNames(tmp_path).match(names, Path("features"))

    return find


def test_features_of_another_picture_with_the_same_number_are_not_taken(match: Match) -> None:
    names = ["shirts_12", "shoes_12", "shoes_13"]
    assert match(["shoes_12.jpg", "shoes_13.jpg"], names) == {"shoes_12": "shoes_12", "shoes_13": "shoes_13"}
    assert match(["shoes_12.jpg", "shoes_13.jpg"], ["shirts_12"]) == {}
    assert match(["12.jpg"], ["shirts_12", "12"]) == {"12": "12"}, "the exact name counts before the number"


def test_folders_tell_pictures_of_one_name_apart(match: Match) -> None:
    both = ["img/shoes/12.jpg", "img/shirts/12.jpg"]
    found = {"shoes/12": "img/shoes/12.jpg", "/old/img/shirts/12.jpg": "img/shirts/12.jpg"}
    assert match(both, list(found)) == found
    assert match(["shoes/12.jpg"], ["shirts/12.jpg", "shoes/12.jpg"]) == {"shoes/12.jpg": "12"}
    assert match(["12.jpg", "shoes/12.jpg"], ["12.jpg"]) == {"12.jpg": "12.jpg"}, "the whole path"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"val2014/{COCO}.jpg", "42"),
        (f"val2014/{COCO}.jpg", f"{COCO}.jpg"),
        (f"val2014/{COCO}.jpg", f"val2014/{COCO}.jpg"),
        (f"val2014/{COCO}.jpg", "COCO_train2014_000000000042"),
        (f"val2014/{COCO}.jpg", "000000000042"),
        ("000000000042.jpg", COCO),
        ("42.jpg", "000000000042.jpg"),
        ("shoes_12.jpg", "shoes_0012"),
        ("a.1.jpg", "a.1"),
        ("Caf\u00e9.jpg", "Cafe\u0301"),
    ],
)
def test_names_of_one_image(match: Match, path: str, name: str) -> None:
    assert match([path], [name]) == {name: Path(path).stem}


def test_a_dot_in_a_name_belongs_to_it(match: Match) -> None:
    assert match(["shoes.jpg"], ["shoes.v2"]) == {}


@pytest.mark.parametrize(
    ("paths", "names", "message"),
    [
        (["shoes_12.jpg", "shirts_12.jpg"], ["12"], "'12' fits the images 'shirts_12' and 'shoes_12' alike"),
        (["a/7.jpg", "b/7.jpg"], ["7"], "'7' fits the images 'a/7.jpg' and 'b/7.jpg' alike"),
        ([f"{COCO}.jpg"], ["42", COCO], "both fit the image 'COCO_val2014_000000000042'; expected one"),
        (["shoes_12.jpg"], ["12", "0012"], "features: '12' and '0012' both fit the image 'shoes_12'"),
        (["12.jpg"], ["shoes_12", "shirts_12"], "'shoes_12' and 'shirts_12' both fit the image '12'"),
        (["x.jpg"], ["x", "x.png"], "'x' and 'x.png' both fit the image 'x'"),
        (["IMG_1.jpg"], ["IMG_1.png", "IMG_1.jpg"], "'IMG_1.jpg' and 'IMG_1.png' both fit the image 'IMG_1'"),
        (["IMG_1.jpg"], ["IMG_1", "IMG_1.jpg"], "'IMG_1' and 'IMG_1.jpg' both fit the image 'IMG_1'"),
    ],
)
def test_what_fits_two_is_named(match: Match, paths: list[str], names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match(paths, names)


def test_a_long_name_is_not_printed_whole(match: Match) -> None:
    with pytest.raises(InputError) as error:
        match(["12.jpg"], ["a" * 900 + "_12", "b" * 900 + "_12"])
    assert len(str(error.value)) < 500


def test_what_a_number_alone_has_found_is_said(match: Match, capsys: pytest.CaptureFixture[str]) -> None:
    assert match(["a/IMG_0003.jpg", "a/IMG_0007.jpg"], ["3", "7"]) == {"3": "IMG_0003", "7": "IMG_0007"}
    assert "2 found by the number in their names alone: '3' for 'IMG_0003'" in capsys.readouterr().out


def test_rows_numbered_from_0_are_not_pictures_numbered_from_1(match: Match) -> None:
    pictures = [f"IMG_{number:04}.jpg" for number in range(1, 21)]
    with pytest.raises(InputError, match="its records are numbered from 0 and the pictures from 1"):
        match(pictures, [str(number) for number in range(20)])
    with pytest.raises(InputError, match="its records are numbered from 0 and the pictures from 1"):
        match([*pictures[:6], *pictures[7:]], [str(number) for number in range(20)])  # one was set aside
    with pytest.raises(InputError, match="its records are numbered from 1 and the pictures from 0"):
        match(["IMG_0000.jpg", *pictures[:5], *pictures[6:-1]], [str(number) for number in range(1, 21)])
    assert len(match(pictures, [str(number) for number in range(1, 21)])) == 20
    assert len(match(pictures[:6], [str(number) for number in range(20)])) == 6  # regions of more pictures
