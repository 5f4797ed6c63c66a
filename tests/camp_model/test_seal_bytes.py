"""What a seal tells of the bytes of any file: their order, and an end that is missing; and seals of version 1."""

from pathlib import Path

import numpy as np
import pytest

from camp_model.seal import LENGTH, check_seal, seal


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("apart", [1, 512, 4096])
def test_an_exchange_of_two_places_is_damage(tmp_path: Path, dtype: str, apart: int) -> None:
    """Whole numbers as floats end in zeros, of which a product with a weight keeps as many."""
    path = tmp_path / "x.npy"
    values = np.random.default_rng(0).integers(0, 9, 80_000).astype(dtype)
    np.save(path, values)
    seal(path, append=True)
    content = path.read_bytes()
    for start in range(8 * 1024, len(content) - 2 * apart - LENGTH, 16 * 1024 + 8):
        first, second = content[start : start + apart * 8][: apart * 8], content[start + apart * 8 :][: apart * 8]
        if first == second or start + 2 * apart * 8 > len(content) - LENGTH:
            continue
        path.write_bytes(content[:start] + second + first + content[start + 2 * apart * 8 :])
        with pytest.raises(ValueError, match=r"x\.npy: is damaged"):
            check_seal(path)


def test_an_end_of_zeros_is_damage_where_the_seal_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones(2000))
    check_seal(path)
    with pytest.raises(ValueError, match=r"x\.npy: is damaged: the checksum at its end is missing; expected an array"):
        check_seal(path, "an array")
    seal(path, append=True)
    check_seal(path, "an array")
    content = path.read_bytes()
    for zeros in (1, 60, 64, 100, 512, 4096):
        path.write_bytes(content[:-zeros] + bytes(zeros))
        with pytest.raises(ValueError, match=r"x\.npy: is damaged"):
            check_seal(path, "an array")


def test_seals_of_version_1_are_still_checked(tmp_path: Path, repository: Path) -> None:
    """A published model has them. A version that nobody knows is damage, too."""
    path = tmp_path / "model.safetensors"
    content = (repository / "pretrained/flickr8k/model.safetensors").read_bytes()
    assert content.count(b"camp.seal/1:") == 1
    for damaged in (
        content[:-9] + b"!" + content[-8:],
        *(content.replace(b"seal/1:", b"seal/%d:" % i) for i in (2, 3)),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors: is damaged"):
            check_seal(path)
    path.write_bytes(content)
    check_seal(path)
