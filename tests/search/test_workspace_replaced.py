"""A workspace whose files are replaced while it is searched: by stages that run, one after the other."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from camp_model.regions import RegionStore, write_rejected
from search.collection import PictureCollection, open_workspace
from stages import contracts
from stages.detectors.images import RejectedImage
from stages.errors import InputError
from stages.extraction.plan import ExtractSections
from stages.prepare_dataset import prepare_dataset
from tests.search.conftest import Photographs, extract_in, picture_bytes
from tests.stages.conftest import SmallRun

SENTENCE = "A red circle above two blue things"


def test_of_two_reads_at_once_the_later_state_is_kept(
    run: SmallRun, workspace: PictureCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has read the rejected pictures when they change, and goes on once the second has had its time."""
    begun, changed, read = threading.Event(), threading.Event(), contracts.read_table

    def read_slowly(path: Path, *arguments: Any, **options: Any) -> Any:
        table = read(path, *arguments, **options)
        if path.name == "rejected.parquet" and not begun.is_set():
            begun.set()
            changed.wait(2)
        return table

    monkeypatch.setattr("search.workspace.read_table", read_slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(workspace.rescan)
        assert begun.wait(60)
        write_rejected(run.regions, RegionStore(run.regions).info, [("new", "new.png", "is truncated")])
        second = pool.submit(workspace.rescan)
        second.add_done_callback(lambda _: changed.set())
        first.result()
        second.result()
    assert workspace.status().rejected == [("new.png", "is truncated")]


@pytest.mark.parametrize("gone", ["models/camp", "data/regions", "data/dataset"])
def test_a_workspace_that_is_being_made_again_is_an_error_and_the_earlier_state_is_searched(
    run: SmallRun, workspace: PictureCollection, gone: str
) -> None:
    """DVC removes what a stage will make before it runs the stage."""
    before = workspace.search(SENTENCE, top=100)
    (run.root / gone).rename(run.root / "away")
    with pytest.raises(InputError, match=rf"{gone}/.*: .*No such file"):
        workspace.rescan()
    assert workspace.search(SENTENCE, top=100) == before
    (run.root / "away").rename(run.root / gone)
    workspace.rescan()
    assert workspace.search(SENTENCE, top=100) == before


def test_regions_that_are_replaced_while_they_are_read_are_not_mixed_with_the_index_of_others(
    make_run: Callable[..., SmallRun], run: SmallRun, workspace: PictureCollection, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = make_run(tmp_path / "other", images=12)

    def replace_and_check(*arguments: Any) -> None:
        contracts.check_trained_on(*arguments)
        shutil.rmtree(run.regions)
        shutil.copytree(other.regions, run.regions)

    monkeypatch.setattr("search.workspace.check_trained_on", replace_and_check)
    before = workspace.source.pictures()
    with pytest.raises(InputError, match=r"data/regions: was replaced while it was read"):
        workspace.rescan()
    assert workspace.source.pictures() is before


def test_a_picture_that_was_edited_is_not_shown_with_the_regions_of_its_earlier_bytes(
    photographs: Photographs, tmp_path: Path
) -> None:
    """As between two stages of another run: the dataset is of the new bytes, and regions are still extracted."""
    root, pictures = tmp_path / "workspace", tmp_path / "pictures"
    shutil.copytree(photographs.root, root)
    shutil.copytree(photographs.pictures, pictures)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["dataset"]["root"] = str(pictures)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    collection = open_workspace(root)
    edited, other = photographs.ids[5], photographs.ids[6]
    collection.file(edited).path.write_bytes(picture_bytes(kind="JPEG"))
    sections = ExtractSections.load(root / "params.yaml")
    prepare_dataset(sections.dataset.replace(max_rejected_share=0.5), root / "data/dataset")
    collection.rescan()
    assert collection.pixels(other).size
    with pytest.raises(RejectedImage, match="changed since it was indexed"):
        collection.pixels(edited)
    extract_in(root, sections)
    collection.rescan()
    assert collection.pixels(edited).shape == (40, 60, 3)
