"""Small files that would take all memory or time are refused before they do, each by its own reader."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camp_model.import_released import read_vocabulary
from camp_model.vocabulary import tokenize
from stages.detectors import precomputed_forms
from stages.detectors.images import MOST_SCANS, RejectedImage, decode
from stages.detectors.pickled_arrays import read_arrays
from stages.detectors.precomputed_forms import _npy, _tsv_lines
from stages.detectors.precomputed_records import read_npz
from stages.errors import InputError
from stages.params.document import read


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_jpeg_of_endless_scans_is_refused_and_one_of_a_camera_is_not() -> None:
    whole = encoded("JPEG", progressive=True, exif=b"Exif\0\0" + b"\xff\xda" * 300)  # not scans: within a segment
    assert decode(whole, 10_000).shape == (48, 64, 3)
    last = whole.rindex(b"\xff\xda")
    again = whole[last:-2]
    few = whole[:-2] + again * 50 + whole[-2:]
    assert decode(few, 10_000).shape == (48, 64, 3)
    with pytest.raises(RejectedImage, match=rf"has \d+ scans; expected at most {MOST_SCANS}"):
        decode(whole[:-2] + again * MOST_SCANS + whole[-2:], 10_000)


def test_a_tiff_of_a_tile_far_larger_than_itself_is_refused() -> None:
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: 3000, 323: 4000, 324: 200, 325: 256}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    with pytest.raises(RejectedImage, match=r"has a tile of 3000 x 4000 pixels, above regions.max_pixels"):
        decode(file.ljust(456, b"\0"), 10_000)
    assert decode(encoded("TIFF"), 10_000).shape == (48, 64, 3)


def _deep(count: int, again: Callable[[int], bytes]) -> bytes:
    """A dict whose key is a tuple of twice a tuple, `count` times over."""
    body = b"".join(again(number) + b"\x86" for number in range(count))
    return b"\x80\x02}K\x01" + body + b"K\x01s."


BOMBS = {
    "memo": (b"\x80\x02}r" + struct.pack("<I", 120_000_000) + b".", "asks for index 120,000,000 of a memo"),
    "doubled": (_deep(31, lambda _: b"2"), "doubles what it holds"),
    "uncovered": (
        _deep(31, lambda number: b"N0q" + bytes([number]) + b"h" + bytes([number])), "remembers what it has uncovered"
    ),
    "moved": (
        _deep(31, lambda n: b"q" + bytes([2 * n]) + b"q" + bytes([2 * n + 1]) + b"h" + bytes([2 * n])),
        "tuples within each other",
    ),
    "referred": (
        _deep(31, lambda number: b"q" + bytes([number]) + b"h" + bytes([number])), "tuples within each other"
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_of_a_few_bytes_takes_no_more(tmp_path: Path, bomb: str) -> None:
    content, reason = BOMBS[bomb]
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_arrays(path)
    with pytest.raises(ValueError, match=reason):
        read_vocabulary(path)


def test_pickles_of_python_2_hold_any_bytes(tmp_path: Path) -> None:
    """As its protocol 0 writes an array of one float32, -1, and a vocabulary's word."""
    array = (
        b"(dp0\nS'w'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        b"(I1\n(I1\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nb"
        b"I00\nS'\\x00\\x00\x80\xbf'\np15\ntp16\nbs."
    )
    path = tmp_path / "weights.pkl"
    path.write_bytes(array)
    assert read_arrays(path)["w"].tolist() == [-1.0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_are_no_bombs(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.pkl"
    shared = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"model": {f"layer{number}": shared if number % 2 else shared + number for number in range(300)}}
    path.write_bytes(pickle.dumps(content, protocol))
    arrays = read_arrays(path)
    assert len(arrays) == 300 and arrays["layer4"].tolist() == (shared + 4).tolist()


def test_aliases_of_aliases_are_refused_and_plain_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    lines = ["a0: &a0 {x: 1, y: 2}", *(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 40))]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"preset.yaml: is not YAML: aliases make more than 1,000,000 values of it"):
        read(path)
    path.write_text("\n".join(lines[:5]))
    assert read(path)["a2"]["x"]["y"] == {"x": 1, "y": 2}


def test_marks_without_end_are_left_out() -> None:
    (word,) = tokenize("a" + "\u0301\u0316" * 200_000 + "b")
    assert word.startswith("á") and word.endswith("b") and len(word) <= 40
    assert tokenize("Crème brûlée") == ["crème", "brûlée"]


def test_features_that_unpack_to_far_more_than_one_image_has_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "1.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (70_000, 1024)})
        for _ in range(70):
            member.write(bytes(1000 * 4096))
    with pytest.raises(ValueError, match="unpacks to 286,720,[0-9]{3} bytes; expected one image's regions"):
        read_npz(path)


def test_a_npy_that_lies_about_its_shape_is_said(tmp_path: Path) -> None:
    path = tmp_path / "train_ims.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 36, 2048)}
        )
    with pytest.raises(InputError, match="train_ims.npy: cannot be read as .npy"):
        _npy(path)


def test_a_line_without_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed_forms, "LARGEST_RECORD", 1000)
    path = tmp_path / "a.tsv"
    path.write_bytes(b"1\tx\n" + bytes(5000))
    with pytest.raises(InputError, match=r"a.tsv: byte 4: a line of more than 1,000 bytes"):
        list(_tsv_lines(tmp_path, [path]))
