"""Pictures that cannot be used, or whose features no number holds, are set aside; too many of them are an error."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from camp_model.regions import RegionStore
from stages import extract_regions as stage
from stages.detectors import images
from stages.detectors.images import MISSING
from stages.errors import InputError
from stages.extraction.filling import extract_missing, load
from stages.extraction.shard_folder import absent_shards, missing_shards
from tests.stages.extraction.conftest import COUNT


def test_unusable_files_are_rejected_with_reasons_and_the_run_goes_on(
    workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace.pictures / "003.png").write_bytes(b"")
    (workplace.pictures / "007.png").write_bytes((workplace.pictures / "007.png").read_bytes()[:200])
    Image.new("RGB", (4000, 3000)).save(workplace.pictures / "009.png")
    workplace.list()
    (workplace.pictures / "011.png").unlink()
    workplace.run(max_pixels=1_000_000)
    rejected = {row["image_id"]: row for row in pq.read_table(workplace.out / "rejected.parquet").to_pylist()}
    assert rejected["003"]["reason"] == "the file is empty" and rejected["003"]["path"] == "003.png"
    assert "cannot be decoded" in rejected["007"]["reason"]
    assert "claims 4000 x 3000 pixels" in rejected["009"]["reason"]
    assert rejected["011"]["reason"] == MISSING
    assert len(rejected) == 4
    assert RegionStore(workplace.out).image_ids == [f"{i:03d}" for i in range(COUNT) if f"{i:03d}" not in rejected]
    assert "36 images" in capsys.readouterr().out

    # A file that was missing for a moment is tried again; what is wrong with bytes is not.
    before = workplace.shards()
    workplace.draw("011.png", 11)
    workplace.run(max_pixels=1_000_000)
    changed = {name for name, (inode, _) in workplace.shards().items() if before[name][0] != inode}
    assert len(changed) == 1
    assert "011" in RegionStore(workplace.out).image_ids


def test_an_image_that_the_memory_did_not_suffice_for_is_tried_again(
    workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_small(image: Image.Image) -> np.ndarray:
        if image.size == (999, 999):
            raise MemoryError
        return decode(image)

    decode = images._pixels
    Image.new("RGB", (999, 999)).save(workplace.pictures / "003.png")
    workplace.list()
    with monkeypatch.context() as patched:
        patched.setattr(images, "_pixels", decode_small)
        workplace.run()
    assert "003" not in RegionStore(workplace.out).image_ids
    workplace.run()
    assert "003" in RegionStore(workplace.out).image_ids


def test_a_rejected_image_is_one_line_whatever_its_name(workplace, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace.pictures / "005.png").rename(workplace.pictures / "a\nb\x1b[2J.png")
    (workplace.pictures / "a\nb\x1b[2J.png").write_bytes(b"")
    workplace.list()
    workplace.run(max_rejected_share=0.5)
    assert "\n  a\ufffdb\ufffd[2J.png: the file is empty\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="\\(a\ufffdb\ufffd\\[2J.png: the file is empty\\)"):
        workplace.run(max_rejected_share=0.0)


def test_too_many_rejected_images_stop_the_stage(workplace) -> None:
    for i in (1, 2, 3):
        (workplace.pictures / f"{i:03d}.png").write_bytes(b"no picture")
    workplace.list()
    with pytest.raises(
        InputError, match=r"max_rejected_share: 3 of 40 images are rejected so far.*001\.png: is no image"
    ):
        workplace.run(max_rejected_share=0.06)
    assert not (workplace.out / "manifest.parquet").exists()
    workplace.run(max_rejected_share=0.08)
    with pytest.raises(InputError, match="3 of 40 images are rejected, more"):
        workplace.run(max_rejected_share=0.06)


class Overflowing:
    """The plan's detector, with numbers in some images that no float16 holds."""

    def __init__(self, plan, values: dict[int, float | None]) -> None:
        self._detector, self._values, self._looked_at = load(plan, "cpu"), values, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._detector, name)

    def forward(self, batch, given=None):
        results = self._detector.forward(batch, given)
        for place, result in enumerate(results):
            if (value := self._values.get(self._looked_at, 1)) is None:
                arrays = {name: item for name, item in vars(result).items() if isinstance(item, np.ndarray)}
                results[place] = dataclasses.replace(result, **{name: item[:0] for name, item in arrays.items()})
            else:
                result.features[0, 0] = value
            self._looked_at += 1
        return results


def test_an_image_with_a_feature_out_of_range_is_set_aside_and_the_run_goes_on(workplace) -> None:
    plan = workplace.plan()
    values = {2: 70_000.0, 11: float("nan"), 20: -1e30, 30: None}
    extract_missing(plan, workplace.folder, loading=lambda plan, _: Overflowing(plan, values))
    counts = stage.finish_store(plan, workplace.folder, workplace.out)
    assert counts == (COUNT - 4, 4)
    reasons = pq.read_table(workplace.out / "rejected.parquet")["reason"].to_pylist()
    assert sorted(reasons) == [
        "a feature is not finite (regions.dtype: float16)",
        "a feature is not finite in float16: it is 1e+30, above 6.55e+04 (regions.dtype: float16)",
        "a feature is not finite in float16: it is 7e+04, above 6.55e+04 (regions.dtype: float16)",
        "the detector returned no region",
    ]
    features, mask = RegionStore(workplace.out).features(range(COUNT - 4))
    assert np.isfinite(features).all() and mask.any(axis=1).all()
    # What was wrong with numbers is remembered: the shards are whole.
    assert missing_shards(plan.shards, workplace.folder) == []
    # float32 holds two of them.
    wide = workplace.plan(dtype="float32")
    extract_missing(wide, workplace.folder, loading=lambda plan, _: Overflowing(plan, values))
    assert stage.finish_store(wide, workplace.folder, workplace.out) == (COUNT - 2, 2)
    # Too many of them stop the stage as unreadable pictures do.
    with pytest.raises(InputError, match="max_rejected_share: 1 of 40 images are rejected so far"):
        extract_missing(
            workplace.plan(max_rejected_share=0.0, per_image=3, min_per_image=3),
            workplace.folder,
            loading=lambda plan, _: Overflowing(plan, values),
        )


def test_a_picture_still_missing_leaves_its_shard_as_it_is(workplace) -> None:
    (workplace.pictures / "011.png").unlink()
    workplace.run()
    before = workplace.shards()
    shards = workplace.plan().shards
    assert len(missing_shards(shards, workplace.folder)) == 1, "it is tried again"
    assert absent_shards(shards, workplace.folder) == [], "and yet there"
    looked_at = []
    plan = workplace.plan()
    extract_missing(plan, workplace.folder, loading=lambda plan, _: Watched(plan, looked_at))
    assert workplace.shards() == before and looked_at == []

    # The picture is back: it alone goes through the network.
    workplace.draw("011.png", 11)
    workplace.list()
    extract_missing(workplace.plan(), workplace.folder, loading=lambda plan, _: Watched(plan, looked_at))
    assert looked_at == [1]


class Watched:
    """The plan's detector, which notes the size of each batch."""

    def __init__(self, plan, sizes: list[int]) -> None:
        self._detector, self._sizes = load(plan, "cpu"), sizes

    def __getattr__(self, name: str) -> object:
        return getattr(self._detector, name)

    def forward(self, batch, given=None):
        self._sizes.append(len(batch))
        return self._detector.forward(batch, given)
