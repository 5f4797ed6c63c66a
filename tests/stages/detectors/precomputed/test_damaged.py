"""Files that are damaged, or change after they were indexed, are named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.errors import InputError
from stages.extract_regions import extract_regions
from stages.extraction.plan import ExtractSections
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.train_detector import train_detector
from tests.stages.detectors.precomputed.conftest import IDS, convert, encoded, write_tsv


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def other_columns(path: Path) -> None:
    path.write_text("\n".join(line + "\tmore" for line in path.read_text().splitlines()) + "\n")


def vast_classes(path: Path) -> None:
    write_tsv(path, IDS, lxmert=True)
    path.write_text(path.read_text().replace(encoded(np.arange(2)), encoded(np.array([1, 10**15])), 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"features\.tsv: COCO_val2014_000000000285, at \d+: cannot be read"),
        (vast_classes, "objects_id: holds 1000000000000000; expected numbers below 2\\^31"),
        (other_columns, "7 columns; expected 6 or 10"),
        (lambda path: path.write_text("unknown\t1\n"), "holds none of the dataset's images"),
        (lambda path: path.unlink(), r"detector\.weights: .*features\.tsv' holds no \*\.tsv"),
    ],
)
def test_damaged_files_are_named(dataset: Path, damage: Callable[[Path], object], message: str) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS)
    damage(source)
    with pytest.raises(InputError, match=message):
        convert(dataset, "tsv", source)


def test_a_file_changed_after_indexing_is_noticed(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS)
    convert(dataset, "tsv", source)
    source.write_text(source.read_text() + "\n")
    params = ExtractSections(
        dataset=DatasetParams(source="coco", root=str(dataset)),
        detector=DetectorParams(backend="precomputed", architecture="tsv", weights=str(source)),
        regions=RegionsParams(per_image=6, min_per_image=1),
    )
    with pytest.raises(InputError, match="changed since train_detector read it"):
        extract_regions(
            params, dataset, dataset.parent / "detector", dataset.parent / "regions", dataset.parent / "shards"
        )
    with pytest.raises(InputError, match="'csv' is not one of scan, tsv, npz"):
        train_detector(
            params.replace(detector=DetectorParams(backend="precomputed", architecture="csv", weights=str(source))),
            dataset,
            dataset.parent / "x",
            dataset.parent / "m.json",
        )
