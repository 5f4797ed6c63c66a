"""SCAN's arrays, whose rows are told by the captions beside them."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stages.errors import InputError
from tests.stages.detectors.precomputed.conftest import DIM, IDS, convert, features, scan_files


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


def test_a_caption_that_two_images_share_gives_neither_the_regions_of_another(dataset: Path) -> None:
    """The file holds more images than the data set, as published ones do; one of them shares a caption with ours."""
    folder = scan_files(dataset.parent / "scan")
    for name, captions in (("train", ["a red bus", "a car", "a street"]), ("dev", ["a man and a dog", "x", "y"])):
        (folder / f"{name}_caps.txt").write_text("\n".join(captions) + "\n")
    assert convert(dataset, "scan", folder, max_rejected_share=0.7).image_ids == [IDS[1]]


def test_few_captions_of_an_image_tell_its_row_too(dataset: Path) -> None:
    """The data set keeps one caption of an image, and the file has all."""
    folder = scan_files(dataset.parent / "scan")
    table = pq.read_table(dataset / "captions.parquet")
    pq.write_table(table.filter(pc.field("text") != "the bus stops").slice(0, 7), dataset / "captions.parquet")
    store = convert(dataset, "scan", folder)
    np.testing.assert_array_equal(store.features([2])[0][0, :4], features(2, 4))


def test_images_whose_first_region_is_equal_are_two(dataset: Path) -> None:
    folder = scan_files(dataset.parent / "scan")
    rows = np.stack([features(IDS.index(name), 4) for name in (IDS[0], IDS[1])])
    rows[:, 0] = 0
    np.save(folder / "dev_ims.npy", np.repeat(rows, 3, axis=0))
    texts = (folder / "dev_caps.txt").read_text() + (folder / "test_caps.txt").read_text()
    (folder / "dev_caps.txt").write_text(texts)
    for name in ("test_ims.npy", "test_caps.txt"):
        (folder / name).unlink()
    store = convert(dataset, "scan", folder)
    for row in range(2):
        np.testing.assert_array_equal(store.features([row])[0][0, :4], rows[row])


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
            file.write(np.float32(row + 1).tobytes())
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
    assert total == sum(range(1, rows + 1)), "each row was found by its caption"
    assert grown < 120_000, "kilobytes"
