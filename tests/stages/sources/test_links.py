"""Names and links of pictures: however they are composed, wherever they lead."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from tests.stages.sources.conftest import GOOD, picture, splits


def test_a_folder_of_pictures_may_be_a_link_that_the_params_name(prepare: Callable[..., Path], tmp_path: Path) -> None:
    for number in (1, 2, 3):
        picture(tmp_path / f"disk/{number}.jpg", number)
    (tmp_path / "raw/photos").symlink_to(tmp_path / "disk")
    out = prepare(GOOD, table={"images": "photos"})
    assert pq.read_table(out / "images.parquet")["path"].to_pylist()[0] == "photos/1.jpg"
    (tmp_path / "disk/2.jpg").unlink()
    (tmp_path / "disk/2.jpg").symlink_to(tmp_path / "raw/2.jpg")  # out of the folder again
    with pytest.raises(InputError, match=r"row 2: path 'photos/2\.jpg' leaves .*disk|photos/2\.jpg is a link to .*raw"):
        prepare(table={"images": "photos"})


def test_a_link_that_is_refused_is_named_and_can_be_allowed(prepare: Callable[..., Path], tmp_path: Path) -> None:
    picture(tmp_path / "disk/2.jpg", 2)
    (tmp_path / "raw/sub").symlink_to(tmp_path / "disk")
    rows = GOOD.replace("2.jpg", "sub/2.jpg")
    with pytest.raises(
        InputError, match=r"leaves the image root .*raw: .*raw/sub is a link to .*disk; dataset\.linked_folders names"
    ):
        prepare(rows)
    assert len(splits(prepare(rows, linked_folders=[str(tmp_path / "disk")]))) == 3
    (tmp_path / "disk/2.jpg").unlink()
    (tmp_path / "disk/2.jpg").symlink_to("gone.jpg")
    with pytest.raises(InputError, match=r"no image file .*sub/2\.jpg: .*2\.jpg is a link to gone\.jpg, where nothing"):
        prepare(rows, linked_folders=[str(tmp_path / "disk")])
    (tmp_path / "disk/2.jpg").unlink()
    (tmp_path / "disk/2.jpg").symlink_to("2.jpg")  # to itself
    with pytest.raises(InputError, match=r"row 2: .*2\.jpg is a link to 2\.jpg"):
        prepare(rows, linked_folders=[str(tmp_path / "disk")])


@pytest.mark.parametrize("config", ["", "[core]\n    autostage = true\n[cache]\n    dir = ../shared cache\n"])
def test_links_into_the_cache_of_dvc_are_followed(prepare: Callable[..., Path], tmp_path: Path, config: str) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(config)
    cached = tmp_path / ("shared cache" if config else ".dvc/cache") / "files/md5/ab/cdef"
    cached.parent.mkdir(parents=True)
    (tmp_path / "raw/2.jpg").rename(cached)
    (tmp_path / "raw/2.jpg").symlink_to(cached)
    assert len(splits(prepare(GOOD))) == 3
    (tmp_path / "raw/2.jpg").unlink()
    (tmp_path / "raw/2.jpg").symlink_to(tmp_path / ".dvc/config")
    with pytest.raises(InputError, match="leaves the image root"):
        prepare(GOOD)


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_names_are_the_same_however_their_accents_are_composed(
    prepare: Callable[..., Path], tmp_path: Path, on_disk: Any, in_table: Any
) -> None:
    name = "Größe/Café.jpg"
    picture(tmp_path / "raw" / unicodedata.normalize(on_disk, name), 9)
    out = prepare(GOOD + unicodedata.normalize(in_table, f"{name},x,train\n"))
    row = pq.read_table(out / "images.parquet").to_pylist()[3]
    assert (tmp_path / "raw" / row["path"]).is_file()
    assert row["image_id"] == "Café" and row["width"] == 20


def test_a_file_that_is_there_in_other_case_is_named(prepare: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "raw/2.jpg").rename(tmp_path / "raw/2.JPG")
    with pytest.raises(InputError, match=r"row 2: no image file .*/raw/2\.jpg; 2\.JPG is there, in other case$"):
        prepare(GOOD)
    picture(tmp_path / "raw/Été/Photo.PNG", 9)
    decomposed = unicodedata.normalize("NFD", "été/photo.png")
    with pytest.raises(InputError, match=r"row 1: no image file .*; Été/Photo\.PNG is there, in other case$"):
        prepare(f"image,caption,split\n{decomposed},x,train\n1.jpg,one,val\n3.jpg,three,test\n")
    with pytest.raises(InputError, match=r"row 2: no image file .*/raw/4\.jpeg$"):
        prepare(GOOD.replace("2.jpg", "4.jpeg"))
