"""A folder of .npz files: whole ones are read as they are, without unpickling; damaged ones are named."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from tests.stages.detectors.precomputed.conftest import DIM, IDS, boxes, convert, features, scan_files, write_tsv


def test_npz_folder_with_members_that_would_need_unpickling(dataset: Path) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    for i, name in enumerate(IDS[:2]):
        padded = np.concatenate([features(i, 3), np.zeros((2, DIM), np.float32)])
        info = np.array({"objects_id": [1, 2, 3]}, dtype=object)
        np.savez_compressed(
            source / f"{name}.npz", x=padded, bbox=boxes(i, 3), num_bbox=3, image_h=80, image_w=[100], info=info
        )
    store = convert(dataset, "npz", source, max_rejected_share=0.5)
    assert store.image_ids == IDS[:2]
    np.testing.assert_array_equal(store.features([1])[0][0, :3], features(1, 3))
    rejected = pq.read_table(dataset.parent / "regions/rejected.parquet").to_pylist()
    assert [(row["image_id"], row["reason"]) for row in rejected] == [(IDS[2], "has no precomputed regions")]


def test_one_vector_per_image_is_no_table_of_regions(dataset: Path) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    for i, name in enumerate(IDS):
        np.savez(source / f"{name}.npz", x=features(i, 1)[0])
    with pytest.raises(InputError, match=r"features are \[16\]; expected \[regions, dim\]"):
        convert(dataset, "npz", source)
    np.savez(source / f"{IDS[1]}.npz", x=features(1, 2))
    assert convert(dataset, "npz", source, max_rejected_share=0.7).image_ids == [IDS[1]]


def test_integers_are_no_features(dataset: Path) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    np.savez(source / f"{IDS[0]}.npz", x=np.ones((2, DIM), np.int8))
    with pytest.raises(InputError, match="features are int8; expected floats"):
        convert(dataset, "npz", source)


def test_more_regions_than_kept_would_lose_some(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS)
    with pytest.raises(InputError, match=r"000000000285: has 4 regions; regions\.per_image: 3 would lose some"):
        convert(dataset, "tsv", source, per_image=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK no zip", r"000000000139\.npz: .*: cannot be read"),
        (b"", r"000000000139\.npz: .*: cannot be read"),
        ({"x": features(1, 3), "bbox": np.zeros((3, 5))}, r"boxes are \[3, 5\]; expected \[3, 4\]"),
        ({"x": features(1, 3)[:, :-1]}, r"features are \[3, 15\]; expected \[regions, 16\]"),
        ({"x": np.float32(1)}, r"features are \[\]; expected"),
        ({"x": features(1, 3), "bbox": np.array([["a"] * 4] * 3)}, "boxes are <U1; expected numbers"),
        ({"x": features(1, 3), "bbox": boxes(1, 3) + 1j}, "boxes are complex64; expected numbers"),
        ({"x": features(1, 3)[:, :0]}, r"features are \[3, 0\]; expected \[regions, dim\]"),
        ({"x": features(1, 5).T, "bbox": boxes(1, 5), "num_bbox": 5},
         r"features are \[16, 5\] beside boxes \[5, 4\] with num_bbox 5; expected features \[regions, dim\]"),
        ({"x": features(1, 5).T, "num_bbox": 5}, r"features are \[16, 5\] with num_bbox 5; expected"),
        ({"x": features(1, 5), "bbox": boxes(1, 4), "num_bbox": 2}, r"beside boxes \[4, 4\] with num_bbox 2; expected"),
        ({"x": features(1, 3), "num_bbox": [3, 3]}, "cannot be read"),
        ({"x": features(1, 3), "num_bbox": 2.7}, r"num_bbox is 2\.7; expected a whole number"),
        ({"y": features(1, 3)}, "holds y; expected the features as one of x, features, feat"),
    ],
)  # fmt: skip
def test_a_damaged_npz_is_named(dataset: Path, content: bytes | dict[str, np.ndarray], message: str) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    np.savez(source / f"{IDS[0]}.npz", x=features(0, 2))
    if isinstance(content, bytes):
        (source / f"{IDS[1]}.npz").write_bytes(content)
    else:
        np.savez(source / f"{IDS[1]}.npz", **content)
    with pytest.raises(InputError, match=message):
        convert(dataset, "npz", source, max_rejected_share=0.5)


@pytest.mark.parametrize("padded", [False, True])
def test_the_number_of_boxes_may_be_an_array_and_the_boxes_padded(dataset: Path, padded: bool) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    rows, padding = features(0, 3), np.zeros((2, DIM), np.float32)
    placed = np.concatenate([boxes(0, 3), np.zeros((2, 4), np.float32)]) if padded else boxes(0, 3)
    np.savez(source / f"{IDS[0]}.npz", x=np.concatenate([rows, padding]), bbox=placed, num_bbox=np.array([3]))
    store = convert(dataset, "npz", source, max_rejected_share=0.7)
    np.testing.assert_array_equal(store.features([0])[0][0, :3], rows)
    np.testing.assert_array_equal(store.boxes(0), boxes(0, 3))


@pytest.mark.parametrize("form", ["npz", "npz with boxes", "scan"])
def test_rows_of_zeros_at_the_end_are_padding_and_counted(
    dataset: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = scan_files(dataset.parent / "source")
    for number, name in enumerate(IDS):
        rows = features(number, 4)
        rows[1] = 0  # between others: a region
        if number != 1:
            rows[3:] = 0
        if form == "scan":
            split = ("dev", "test", "train")[number]
            np.save(source / f"{split}_ims.npy", np.stack([rows] * (1 if split == "train" else 3)))
        else:
            placed = {"bbox": boxes(number, 4) * (rows != 0)[:, :1]} if form.endswith("boxes") else {}
            np.savez(source / f"{name}.npz", x=rows, **placed)
    store = convert(dataset, form.split(maxsplit=1)[0], source)
    assert store.num_regions.tolist() == [3, 4, 3]
    np.testing.assert_array_equal(store.features([0])[0][0, :3], np.where([[1], [0], [1]], features(0, 3), 0))
    assert "2 images had rows of zeros after their precomputed regions, which were cut" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "reason"), [(0, "every feature is 0"), (np.nan, "a feature is not finite")])
def test_what_a_failed_extraction_leaves_is_set_aside(dataset: Path, value: float, reason: str) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    for number, name in enumerate(IDS):
        np.savez(source / f"{name}.npz", x=features(number, 2) * 0 + value if number == 1 else features(number, 2))
    assert convert(dataset, "npz", source, max_rejected_share=0.5).image_ids == [IDS[0], IDS[2]]
    (row,) = pq.read_table(dataset.parent / "regions" / "rejected.parquet").to_pylist()
    assert row["reason"].endswith(reason)


def test_an_image_without_regions_is_rejected(dataset: Path) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    for name, count in zip(IDS, (2, 0, 1), strict=True):
        np.savez(source / f"{name}.npz", x=features(0, count))
    assert convert(dataset, "npz", source, max_rejected_share=0.5).image_ids == [IDS[0], IDS[2]]
