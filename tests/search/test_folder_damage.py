"""What is torn, changed, removed or made again while a folder is searched: shards, pictures, descriptions."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from search.collection import Hit, PictureCollection
from search.listing import Listing, list_pictures
from stages.errors import InputError
from tests.search.folders import Folder, shards, wait_for, wait_until

SENTENCE = "two dogs in the snow"


def flip_a_byte(shard: Path) -> bytes:
    """The file, as it is now; another file of the same name."""
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    return bytes(content)


@pytest.fixture
def hits(folder: Folder) -> list[Hit]:
    """What the whole folder answers; it is indexed, and closed again."""
    collection = folder.open()
    collection.start()
    wait_for(collection)
    answer = collection.search(SENTENCE, top=100).hits
    collection.close()
    return answer


class Held:
    """A collection that checks its shards only once it may."""

    def __init__(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.collection = folder.open()
        self._may, cache = threading.Event(), self.collection.source._cache  # type: ignore[attr-defined]
        self.scanning_when_files_go: list[bool] = []
        damaged, forget = cache.damaged, cache.forget

        def damaged_later(going: object) -> object:
            self._may.wait(60)
            return damaged(going)

        def forget_seen(*arguments: object) -> None:
            self.scanning_when_files_go.append(self.collection.status().scanning)
            forget(*arguments)

        monkeypatch.setattr(cache, "damaged", damaged_later)
        monkeypatch.setattr(cache, "forget", forget_seen)
        self.collection.start()
        wait_for(self.collection)

    def check(self, folder: Folder, damaged: bytes) -> None:
        """Let the shards be checked, and wait until what is damaged is made again."""
        self._may.set()
        wait_until(bool, lambda: self.scanning_when_files_go)
        wait_for(self.collection)
        (shard,) = shards(folder)
        assert shard.read_bytes() != damaged


def test_a_search_goes_on_while_its_shards_are_removed(folder: Folder, hits: list[Hit]) -> None:
    collection = folder.open()
    collection.start()
    wait_for(collection)
    for shard in shards(folder):  # none has been read yet
        shard.unlink()
    assert collection.search(SENTENCE, top=100).hits == hits
    name = hits[0].picture_id
    assert collection.pair(name, SENTENCE).score == pytest.approx(hits[0].score, abs=1e-5)
    assert len(collection.similar_to(name, 100)) == 6
    collection.close()


def test_a_file_that_another_process_writes_is_no_error(folder: Folder, opened: PictureCollection) -> None:
    (shard,) = shards(folder)
    (shard.parent / ".shard.tmp").symlink_to("gone")  # listed, and not there when it is looked at
    folder.open().close()


def test_a_torn_shard_is_looked_at_again(folder: Folder, opened: PictureCollection) -> None:
    hits = opened.search(SENTENCE, top=100).hits
    (shard,) = shards(folder)
    shard.write_bytes(shard.read_bytes()[:-100])
    again = folder.open()
    again.start()
    assert wait_for(again).ready == 7
    assert again.search(SENTENCE, top=100).hits == hits
    again.close()


def test_a_shard_that_cannot_be_read_for_want_of_memory_stays(
    folder: Folder, opened: PictureCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = shards(folder)

    def full(_: str) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(pyarrow, "memory_map", full)
    again = folder.open()
    again.start()
    problem = wait_for(again).problem
    assert problem and shard.name in problem and "Cannot allocate memory" in problem
    again.close()
    assert shard.exists()


def test_a_changed_byte_of_a_shard_is_seen_and_its_pictures_are_looked_at_again(
    folder: Folder, hits: list[Hit]
) -> None:
    (shard,) = shards(folder)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    again = folder.open()
    again.start()
    wait_until(lambda seen: seen != content, lambda: shard.read_bytes() if shard.exists() else content)
    assert wait_for(again).ready == 7
    assert again.search(SENTENCE, top=100).hits == hits
    again.close()


def test_numbers_of_a_damaged_shard_that_are_not_finite_are_said_and_made_again(
    folder: Folder, opened: PictureCollection
) -> None:
    (shard,) = shards(folder)
    content = shard.read_bytes()
    with shard.open("r+b") as file:  # under the search that has it mapped
        file.seek(len(content) // 2)
        file.write(b"\xff\x7f" * 500)
    with pytest.raises(InputError, match=r"'\d.png': its score is not finite; expected regions and weights"):
        opened.search(SENTENCE, top=100)
    opened.rescan()
    wait_until(lambda seen: seen == content, lambda: shard.read_bytes() if shard.exists() else b"")
    wait_for(opened)
    assert len(opened.search(SENTENCE, top=100).hits) == 7


def test_what_was_made_of_a_damaged_shard_is_not_used_once_it_is_made_again(
    folder: Folder, hits: list[Hit], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = shards(folder)
    damaged = flip_a_byte(shard)
    held = Held(folder, monkeypatch)
    assert held.collection.search(SENTENCE, top=100).hits != hits, "not known to be damaged yet"
    held.check(folder, damaged)
    assert held.scanning_when_files_go == [True], "whoever waits for the status gets no answer of damaged regions"
    assert held.collection.search(SENTENCE, top=100).hits == hits
    assert len(held.collection.similar_to(hits[0].picture_id, 100)) == 6
    held.collection.close()


def test_a_shard_that_another_process_has_made_again_is_read_again(
    folder: Folder, hits: list[Hit], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = shards(folder)
    damaged = flip_a_byte(shard)
    first, second = Held(folder, monkeypatch), Held(folder, monkeypatch)
    first.check(folder, damaged)
    mended = shards(folder)
    second.check(folder, damaged)
    assert shards(folder) == mended, "what is whole stays"
    for held in (first, second):
        assert held.collection.search(SENTENCE, top=100).hits == hits
        held.collection.close()


@pytest.mark.parametrize("looks", [1, 2])
def test_pictures_that_could_not_be_opened_for_a_while_are_looked_at_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """As on a share that was away: the same pictures are a shard of the same name, which had none of them."""
    read = Path.read_bytes

    def away(path: Path) -> bytes:
        if path.suffix == ".png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    collection = folder.open()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", away)
        collection.start()
        for _ in range(looks):
            status = wait_for(collection)
            assert (status.ready, status.rejected_count, status.problem) == (0, 7, None)
            collection.rescan()
            wait_for(collection)
    collection.rescan()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.rejected_count, status.problem) == (7, 0, None)


@pytest.mark.parametrize("reason", ["", "Unable to allocate 1.0 GiB"])
def test_a_picture_that_could_not_be_decoded_for_want_of_memory_is_looked_at_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def full(_: Any) -> None:
        raise MemoryError(reason)

    collection = folder.open()
    with monkeypatch.context() as patched:
        patched.setattr("stages.detectors.images._pixels", full)
        collection.start()
        status = wait_for(collection)
        assert (status.ready, status.rejected_count) == (0, 7)
    collection.rescan()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.rejected_count, status.problem) == (7, 0, None)


def test_a_picture_that_changes_while_it_is_indexed_is_said_and_looked_at_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_and_change(*arguments: Any) -> Listing:
        listing = list_pictures(*arguments)
        folder.draw("0.png", 50)
        return listing

    collection = folder.open()
    with monkeypatch.context() as patched:
        patched.setattr("search.folder.list_pictures", list_and_change)
        collection.start()
        status = wait_for(collection)
    assert (status.ready, status.rejected) == (6, [("0.png", "changed while it was indexed")])
    collection.rescan()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.rejected_count) == (7, 0)


@pytest.mark.parametrize("damage", ['{"detector": {"backend": "eyes"}, "regions": {}}', "{}", "[]", "no json"])
def test_a_damaged_description_of_features_is_an_error(folder: Folder, damage: str) -> None:
    (folder.model / "extraction.json").write_text(damage)
    with pytest.raises(InputError, match=r"extraction\.json"):
        folder.open()
