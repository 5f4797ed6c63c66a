"""What the command line says beside its answers."""

import json
from pathlib import Path

import pytest

import search.__main__ as command
from tests.search.folders import Folder

OPTIONS = ["--images", "images", "--model", "models/tiny", "--cache", "cache"]


def test_every_picture_that_cannot_be_used_is_said_with_its_reason(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.root)
    for number in range(10, 22):
        (folder.images / f"torn{number}.png").write_text(f"no picture {number}")
    Path("queries.txt").write_text("a dog\na cat\n")
    command.main(["--sentences", "queries.txt", *OPTIONS])
    said = capsys.readouterr()
    lines = said.err.splitlines()
    (at,) = [number for number, line in enumerate(lines) if "pictures cannot be used" in line]
    first, *others, last = lines[at : at + 11]
    reason = "is no image of a known format"
    assert first.startswith(f"12 pictures cannot be used, such as torn10.png: {reason}")
    assert [line.startswith(f"  torn{11 + i}.png: {reason}") for i, line in enumerate(others)] == [True] * 9
    assert last == "  and 2 more; --json lists all"
    answers = [json.loads(line) for line in said.out.splitlines()]
    names = [picture["name"] for picture in answers[0]["rejected_pictures"]]
    assert names == [f"torn{number}.png" for number in range(10, 22)]
    assert all(picture["reason"].startswith(reason) for picture in answers[0]["rejected_pictures"])
    assert [(answer["rejected"], answer["rejected_pictures"] is None) for answer in answers] == [
        (12, False),
        (12, True),
    ]


def test_a_long_unknown_word_is_not_printed_whole(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.root)
    command.main([f"a dog {'z' * 50_000}", *OPTIONS])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "zzz" in line]
    assert line.startswith("unknown to the model: ") and len(line) < 200
