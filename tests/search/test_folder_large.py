"""What a folder of very many pictures costs while nothing changes."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

from search.collection import PictureCollection
from stages.content.hashes import file_hashes
from tests.search.folders import Folder, wait_for


def rescan(collection: PictureCollection) -> None:
    collection.rescan()
    wait_for(collection)


def test_a_look_at_what_has_not_changed_and_the_status_take_no_time_for_each_picture(
    folder: Folder, opened: PictureCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def noted(files: Sequence[Path], cache: Path | None) -> Iterator[str | OSError]:
        hashed.extend(file.name for file in files)
        return file_hashes(files, cache)

    monkeypatch.setattr("search.listing.file_hashes", noted)
    monkeypatch.setattr("search.listing.SETTLED", 3600.0)
    rescan(opened)
    hashed.clear()
    monkeypatch.setattr("search.listing.SETTLED", 0.0)
    rescan(opened)
    assert len(hashed) == 7, "which had only just been written when they were listed before"
    indexed = Mock(wraps=opened.source._index)  # type: ignore[attr-defined]
    monkeypatch.setattr(opened.source, "_index", indexed)
    rescan(opened)
    assert len(hashed) == 7 and not indexed.called
    old, changed = (folder.images / "3.png").stat(), bytearray((folder.images / "3.png").read_bytes())
    changed[-1] ^= 1
    (folder.images / "3.png").write_bytes(changed)
    os.utime(folder.images / "3.png", ns=(old.st_atime_ns, old.st_mtime_ns))
    (folder.images / "4.png").unlink()
    rescan(opened)
    assert hashed[7:] == ["3.png"] and indexed.called and opened.status().ready == 6
    names = opened.source._listing.paths  # type: ignore[attr-defined]
    names.update((str(number), f"{number}.jpg") for number in range(300_000))
    begun = time.process_time()
    for _ in range(10):
        opened.status()
    assert time.process_time() - begun < 0.1
