"""Changed code or another library gives another digest; comments, docstrings and layout do not."""

import ast
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.detectors import DETECTORS, computing

CODE = '''
"""A module."""
import torch
from stages.detectors.selection import select

class Detector:
    """A class."""
    width: int = 3
    """Pixels."""

    def forward(self, image):
        """Only this."""

    def scale(self, image):
        return image * 2  # twice
'''


@pytest.fixture(autouse=True)
def fresh() -> None:
    computing._computed_by.cache_clear()


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("A module.", "Another text.", True),
        ("Pixels.", "Metres.", True),
        ("Only this.", "Not this.", True),
        ("# twice", "# two times", True),
        ("image * 2", "(image\\n            * 2)", True),
        ("image * 2", "image * 3", False),
        ("width: int = 3", "width: int = 4", False),
    ],
)
def test_what_counts_in_a_file(before: str, after: str, same: bool) -> None:
    assert before in CODE
    changed = CODE.replace(before, after.replace("\\n", "\n"))
    assert (computing.plain_code(ast.parse(changed)) == computing.plain_code(ast.parse(CODE))) == same


def test_f_strings_count_by_their_parts_alone() -> None:
    """Python 3.12 lays them out with other quotes than 3.11."""
    code = """say(f'{name!r:>{width}} is {at["key"]}')"""
    plain = computing.plain_code(ast.parse(code))
    assert plain == "say(((name, 114, ('>', (width, -1, None))), ' is ', (at['key'], -1, None)))"
    for part in ("!r", ">", "width", " is ", "key"):
        changed = code.replace(part, "!s" if part == "!r" else "<" if part == ">" else "x")
        assert computing.plain_code(ast.parse(changed)) != plain


def test_the_code_of_a_detector_is_what_it_imports_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(DETECTORS, "mine", "mine")
    codes, libraries = computing.code_of(["mine"])
    assert set(codes) == {"mine", "stages.detectors.selection"} and libraries == {"torch", "torchvision"}
    first = computing.computing_digest("mine")
    (tmp_path / "mine.py").write_text(CODE.replace("* 2", "* 3"))
    computing._computed_by.cache_clear()
    assert computing.computing_digest("mine") != first


@pytest.mark.parametrize("backend", ["torchvision", "detectron2", "precomputed", "timm"])
def test_each_shipped_detector_has_its_own_code_and_libraries(backend: str) -> None:
    pictures = backend != "precomputed"
    codes, _ = computing.code_of([DETECTORS[backend], computing.AROUND, *([computing.DECODER] if pictures else [])])
    assert {f"stages.detectors.{backend}", "stages.detectors.boxes", "stages.extraction.describing"} <= set(codes)
    assert ("stages.detectors.images" in codes) == pictures
    assert ("stages.detectors.two_stage" in codes) == (backend in ("torchvision", "detectron2"))
    assert ("stages.detectors.grid" in codes) == (backend == "timm")
    versions = computing.computed_by(backend)["versions"]
    assert (
        set(versions)
        == {
            "torchvision": {"torch", "torchvision", "pillow"},
            "detectron2": {"torch", "torchvision", "pillow", "detectron2"},
            "precomputed": set(),
            "timm": {"torch", "torchvision", "pillow", "timm"},
        }[backend]
    )
    if pictures:
        assert versions["torch"] == importlib.metadata.version("torch").split("+")[0]


@pytest.mark.parametrize(
    ("module", "counts"),
    [("describing", True)] + [(name, False) for name in ("filling", "plan", "shard_folder", "shard_run", "store")],
)
def test_of_the_code_of_extraction_that_counts_which_decides_numbers(tmp_path: Path, module: str, counts: bool) -> None:
    """How pictures are read ahead, tried again and written can change without any shard being extracted again."""
    shutil.copytree(Path(computing.__file__).parent.parent, tmp_path / "stages")
    command = (
        "from stages.detectors.computing import *;"
        "print(*(computed_by(backend)['digest'] for backend in ('torchvision', 'timm', 'precomputed')))"
    )

    def digests() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-B", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    before = digests()
    path = tmp_path / f"stages/extraction/{module}.py"
    path.write_text(f"{path.read_text()}\nCHANGED = True\n")
    assert [after != earlier for after, earlier in zip(digests(), before, strict=True)] == [counts] * 3


def test_another_version_is_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = computing.computing_digest("torchvision")
    monkeypatch.setattr(computing, "_version", lambda library: "9.9" if library == "pillow" else "1")
    computing._computed_by.cache_clear()
    changed = computing.computing_digest("torchvision")
    assert changed != before
    monkeypatch.setattr(computing, "HARMLESS", {changed: "a", "a": before})
    assert computing.computing_digest("torchvision") == before
    computing._computed_by.cache_clear()


def test_the_shipped_model_was_trained_on_what_is_computed_now() -> None:
    """What starts from it would else be told of another detector: a harmless change is to be listed."""
    shipped = Path(computing.__file__).parents[2] / "pretrained/flickr8k/detector/detector.json"
    description = json.loads(shipped.read_text(encoding="utf-8"))
    before, now = description["computed_by"], computing.computed_by(description["backend"])
    if before["versions"] != now["versions"]:
        pytest.skip(f"the shipped model's features were computed by {before['versions']}, here is {now['versions']}")
    assert computing._first(before["digest"]) == computing.computing_digest(description["backend"])
