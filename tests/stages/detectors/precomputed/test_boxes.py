"""Boxes are those of the dataset's pictures, whatever size or turn they were recorded at."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from tests.stages.detectors.precomputed.conftest import IDS, boxes, convert, encoded, features, record, write_tsv


def test_boxes_of_a_resized_picture_are_scaled_to_ours(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS, size=(200, 160))
    store = convert(dataset, "tsv", source)
    np.testing.assert_allclose(store.boxes(1), boxes(1, 3) / 2, rtol=1e-6)


def turned(dataset: Path, *orientations: int) -> None:
    """Say that the pictures are stored turned."""
    table = pq.read_table(dataset / "images.parquet")
    column = pa.array(orientations, pa.int8())
    pq.write_table(table.append_column("orientation", column), dataset / "images.parquet")


def test_boxes_of_the_unturned_frame_are_turned(dataset: Path) -> None:
    turned(dataset, 6, 6, 6)
    source = dataset.parent / "features.tsv"
    source.write_text(
        record(IDS[0], 0, width="80", height="100", boxes=encoded(np.array([[0, 0, 10, 20]] * 2, "<f4")))
        + record(IDS[1], 1, width="160", height="200", boxes=encoded(np.array([[0, 0, 20, 40]] * 2, "<f4")))
        + record(IDS[2], 2, boxes=encoded(np.array([[80, 0, 100, 10]] * 2, "<f4")))
    )
    store = convert(dataset, "tsv", source)
    for row in range(3):
        np.testing.assert_allclose(store.boxes(row), [[80, 0, 100, 10]] * 2, atol=1e-4)
        assert store.size(row) == (100, 80)


def test_what_half_a_turn_leaves_open_is_told_by_quarter_turns(dataset: Path) -> None:
    turned(dataset, 3, 6, 1)
    source, corner = dataset.parent / "features.tsv", encoded(np.array([[0, 0, 10, 20]] * 2, "<f4"))
    half = record(IDS[0], 0, boxes=corner)
    source.write_text(half + record(IDS[1], 1, width="80", height="100") + record(IDS[2], 2))
    np.testing.assert_allclose(convert(dataset, "tsv", source).boxes(0), [[90, 60, 100, 80]] * 2, atol=1e-4)
    source.write_text(half + record(IDS[1], 1) + record(IDS[2], 2))
    np.testing.assert_allclose(convert(dataset, "tsv", source).boxes(0), [[0, 0, 10, 20]] * 2, atol=1e-4)
    source.write_text(half + record(IDS[2], 2))
    store = convert(dataset, "tsv", source, max_rejected_share=0.7)
    assert store.image_ids == IDS[2:]
    rejected = pq.read_table(dataset.parent / "regions/rejected.parquet").to_pylist()
    assert "turned and not turned" in rejected[0]["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": "100", "height": "100"}, "frame of 100 x 100 pixels, the picture has 100 x 80"),
        ({"width": "80", "height": "100"}, "frame of 80 x 100 pixels, the picture has 100 x 80"),
        ({"width": "0", "height": "0"}, "reach beyond their frame|pixels is none"),
        ({"boxes": encoded(np.array([[0, 0, 300, 20]] * 2, "<f4"))}, "reach beyond their frame of 100 x 80"),
        ({"boxes": encoded(np.array([[50, 10, 20, 20]] * 2, "<f4"))}, "not x0, y0, x1, y1"),
        ({"boxes": encoded(np.array([[0, 0, np.nan, 20]] * 2, "<f4"))}, "not x0, y0, x1, y1"),
        ({"boxes": encoded(np.array([[0, 0, 0.5, 1]] * 2, "<f4"))}, "not shares of the picture"),
        ({"boxes": encoded(np.array([[0, 0, 0.5, 1.0004]] * 2, "<f4"))}, "not shares of the picture"),
        ({"boxes": encoded(np.zeros((2, 4), "<f4"))}, "not shares of the picture"),
    ],
)
def test_boxes_that_are_not_of_the_picture_are_rejected(dataset: Path, change: dict[str, str], reason: str) -> None:
    source = dataset.parent / "features.tsv"
    source.write_text(record(IDS[0], 0) + record(IDS[1], 1, **change) + record(IDS[2], 2))
    with pytest.raises(InputError, match=reason):
        convert(dataset, "tsv", source)


def test_without_a_known_size_the_record_states_it(dataset: Path) -> None:
    table = pq.read_table(dataset / "images.parquet")
    for name in ("width", "height"):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([0] * 3, pa.int32()))
    pq.write_table(table, dataset / "images.parquet")
    source = dataset.parent / "features.tsv"
    source.write_text("".join(record(name, i) for i, name in enumerate(IDS)))
    store = convert(dataset, "tsv", source, geometry=True)
    assert store.size(1) == (100, 80)
    npz = dataset.parent / "npz"
    npz.mkdir()
    for i, name in enumerate(IDS):
        np.savez(npz / f"{name}.npz", x=features(i, 2), bbox=boxes(i, 2))
    assert convert(dataset, "npz", npz).size(0) == (0, 0)
    with pytest.raises(InputError, match=r"its size are not known; regions\.geometry: true needs both"):
        convert(dataset, "npz", npz, geometry=True)
