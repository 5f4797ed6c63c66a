"""Regions that others extracted come into the store as they are, in each of their forms."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camp_model.regions import RegionStore
from stages.errors import InputError
from stages.extract_regions import extract_regions
from stages.extraction.plan import ExtractSections
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.train_detector import train_detector

IDS = ["COCO_val2014_000000000042", "COCO_val2014_000000000139", "COCO_val2014_000000000285"]
CAPTIONS = {
    IDS[0]: ["A dog, running.", "Ein Hund läuft!", "A man and a dog."],
    IDS[1]: ["Two cats sleep", "A man and a dog.", "cats on a sofa"],
    IDS[2]: ["A red bus", "the bus stops", "People wait."],
}
DIM = 16


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three images, 100 x 80 pixels, whose pictures are not there."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    sizes = {"width": pa.array([100] * 3, pa.int32()), "height": pa.array([80] * 3, pa.int32())}
    images = {"image_id": IDS, "path": [f"val/{name}.jpg" for name in IDS], "split": ["train", "val", "test"], **sizes}
    pq.write_table(pa.table(images | {"sha256": ["0"] * 3}), folder / "images.parquet")
    pairs = [(name, text) for name, texts in CAPTIONS.items() for text in texts]
    captions = {"image_id": [name for name, _ in pairs], "text": [text for _, text in pairs]}
    pq.write_table(pa.table(captions), folder / "captions.parquet")
    return folder


def features(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def boxes(seed: int, count: int) -> np.ndarray:
    corners = np.sort(np.random.default_rng(seed).uniform(0, 80, (count, 2, 2)).astype(np.float32), axis=1)
    return corners.reshape(count, 4)


def convert(dataset: Path, form: str, source: Path, **regions: object) -> RegionStore:
    """The two stages, and the store they leave."""
    params = ExtractSections(
        dataset=DatasetParams(source="coco", root=str(dataset)),
        detector=DetectorParams(backend="precomputed", architecture=form, weights=str(source)),
        regions=RegionsParams(**{"per_image": 5, "min_per_image": 1, "dtype": "float32", **regions}),
    )
    detector, metrics = dataset.parent / "detector", dataset.parent / "detector.json"
    train_detector(params, dataset, detector, metrics)
    assert json.loads(metrics.read_text()) == {"pretrained": True}
    extract_regions(params, dataset, detector, dataset.parent / "regions", dataset.parent / "shards")
    return RegionStore(dataset.parent / "regions")


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def write_tsv(path: Path, ids: list[str], lxmert: bool = False, size: tuple[int, int] = (100, 80)) -> None:
    lines = []
    for i, name in enumerate(ids):
        count = i + 2
        found = encoded(boxes(i, count)), encoded(features(i, count))
        if lxmert:
            ids_and_confidences = (
                encoded(np.arange(count)),
                encoded(np.linspace(1, 0.5, count, dtype=np.float32)),
                encoded(np.arange(count)[::-1].copy()),
                encoded(np.full(count, 0.25, dtype=np.float32)),
            )
            cells = (name, str(size[1]), str(size[0]), *ids_and_confidences, str(count), *found)
        else:
            cells = (name, str(size[0]), str(size[1]), str(count), *found)
        lines.append("\t".join(cells) + "\n")
    path.write_text("".join(lines))


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


def test_float16_is_the_only_loss(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS)
    store = convert(dataset, "tsv", source, dtype="float16")
    np.testing.assert_array_equal(store.features([2])[0][0, :4], features(2, 4).astype(np.float16))


def test_boxes_of_a_resized_picture_are_scaled_to_ours(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS, size=(200, 160))
    store = convert(dataset, "tsv", source)
    np.testing.assert_allclose(store.boxes(1), boxes(1, 3) / 2, rtol=1e-6)


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


def scan_files(folder: Path) -> Path:
    """SCAN's files: train once per image, dev and test once per caption; captions tokenized and out of our order."""
    folder.mkdir()
    for split, name, repeat in (("train", IDS[2], 1), ("dev", IDS[0], 3), ("test", IDS[1], 3)):
        row = features(IDS.index(name), 4)
        np.save(folder / f"{split}_ims.npy", np.stack([row] * repeat))
        lines = [text.lower().replace(".", " .").replace(",", " ,").replace("!", "") for text in CAPTIONS[name]]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_scan_rows_are_recognised_by_their_captions(dataset: Path) -> None:
    store = convert(dataset, "scan", scan_files(dataset.parent / "scan"))
    for row in range(3):
        np.testing.assert_array_equal(store.features([row])[0][0, :4], features(row, 4))
        assert not store.boxes(row).any() and store.size(row) == (100, 80)
    with pytest.raises(InputError, match=r"regions\.geometry: true needs boxes"):
        convert(dataset, "scan", dataset.parent / "scan", geometry=True)


def test_an_archive_is_no_npy(dataset: Path) -> None:
    source = scan_files(dataset.parent / "scan")
    for file in source.glob("*_ims.npy"):
        rows = np.load(file)
        with file.open("wb") as archive:
            np.savez(archive, rows)
    with pytest.raises(InputError, match=r"_ims\.npy: cannot be read as \.npy"):
        convert(dataset, "scan", source)


def test_scan_rows_that_fit_two_images_are_named(dataset: Path) -> None:
    folder = scan_files(dataset.parent / "scan")
    (folder / "train_caps.txt").write_text("a man and a dog\n" * 3)
    with pytest.raises(InputError, match=r"train_ims\.npy: row 0: its captions fit .* alike"):
        convert(dataset, "scan", folder)
    (folder / "train_caps.txt").write_text("")
    with pytest.raises(InputError, match=r"train_caps\.txt: 0 captions do not divide among the 1 rows"):
        convert(dataset, "scan", folder)
    (folder / "train_caps.txt").unlink()
    with pytest.raises(InputError, match=r"train_caps\.txt: is missing"):
        convert(dataset, "scan", folder)
    np.save(folder / "train_ims.npy", np.zeros((0, 4, DIM), np.float32))
    with pytest.raises(InputError, match=r"train_ims\.npy: holds float32 \[0, 4, 16\]"):
        convert(dataset, "scan", folder)


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\f", "\v", "\r"])
def test_captions_are_cut_at_newlines_alone(dataset: Path, character: str) -> None:
    folder = scan_files(dataset.parent / "scan")
    texts = [f"A red{character}bus", "the bus stops", "People wait."]
    (folder / "train_caps.txt").write_bytes("\n".join(texts).encode() + b"\n")
    assert convert(dataset, "scan", folder).image_ids == IDS


def test_captions_that_are_not_utf8_are_named_with_their_line(dataset: Path) -> None:
    folder = scan_files(dataset.parent / "scan")
    (folder / "dev_caps.txt").write_bytes(b"a dog\r\nEin Hund l\xe4uft\na man\n")
    with pytest.raises(InputError, match=r"dev_caps\.txt: line 2: byte 10 is 0xe4, not UTF-8"):
        convert(dataset, "scan", folder)


def record(name: str, seed: int, kind: str = "<f4", box_kind: str = "<f4", dim: int = DIM, **change: str) -> str:
    """A line of bottom-up attention's .tsv with two boxes."""
    numbers = np.random.default_rng(seed).normal(size=(2, dim)).astype("<f4").astype(kind)
    cells = {
        "name": name,
        "width": "100",
        "height": "80",
        "count": "2",
        "boxes": encoded(boxes(seed, 2).astype(box_kind)),
        "features": encoded(numbers),
    }
    return "\t".join((cells | change).values()) + "\n"


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


def test_more_regions_than_kept_would_lose_some(dataset: Path) -> None:
    source = dataset.parent / "features.tsv"
    write_tsv(source, IDS)
    with pytest.raises(InputError, match=r"000000000285: has 4 regions; regions\.per_image: 3 would lose some"):
        convert(dataset, "tsv", source, per_image=3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def other_columns(path: Path) -> None:
    path.write_text("\n".join(line + "\tmore" for line in path.read_text().splitlines()) + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"features\.tsv: COCO_val2014_000000000285, at \d+: cannot be read"),
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
        ({"y": features(1, 3)}, "holds y; expected the features as one of x, features, feat"),
    ],
)
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


def test_an_image_without_regions_is_rejected(dataset: Path) -> None:
    source = dataset.parent / "npz"
    source.mkdir()
    for name, count in zip(IDS, (2, 0, 1), strict=True):
        np.savez(source / f"{name}.npz", x=features(0, count))
    assert convert(dataset, "npz", source, max_rejected_share=0.5).image_ids == [IDS[0], IDS[2]]


def test_a_large_array_is_converted_in_little_memory(dataset: Path) -> None:
    """What is resident, pages of mapped files included, hardly grows while 442 MB are indexed and read."""
    folder, rows = dataset.parent / "scan", 1500
    folder.mkdir()
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, 36, 2048)})
    with (folder / "train_ims.npy").open("wb") as file:  # sparse: holes take no disk
        file.write(buffer.getvalue())
        for row in range(rows):
            file.seek(buffer.tell() + row * 36 * 2048 * 4)
            file.write(np.float32(row).tobytes())
        file.truncate(buffer.tell() + rows * 36 * 2048 * 4)
    captions = [f"caption number {row}" for row in range(rows)]
    (folder / "train_caps.txt").write_text("\n".join(captions))
    ids = [str(row) for row in range(rows)]
    pq.write_table(pa.table({"image_id": ids, "text": captions}), dataset / "captions.parquet")
    code = (
        "import sys; from pathlib import Path; from stages.detectors import precomputed\n"
        "from stages.params.detector import DetectorParams\n"
        "from stages.params.regions import RegionsParams\n"
        "source, dataset, out = map(Path, sys.argv[1:])\n"
        # not ru_maxrss: that begins at what the process which started this one has in memory
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "description = precomputed.resolve(DetectorParams(backend='precomputed', architecture='scan',"
        " weights=str(source)), out, dataset)\n"
        "regions = precomputed.load(out, description, RegionsParams(), 'cpu', DetectorParams())\n"
        "total = sum(regions.read(str(row), '', 1, 1).features[0, 0] for row in range(1500))\n"
        "print(int(total), peak() - before)"
    )
    paths = (folder, dataset, dataset.parent)
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    total, grown = map(int, done.stdout.splitlines()[-1].split())
    assert total == sum(range(rows)), "each row was found by its caption"
    assert grown < 120_000, "kilobytes"
