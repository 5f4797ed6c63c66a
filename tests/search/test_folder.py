"""A folder of pictures: what comes, goes, moves and breaks; other models; several processes; kills."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from search.collection import PictureCollection, UnknownPicture
from search.folder import FolderSource
from search.listing import Listing, list_pictures
from search.pictures import Pictures, Status
from stages.errors import InputError
from tests.search.folders import Folder, make_model, shards, wait_for

SENTENCE = "two dogs in the snow"


def rescan(collection: PictureCollection) -> None:
    collection.rescan()
    wait_for(collection)


def test_a_folder_can_be_searched(folder: Folder, opened: PictureCollection) -> None:
    status = opened.status()
    assert (status.total, status.ready, status.rejected, status.problem) == (7, 7, [], None)
    answer = opened.search(SENTENCE, top=5)
    assert (len(answer.hits), answer.total, answer.unknown) == (5, 7, [])
    assert opened.file(answer.hits[0].picture_id).path.parent == folder.images
    view = opened.pair(answer.hits[0].picture_id, SENTENCE)
    assert view.score == pytest.approx(answer.hits[0].score, abs=1e-5)
    assert (view.width, view.height) == opened.pixels(answer.hits[0].picture_id).shape[1::-1]


def test_a_picture_finds_itself(folder: Folder, opened: PictureCollection) -> None:
    name = opened.source.pictures().ids[3]
    hit = opened.similar(opened.find_regions(opened.pixels(name)), top=1)[0]
    assert (hit.picture_id, hit.score) == (name, pytest.approx(1.0, abs=1e-3))


def test_new_pictures_come_and_removed_ones_go(folder: Folder, opened: PictureCollection) -> None:
    before, gone = shards(folder), opened.source.pictures().ids[0]
    folder.draw("inner/new.png", 50)
    (folder.images / "0.png").unlink()
    rescan(opened)
    assert folder.names(opened) == ["1.png", "2.png", "3.png", "4.png", "5.png", "6.png", "inner/new.png"]
    after = shards(folder)
    assert {path: after[path] for path in before} == before and len(after) == len(before) + 1
    with pytest.raises(UnknownPicture):
        opened.file(gone)
    assert gone not in {hit.picture_id for hit in opened.search(SENTENCE, top=100).hits}
    assert opened.source.pictures().engine.count() == 7


def test_a_moved_picture_is_known_by_its_content(folder: Folder, opened: PictureCollection) -> None:
    before, hits = shards(folder), opened.search(SENTENCE, top=100).hits
    (folder.images / "elsewhere").mkdir()
    (folder.images / "0.png").rename(folder.images / "elsewhere/renamed.png")
    rescan(opened)
    assert "elsewhere/renamed.png" in folder.names(opened)
    assert shards(folder) == before
    assert opened.search(SENTENCE, top=100).hits == hits


def test_a_changed_picture_is_another_one(folder: Folder, opened: PictureCollection) -> None:
    old = opened.source.pictures().ids[0]
    folder.draw("0.png", 60)
    rescan(opened)
    assert folder.names(opened)[0] == "0.png" and old not in opened.source.pictures().ids
    assert opened.status().ready == 7


def test_two_files_of_one_content_are_one_picture(folder: Folder, opened: PictureCollection) -> None:
    shutil.copyfile(folder.images / "0.png", folder.images / "copy.png")
    rescan(opened)
    assert opened.status().ready == 7 and "copy.png" not in folder.names(opened)
    assert opened.status().copies == 1
    (folder.images / "0.png").unlink()
    rescan(opened)
    assert opened.status().ready == 7 and "copy.png" in folder.names(opened)


def test_broken_pictures_are_listed_with_the_reason_and_others_are_searched(folder: Folder) -> None:
    (folder.images / "empty.jpg").touch()
    (folder.images / "text.png").write_text("no picture")
    whole = (folder.images / "0.png").read_bytes()
    (folder.images / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder.images / "link.png").symlink_to(folder.images / "nowhere.png")
    (folder.images / "torn.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder.images / "camera.CR3").write_bytes(b"\0\0\0\x18ftypcrx ")
    (folder.images / "notes.txt").write_text("no picture, and none by its name")
    (folder.images / ".hidden.png").write_bytes(whole)
    os.mkfifo(folder.images / "pipe.png")
    collection = folder.open()
    collection.start()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.total, status.rejected_count, status.problem) == (7, 7, 7, None)
    reasons = dict(status.rejected)
    assert reasons["empty.jpg"] == "the file is empty"
    assert reasons["camera.CR3"] == "is in a format that is not read (.cr3)"
    assert reasons["torn.HEIC"] == "is no image of a known format"
    assert reasons["text.png"] == "is no image of a known format"
    assert reasons["torn.png"].startswith("cannot be decoded")
    assert reasons["link.png"].startswith("cannot be read") and reasons["pipe.png"] == "is not a file"


def test_pictures_of_one_name_in_two_folders_are_told_apart(folder: Folder) -> None:
    for place in ("2021/IMG_1.png", "2022/IMG_1.png"):
        folder.draw(place, int(place[:4]))
    collection = folder.open()
    collection.start()
    wait_for(collection)
    collection.close()
    names = set(folder.names(collection))
    assert {"2021/IMG_1.png", "2022/IMG_1.png", "0.png"} <= names


def test_broken_pictures_are_not_looked_at_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.images / "text.png").write_text("no picture")
    collection = folder.open()
    collection.start()
    first = wait_for(collection)
    collection.close()
    again = folder.open()
    monkeypatch.setattr(again.source, "_finder", None)  # nothing is there to look with
    monkeypatch.setattr(again.source._cache, "finder", None)
    again.start()
    assert wait_for(again) == first
    again.close()


def test_a_folder_that_is_none_is_an_error_that_names_it(folder: Folder) -> None:
    shutil.rmtree(folder.images)
    with pytest.raises(InputError, match="images: is not a folder"):
        folder.open()


def test_an_empty_folder_is_searched_without_hits(folder: Folder) -> None:
    shutil.rmtree(folder.images)
    folder.images.mkdir()
    collection = folder.open()
    collection.start()
    assert wait_for(collection).ready == 0
    assert collection.search(SENTENCE, top=5).hits == []
    assert collection.similar(collection.find_regions(np.zeros((50, 50, 3), np.uint8)), top=5) == []
    collection.close()


def test_a_folder_that_goes_is_said_and_comes_back(
    folder: Folder, opened: PictureCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*arguments: Any) -> Listing:
        seen.append(opened.status())
        return list_pictures(*arguments)

    seen: list[Status] = []
    monkeypatch.setattr("search.folder.list_pictures", look)
    folder.images.rename(folder.root / "away")
    rescan(opened)
    assert re.match("Indexing has stopped: .*/images: is not a folder", opened.status().progress)
    assert len(opened.search(SENTENCE, top=100).hits) == 7
    (folder.root / "away").rename(folder.images)
    rescan(opened)
    assert (opened.status().problem, opened.status().ready) == (None, 7)
    assert seen[1].scanning and seen[1].problem is None, "what is tried again has not stopped"
    assert seen[1].progress == "All 7 pictures found so far can be searched; the folder is being read."
    assert Status(0, 0, scanning=True).progress == "The folder is being read."


def test_another_model_reads_the_same_features(folder: Folder, opened: PictureCollection) -> None:
    before = shards(folder)
    other = folder.open(make_model(folder.root / "models/other", seed=5))
    other.start()
    wait_for(other)
    assert shards(folder) == before
    ours, theirs = (c.source.pictures().engine.search(np.eye(12, dtype=np.float32)[:1], 7)[1] for c in (opened, other))
    assert not np.allclose(ours, theirs)
    assert [hit.score for hit in other.search(SENTENCE, 7).hits] != [
        hit.score for hit in opened.search(SENTENCE, 7).hits
    ]
    other.close()


def test_a_model_of_another_detector_is_an_error(folder: Folder) -> None:
    (folder.model / "fingerprint.json").write_text('{"detector": "%s"}' % ("b" * 64))
    (folder.model / "detector/detector.json").unlink()
    with pytest.raises(InputError, match=r"detector\.json"):
        folder.open()


INDEX = """
import sys, time
from pathlib import Path
import search.folder
from search.collection import open_folder
search.folder.FIRST = 2  # many shards
collection = open_folder(Path(sys.argv[1]), model=Path(sys.argv[2]), cache=Path(sys.argv[3]))
collection.start()
print("started", flush=True)
while collection.status().scanning:
    time.sleep(0.05)
status = collection.status()
print(status.ready, status.rejected_count, status.problem, flush=True)
collection.close()
"""


def start(folder: Folder) -> subprocess.Popen[str]:
    arguments = [str(folder.images), str(folder.model), str(folder.root / "cache")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", INDEX, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_killed_at_any_moment_it_goes_on(folder: Folder, opened: PictureCollection) -> None:
    expected = opened.search(SENTENCE, top=100).hits
    opened.close()
    shutil.rmtree(folder.root / "cache")
    for count in (1, 3):  # shards that are there when it is killed
        with start(folder) as process:
            deadline = time.monotonic() + 250
            while len(shards(folder)) < count:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
    before = shards(folder)
    collection = folder.open()
    collection.start()
    assert wait_for(collection).ready == 7
    assert {path: shards(folder)[path] for path in before} == before
    assert collection.search(SENTENCE, top=100).hits == pytest.approx(expected)
    collection.close()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """A network in which several threads share a batch: one thread computes the same of every batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_what_is_seen_in_a_picture_does_not_depend_on_what_it_was_looked_at_with(
    two_threads: None, folder: Folder, opened: PictureCollection, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, hits = opened.source.pictures(), opened.search(SENTENCE, top=100).hits
    shutil.rmtree(folder.root / "cache")
    monkeypatch.setattr("search.folder.FIRST", first)
    again = folder.open()
    again.start()
    wait_for(again)
    assert len(shards(folder)) == -(-7 // first)
    features, _ = again.source.pictures().store.features(range(7))
    np.testing.assert_array_equal(features, pictures.store.features(range(7))[0])
    assert again.search(SENTENCE, top=100).hits == hits
    again.close()


def test_what_is_new_can_be_searched_in_steps_that_grow_with_what_is_there(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FIRST": 1, "MOST": 1, "PUBLISH_AT": 2}.items():
        monkeypatch.setattr(f"search.folder.{name}", value)
    ready: list[int] = []
    snapshot = FolderSource._snapshot

    def noted(source: FolderSource) -> Pictures:
        pictures = snapshot(source)
        ready.append(len(pictures))
        return pictures

    monkeypatch.setattr(FolderSource, "_snapshot", noted)
    collection = folder.open()
    collection.start()
    wait_for(collection)
    collection.close()
    assert ready == [0, 1, 2, 3, 5, 7], "each goes through all pictures"
    assert len(shards(folder)) == 7


def test_two_processes_share_the_work_on_one_folder(folder: Folder) -> None:
    processes = [start(folder), start(folder)]
    assert [process.communicate(timeout=400)[0].splitlines()[-1] for process in processes] == ["7 0 None"] * 2
    contents = [path.name for path in shards(folder)]
    assert len(contents) == 4  # 2, 2, 2 and 1: none was looked at twice
