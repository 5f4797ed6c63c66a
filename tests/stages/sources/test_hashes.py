"""Pictures that have not changed are not read again to be hashed."""

import hashlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.content import hashes
from stages.content.hashes import SETTLED, content_hash, file_hashes
from stages.params.dataset import DatasetParams
from stages.prepare_dataset import prepare_dataset


def test_one_added_picture_is_the_only_one_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    rows = ["image,caption,split"]
    for number, split in enumerate(("train", "val", "test", "train")):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,text,{split}")
    read: list[str] = []
    plain = hashes._read
    monkeypatch.setattr(hashes, "_read", lambda file: read.append(file.name) or plain(file))
    params = DatasetParams.from_dict({"source": "table", "root": str(tmp_path)})
    for count in (4, 5):
        (tmp_path / "captions.csv").write_text("\n".join(rows[:count]))
        prepare_dataset(params, tmp_path / "out", hashes=tmp_path / "cache.sqlite")
    assert sorted(read[:3]) == ["0.png", "1.png", "2.png"] and read[3:] == ["3.png"]
    for row in pq.read_table(tmp_path / "out/images.parquet").to_pylist():
        assert row["sha256"] == hashlib.sha256((tmp_path / row["path"]).read_bytes()).hexdigest()
    # What the stage named_files hashed, this one need not.
    content_hash(tmp_path / "0.png", tmp_path / "cache.sqlite")
    assert len(read) == 4


def test_a_file_as_new_as_the_clock_is_read_again(tmp_path: Path) -> None:
    file, cache = tmp_path / "1.jpg", tmp_path / "cache.sqlite"
    file.write_bytes(b"one")
    stat = file.stat()
    assert list(file_hashes([file], cache)) == [hashlib.sha256(b"one").hexdigest()]
    file.write_bytes(b"two")  # within one tick of a coarse clock
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert list(file_hashes([file], cache)) == [hashlib.sha256(b"two").hexdigest()]


def test_a_file_is_known_by_its_own_place_however_links_lead_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED", -60.0)
    monkeypatch.chdir(tmp_path)
    folder, cache = tmp_path / "a/b", tmp_path / "cache.sqlite"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"one")
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "2.jpg").symlink_to("linked/1.jpg")
    ways = [folder / "1.jpg", Path("a/b/1.jpg"), Path("linked/1.jpg"), Path("a/../linked/1.jpg"), Path("2.jpg")]
    assert set(file_hashes(ways, cache)) == {hashlib.sha256(b"one").hexdigest()}
    with closing(sqlite3.connect(cache)) as store:
        assert store.execute("select path from seen").fetchall() == [(str(folder / "1.jpg"),)]


def test_a_file_that_cannot_be_read_is_said_and_the_others_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"one")
    missing, one = file_hashes([tmp_path / "0", tmp_path / "1"], None)
    assert isinstance(missing, FileNotFoundError) and one == hashlib.sha256(b"one").hexdigest()


def test_a_damaged_cache_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"content")
    cache = tmp_path / "cache.sqlite"
    cache.write_bytes(b"torn" * 300)
    expected = [hashlib.sha256(b"content").hexdigest()]
    assert list(file_hashes([tmp_path / "file"], cache)) == expected
    assert "cache.sqlite: cannot be read" in capsys.readouterr().err
    assert list(file_hashes([tmp_path / "file"], cache)) == expected and not capsys.readouterr().err


@pytest.mark.parametrize("damage", ["pages", "another table"])
def test_a_cache_that_opens_but_cannot_be_read_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    files = [tmp_path / f"{number}" for number in range(3000)]
    for file in files:
        file.write_bytes(file.name.encode())
        os.utime(file, (1, 1))
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    time.sleep(SETTLED + 0.2)  # else they are not remembered
    cache = tmp_path / "cache.sqlite"
    assert list(file_hashes(files, cache)) == expected
    if damage == "pages":
        content = bytearray(cache.read_bytes())
        content[8192 : len(content)] = b"\xa5" * (len(content) - 8192)  # the first holds the tables' names
        cache.write_bytes(content)
    else:
        cache.unlink()
        with closing(sqlite3.connect(cache)) as other:
            other.execute("create table seen (a)")
    assert list(file_hashes(files, cache)) == expected
    assert "cache.sqlite: cannot be read" in capsys.readouterr().err
    assert list(file_hashes(files, cache)) == expected and not capsys.readouterr().err


@pytest.mark.parametrize("held", ["from the beginning", "once some are written"])
def test_hashes_that_another_process_holds_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], held: str
) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    monkeypatch.setattr(hashes, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr(hashes, "BATCH", 2)
    files = [tmp_path / str(number) for number in range(6)]
    for file in files:
        file.write_text(file.name)
    cache = tmp_path / "hashes.sqlite"
    list(file_hashes(files[:1], cache))
    with closing(sqlite3.connect(cache)) as other:
        answers = file_hashes(files, cache)
        first = [] if held == "from the beginning" else [next(answers)]
        other.execute("begin exclusive")
        assert [*first, *answers] == [hashlib.sha256(file.name.encode()).hexdigest() for file in files]
    said = capsys.readouterr().err
    assert said.count("another process has locked it") == 1 and str(cache) in said
    with closing(sqlite3.connect(cache)) as store:
        assert store.execute("select count(*) from seen").fetchone()[0] == (1 if not first else 2)
