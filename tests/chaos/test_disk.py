"""A disk that is full or cannot be written: a stage says which path, leaves nothing half, and goes on afterwards."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from camp_model import CAMP, CampConfig
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.files import replacing_folder, write_csv, write_json, write_table
from camp_model.vocabulary import Vocabulary
from stages.content.hashes import content_hash
from stages.indexing.faiss_engine import FaissEngine
from tests.chaos.workspace import Workspace

WORDS = Vocabulary.build([[f"word{i}" for i in range(3000)]])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small file system of some size at a new folder."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(
                f"no file system can be mounted here ({done.stderr.strip()}): run it as root to show full disks"
            )
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _draw(folder: Path) -> None:
    with replacing_folder(folder) as building:
        for i in range(8):
            write_csv(building / f"{i}.csv", ("x",), [{"x": "y" * 100}] * 4000)


def _index(path: Path) -> None:
    engine = FaissEngine(64)
    engine.add(np.arange(8000), np.ones((8000, 64), np.float32))
    engine.save(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "table.parquet": lambda path: write_table(path, pa.table({"x": np.random.default_rng(0).random(200_000)})),
    "metrics.json": lambda path: write_json(path, list(range(200_000))),
    "folder": _draw,
    "index.faiss": _index,
    "vocabulary.json": lambda path: Vocabulary.build([[f"word{i}" for i in range(50_000)]]).save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_without_room_names_the_path_and_leaves_what_was(name: str, disk: Callable[[str], Path]) -> None:
    folder = disk("1m")
    with pytest.raises(OSError, match="No space left on device") as error:
        WRITERS[name](folder / name)
    assert str(error.value.filename).startswith(str(folder / name))
    assert list(folder.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(OSError, match="Read-only file system") as error:
        WRITERS[name](folder / name)
    assert str(error.value.filename).startswith(str(folder))
    subprocess.run(["mount", "-o", "remount,rw,size=20m", str(folder)], check=True)
    WRITERS[name](folder / name)
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_checkpoint_without_room_leaves_the_older_one(disk: Callable[[str], Path]) -> None:
    folder = disk("2m")
    small, large = (CampConfig(vocab_size=len(WORDS), region_dim=5, word_dim=dim, dim=8) for dim in (4, 300))
    torch.manual_seed(0)
    save_checkpoint(folder / "camp", CAMP(small), WORDS)
    with pytest.raises(OSError, match="No space left on device") as error:
        save_checkpoint(folder / "camp", CAMP(large), WORDS)
    assert "camp" in str(error.value.filename)
    assert load_checkpoint(folder / "camp")[0].config == small
    assert len(list((folder / "camp").iterdir())) == 3


def test_hashes_that_cannot_be_remembered_are_made_all_the_same(
    disk: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disk("64k")
    (tmp_path / "a").write_text("a")
    os.utime(tmp_path / "a", (0, 0))
    expected = content_hash(tmp_path / "a", tmp_path / "hashes.sqlite")
    (folder / "ballast").write_bytes(bytes(50_000))
    assert content_hash(tmp_path / "a", folder / "hashes.sqlite") == expected
    assert "hashes.sqlite: cannot be used (database or disk is full)" in capsys.readouterr().err
    (folder / "ballast").unlink()
    assert content_hash(tmp_path / "a", folder / "hashes.sqlite") == expected
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for name in ("hashes.sqlite", "others.sqlite"):
        assert content_hash(tmp_path / "a", folder / name) == expected
    assert "others.sqlite: cannot be used (unable to open database file)" in capsys.readouterr().err


STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_stops_with_the_path_and_goes_on_when_there_is_room(
    stage: str, whole: Workspace, disk: Callable[[str], Path]
) -> None:
    """The outputs of the stage, and what is worked with, lie on a file system of their own."""
    folder = disk("400m")
    shutil.copytree(whole.folder, folder / "copy", symlinks=True, ignore=shutil.ignore_patterns("cache", ".git"))
    workspace = Workspace(folder / "copy")
    outputs = [next(iter(out)) if isinstance(out, dict) else out
               for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, [])]  # fmt: skip
    for path in (workspace.folder / name for name in [*outputs, ".work"]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"], cwd=workspace.folder, env=workspace.environment({}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    used = shutil.disk_usage(folder).used
    for setting, says in ((f"size={used // 1024}k", "No space left on device"), ("ro", "Read-only file system")):
        subprocess.run(["mount", "-o", f"remount,{setting}", str(folder)], check=True)
        done = run()
        assert done.returncode == 2, (done.stdout + done.stderr)[-3000:]
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("error: ") and says in line and "MB are free" in line and "Traceback" not in done.stderr
        for name in {"models/camp", "data/dataset", "data/detector", "data/index", "report"} & set(outputs):
            assert not [path for path in (workspace.folder / name).rglob("*") if path.is_file()], "there whole or not"
        subprocess.run(["mount", "-o", "remount,rw,size=400m", str(folder)], check=True)
    done = run()
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for name in outputs:
        for path in (whole.folder / name).rglob("*") if (whole.folder / name).is_dir() else [whole.folder / name]:
            if path.is_file():
                assert (workspace.folder / path.relative_to(whole.folder)).read_bytes() == path.read_bytes(), path
    assert workspace.orphans() == []
