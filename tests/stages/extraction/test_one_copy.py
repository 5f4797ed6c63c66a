"""The bytes of a shard lie on the disk once: in the folder of shards, the store and DVC's cache they are one file."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camp_model.files import UNUSED_SECONDS, remove_unused
from stages import extract_regions as stage
from stages.detectors.base import Description
from stages.extraction.shard_folder import link

PIPELINE = """
stages:
  extract_regions:
    cmd: exec python -m stages.extract_regions
    deps: [data/dataset, data/detector]
    params: [regions]
    outs: [data/regions]
"""


def age(path: Path) -> None:
    long_ago = time.time() - UNUSED_SECONDS - 60
    os.utime(path, (long_ago, long_ago))


class Repository:
    """A DVC repository whose only stage is the extraction, with hard links as the project sets them."""

    def __init__(self, place) -> None:
        self.place, self.root, self.folder = place, place.root, place.folder
        self.cache = self.root / ".dvc/cache/files/md5"
        place.write_params()
        (self.root / "dvc.yaml").write_text(PIPELINE)
        (self.root / "data/detector").unlink()
        shutil.copytree(place.detector, self.root / "data/detector")
        self.run("init", "--no-scm", "-q")
        self.run("config", "cache.type", "hardlink,copy")

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        source = str(Path(stage.__file__).parents[1])
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PYTHONPATH": source, "PATH": path, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            command, cwd=cwd or self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def inodes(self, folder: Path) -> set[int]:
        return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}

    def assert_one_copy(self) -> None:
        stored = [path for path in (self.root / "data/regions").glob("*.arrow")]
        assert len(stored) > 3
        for path in stored:
            own = self.folder / path.name
            assert own.samefile(path), "the store and the folder of shards are one"
            assert path.stat().st_nlink == 3, "the third is DVC's cache"
            assert path.stat().st_ino in self.inodes(self.cache)


@pytest.mark.timeout(600)
def test_shards_lie_once_after_repro_rerun_and_gc_and_nothing_is_extracted_twice(workplace) -> None:
    repository = Repository(workplace)
    repository.run("repro")
    repository.assert_one_copy()
    first = workplace.shards()

    workplace.draw("020.png", 999)  # other bytes: its shard is another one
    workplace.list()
    told = repository.run("repro")
    assert "(1 extracted now)" in told
    repository.assert_one_copy()
    second = workplace.shards()
    (replaced,) = first.keys() - second.keys()
    assert all(second[name] == first[name] for name in first.keys() & second.keys())
    orphan = workplace.folder / replaced
    assert orphan.stat().st_nlink == 2, "DVC's cache still has it, so it costs nothing"

    repository.run("gc", "--workspace", "--force")
    repository.assert_one_copy()
    assert orphan.stat().st_nlink == 1
    for path in workplace.folder.iterdir():
        age(path)
    workplace.run()
    assert not orphan.exists(), "nobody needs it"
    repository.assert_one_copy()
    assert workplace.shards() == second

    # A clone that has pulled: no folder of shards, and DVC removes the store before the stage runs.
    shutil.rmtree(workplace.folder)
    workplace.draw("021.png", 998)
    workplace.list()
    assert "(1 extracted now)" in repository.run("repro")
    repository.assert_one_copy()
    assert len(workplace.shards().keys() & second.keys()) == len(second) - 1


def test_an_experiments_own_workspace_uses_the_shards_of_the_main_one(workplace) -> None:
    workplace.write_params()
    (workplace.root / ".dvc").mkdir()
    workplace.run()
    before = workplace.shards(workplace.folder)
    inner = workplace.root / ".dvc/tmp/exps/tmp1234"
    shutil.copytree(workplace.root / "data/dataset", inner / "data/dataset")
    shutil.copyfile(workplace.root / "params.yaml", inner / "params.yaml")
    (inner / "data/detector").symlink_to(workplace.detector)
    source = str(Path(stage.__file__).parents[1])
    command = [sys.executable, "-m", "stages.extract_regions"]
    done = subprocess.run(
        command, cwd=inner, env=os.environ | {"PYTHONPATH": source}, capture_output=True, text=True, check=False
    )
    assert "(0 extracted now)" in done.stdout, done.stderr
    assert not (inner / ".work/shards").exists()
    assert workplace.shards(inner / "data/regions") == before == workplace.shards(workplace.folder)


def test_what_only_the_store_holds_is_taken_over(workplace) -> None:
    workplace.run()
    before = workplace.shards()
    shutil.rmtree(workplace.folder)
    torn = sorted(before)[0]
    # Under another name, so that no other file is given its inode's number.
    (workplace.out / torn).rename(workplace.out.parent / "before")
    (workplace.out / torn).write_bytes(before[torn][1][:1000])
    workplace.run()
    assert {name for name, (inode, _) in workplace.shards().items() if inode != before[name][0]} == {torn}
    assert workplace.shards()[torn][1] == before[torn][1]


def test_a_state_of_dvc_that_cannot_be_opened_costs_its_cache_alone(
    workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise sqlite3.OperationalError("database is locked")

    (workplace.root / ".dvc").mkdir()
    monkeypatch.chdir(workplace.root)
    monkeypatch.setattr("dvc.repo.Repo", refuse)
    workplace.run()
    assert len(workplace.shards()) > 3
    said = capsys.readouterr().out
    assert said.count("shards in DVC's cache are not looked for: OperationalError: database is locked") == 1


def test_another_detector_has_other_shards(workplace) -> None:
    keys = {shard.key for shard in workplace.plan().shards}
    own = workplace.root / "detector"
    shutil.copytree(workplace.detector, own)
    description = Description.load(own)
    Description(**(vars(description) | {"weights_sha256": "other"})).save(own)
    workplace.detector = own
    assert not keys & {shard.key for shard in workplace.plan().shards}


def test_only_what_is_unused_unlinked_and_old_is_pruned(tmp_path: Path) -> None:
    for name in ("wanted.arrow", "linked.arrow", "old.arrow", "old.abc.partial", ".old.arrow.12.tmp", "young.arrow"):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / name).write_bytes(b"")
        if name != "young.arrow":
            age(tmp_path / "shards" / name)
    link(tmp_path / "shards/linked.arrow", tmp_path / "store/linked.arrow")
    remove_unused(tmp_path / "shards", {"wanted.arrow"})
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "linked.arrow",
        "wanted.arrow",
        "young.arrow",
    ]


def test_where_links_cannot_be_made_shards_are_copied(
    workplace, monkeypatch: pytest.MonkeyPatch, reference: dict[str, bytes]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    workplace.run()
    assert workplace.files() == reference
