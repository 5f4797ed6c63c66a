"""Ten times the images: no peak of memory grows beyond its constant, no stage is silent for over ten seconds."""

from pathlib import Path

import pytest

from benchmarks.memory import IMAGES, PER_IMAGE, STEADY, measure

SILENT = 10.0


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_peaks_and_silences_with_ten_times_the_images(tmp_path: Path) -> None:
    few, many = (measure(tmp_path / str(images), images) for images in IMAGES)
    assert few.keys() == PER_IMAGE.keys()
    for stage, constant in PER_IMAGE.items():
        growth = many[stage].peak - few[stage].peak
        print(f"{stage}: {few[stage].peak / 1e6:.0f} MB, {growth / 1e6:+.0f} MB; silent {many[stage].silent:.1f} s")
        assert growth <= STEADY + constant * (IMAGES[1] - IMAGES[0]), stage
        assert max(few[stage].silent, many[stage].silent) <= SILENT, stage
