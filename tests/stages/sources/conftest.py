"""A small table of pictures to prepare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.params.dataset import DatasetParams
from stages.prepare_dataset import prepare_dataset


def picture(file: Path, number: int) -> None:
    """A picture unlike any of another number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (number % 256, number // 256, 77)).save(file, "PNG")


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Path]:
    """Runs the stage over the table `rows` (header and rows of a CSV) in tmp_path/raw; returns its output folder."""

    def run(rows: str | None = None, pictures: bool = True, **more: Any) -> Path:
        if rows is not None:
            (tmp_path / "raw/captions.csv").write_text(rows, encoding="utf-8")
        values = {"source": "table", "root": str(tmp_path / "raw")} | more
        prepare_dataset(DatasetParams.from_dict(values), tmp_path / "dataset", pictures)
        return tmp_path / "dataset"

    for number in range(1, 7):
        picture(tmp_path / f"raw/{number}.jpg", number)
    return run


GOOD = "image,caption,split\n1.jpg,one,train\n2.jpg,two,val\n3.jpg,three,test\n"


def splits(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "images.parquet")
    return dict(zip(table["image_id"].to_pylist(), table["split"].to_pylist(), strict=True))
