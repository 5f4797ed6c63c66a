"""Bottom-up attention's .tsv: lossless, its types told by its numbers, broken records passed over."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.detectors.base import Description
from stages.errors import InputError
from tests.stages.detectors.precomputed.conftest import DIM, IDS, boxes, convert, encoded, features, record, write_tsv


@pytest.mark.parametrize("lxmert", [False, True])
def test_tsv_is_lossless_and_found_by_number(dataset: Path, lxmert: bool) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, ["42", "139", "285"] if not lxmert else IDS, lxmert)
    store = convert(dataset, "tsv", source)
    assert store.image_ids == IDS and store.num_regions.tolist() == [2, 3, 4]
    for row in range(3):
        np.testing.assert_array_equal(store.features([row])[0][0, : row + 2], features(row, row + 2))
        np.testing.assert_array_equal(store.boxes(row), boxes(row, row + 2))
        assert store.size(row) == (100, 80)
    if lxmert:
        assert store.classes(1).tolist() == [0, 1, 2] and store.attributes(1).tolist() == [2, 1, 0]
        np.testing.assert_allclose(store.scores(1), [1, 0.75, 0.5])
    else:
        assert store.classes(1).tolist() == [-1] * 3


def test_classes_of_lxmert_have_names_if_the_vocabularies_lie_beside(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS, lxmert=True)
    assert convert(dataset, "tsv", source).categories == []
    unnamed = Description.load(dataset.parent / "detector").fingerprint
    (source.parent / "objects_vocab.txt").write_text("yolk\ngoggles,glasses\nbathtub\nfloor\n")
    (source.parent / "attributes_vocab.txt").write_text("nearby\nlooking\n")
    store = convert(dataset, "tsv", source)
    assert [store.categories[i] for i in store.classes(1)] == ["yolk", "goggles", "bathtub"]
    assert store.attribute_names == ["nearby", "looking"]
    assert Description.load(dataset.parent / "detector").fingerprint != unnamed


def test_float16_is_the_only_loss(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS)
    store = convert(dataset, "tsv", source, dtype="float16")
    np.testing.assert_array_equal(store.features([2])[0][0, :4], features(2, 4).astype(np.float16))


@pytest.mark.parametrize("box_kind", ["<f4", "<f8"])
@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_the_type_of_a_tsv_is_told_by_its_numbers(dataset: Path, kind: str, box_kind: str) -> None:
    source = dataset.parent / "features.tsv"
    source.write_text("".join(record(name, i, kind, box_kind) for i, name in enumerate(IDS)))
    store = convert(dataset, "tsv", source)
    assert store.region_dim == DIM
    for row in range(3):
        expected = np.random.default_rng(row).normal(size=(2, DIM)).astype(np.float32)
        np.testing.assert_array_equal(store.features([row])[0][0, :2], expected)
        np.testing.assert_array_equal(store.boxes(row), boxes(row, 2))


def test_a_tsv_of_float16_or_of_true_float64_is_read_as_such(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    for kind in ("<f2", "<f8"):
        numbers = np.random.default_rng(5).uniform(0.5, 6, size=(2, 2048)).astype(kind)
        source.write_text(record(IDS[0], 0, features=encoded(numbers)))
        store = convert(dataset, "tsv", source, max_rejected_share=0.9)
        assert store.region_dim == 2048
        np.testing.assert_array_equal(store.features([0])[0][0, :2], numbers.astype(np.float32))


DRAWN = np.random.default_rng(7).normal(size=(4, 2048))


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize(
    "numbers",
    [
        np.round(np.abs(DRAWN), 1),
        np.abs(DRAWN * 10).astype(int) / 3,
        np.abs(DRAWN * 2).astype(int),
        np.maximum(DRAWN, 0),
        np.where(DRAWN > 1, DRAWN, 0),
    ],
    ids=["tenths", "thirds", "whole", "relu", "sparse"],
)
def test_the_type_of_features_of_few_different_numbers_or_many_zeros_is_told_too(
    dataset: Path, numbers: np.ndarray, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, stored = dataset.parent / "features.tsv", numbers.astype(kind)
    placed = encoded(boxes(0, 4))
    source.write_text("".join(record(name, 0, count="4", boxes=placed, features=encoded(stored)) for name in IDS))
    store = convert(dataset, "tsv", source)
    assert store.region_dim == 2048
    np.testing.assert_array_equal(store.features([2])[0][0, :4], stored.astype(np.float32))
    assert capsys.readouterr().out.count(f"features are read as {stored.dtype}, D = 2048\n") == (kind != "<f4")


def test_a_record_of_another_width_is_set_aside(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    source.write_text(record(IDS[0], 0) + record(IDS[1], 1, dim=2 * DIM) + record(IDS[2], 2))
    with pytest.raises(InputError, match=r"features are \[2, 32\]; expected \[regions, 16\]"):
        convert(dataset, "tsv", source)
    assert convert(dataset, "tsv", source, max_rejected_share=0.5).image_ids == [IDS[0], IDS[2]]


BROKEN = [
    record(IDS[0], 0)[:-40] + "\n",
    record(IDS[0], 0, count="x"),
    record(IDS[0], 0, count="3"),
    record(IDS[0], 0, features="!!!!"),
    record(IDS[0], 0, boxes=encoded(np.zeros((2, 5), "<f4"))),
    IDS[0] + "\t100\n",
    record(IDS[0], 0, features=encoded(np.full((2, DIM), np.nan, "<f4"))),
]


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_record_is_passed_over_for_a_whole_one(
    dataset: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = dataset.parent / "features.tsv"
    source.write_text(line + record(IDS[0], 0) + record(IDS[1], 1) + record(IDS[2], 2))
    store = convert(dataset, "tsv", source)
    assert store.image_ids == IDS
    np.testing.assert_array_equal(store.boxes(0), boxes(0, 2))
    assert "1 damaged records are passed over" in capsys.readouterr().out


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_first_record_is_set_aside_if_the_share_allows(dataset: Path, line: str) -> None:
    source = dataset.parent / "features.tsv"
    source.write_text(line + record(IDS[1], 1) + record(IDS[2], 2))
    assert convert(dataset, "tsv", source, max_rejected_share=0.4).image_ids == IDS[1:]
    rejected = pq.read_table(dataset.parent / "regions/rejected.parquet").to_pylist()
    assert [row["image_id"] for row in rejected] == [IDS[0]] and rejected[0]["reason"]
    with pytest.raises(InputError, match="1 of 3 images are rejected"):
        convert(dataset, "tsv", source)


def test_two_whole_records_of_one_image_must_be_the_same(dataset: Path) -> None:
    source = dataset.parent / "tsv"
    source.mkdir()
    (source / "a.tsv").write_text("".join(record(name, i) for i, name in enumerate(IDS)))
    (source / "b.tsv").write_text(record(IDS[1], 1))
    assert convert(dataset, "tsv", source).image_ids == IDS
    (source / "b.tsv").write_text(record(IDS[1], 7))
    with pytest.raises(
        InputError, match=r"'COCO_val2014_000000000139' has different regions in a\.tsv at \d+ and in b"
    ):
        convert(dataset, "tsv", source)
