"""What the tests of extraction share: forty small pictures, an untrained detector, and the stage over both."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from stages import extract_regions as stage
from stages.detectors.base import Description
from stages.detectors.scenes import build_network
from stages.detectors.weights import save_state
from stages.extraction.plan import ExtractSections, Plan, plan_shards
from stages.params.dataset import DatasetParams
from stages.params.regions import RegionsParams

CONFIG = {"image_size": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
REGIONS = RegionsParams(per_image=4, min_per_image=4, batch_size=3, shard_size=6, max_rejected_share=0.5)
COUNT = 40


def draw(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = [(120, 96), (96, 120), (150, 100)][seed % 3]
    pixels = np.kron(rng.integers(0, 255, (6, 6, 3)), np.ones((30, 30, 1)))[:height, :width].astype(np.uint8)
    Image.fromarray(pixels).save(path)


def list_images(root: Path, dataset: Path) -> None:
    """images.parquet over the pictures in `root`, by name."""
    files = sorted(path for path in root.iterdir())
    columns = {
        "image_id": [path.stem for path in files],
        "path": [path.name for path in files],
        "split": ["train"] * len(files),
        "width": pa.array([0] * len(files), pa.int32()),
        "height": pa.array([0] * len(files), pa.int32()),
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
    }
    dataset.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), dataset / "images.parquet")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over another number of threads round differently; runs are compared byte for byte here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    network = build_network(CONFIG, 3, 2)
    sha = save_state(network.state_dict(), folder)
    Description("torchvision", "scenes", "test", sha, 256, ["a", "b", "c"], ["x", "y"], CONFIG).save(folder)
    return folder


class Workplace:
    """A folder with pictures, their table, a folder of shards and a place for the store."""

    def __init__(self, root: Path, detector: Path, count: int = COUNT) -> None:
        self.root, self.detector = root, detector
        self.pictures, self.dataset, self.out = root / "pictures", root / "data/dataset", root / "data/regions"
        self.folder = root / ".work/shards"
        self.pictures.mkdir()
        for i in range(count):
            draw(self.pictures / f"{i:03d}.png", i)
        self.params = ExtractSections(dataset=DatasetParams(source="table", root=str(self.pictures)), regions=REGIONS)
        self.list()

    def draw(self, name: str, seed: int) -> None:
        """A picture of this name, made from the seed."""
        draw(self.pictures / name, seed)

    def list(self) -> None:
        list_images(self.pictures, self.dataset)

    def changed(self, **changes: object) -> ExtractSections:
        return self.params.replace(regions=REGIONS.replace(**changes)) if changes else self.params

    def plan(self, **changes: object) -> Plan:
        return plan_shards(self.changed(**changes), self.dataset, self.detector)

    def run(self, **changes: object) -> None:
        stage.extract_regions(self.changed(**changes), self.dataset, self.detector, self.out, self.folder)

    def shards(self, folder: Path | None = None) -> dict[str, tuple[int, bytes]]:
        """Inode and bytes of each shard of the store: a shard that was written again has another inode."""
        paths = sorted((folder or self.out).glob("*.arrow"))
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in paths}

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out.iterdir())}

    def write_params(self, **changes: object) -> None:
        """What a process of its own finds in its working directory."""
        dataset = {"source": "table", "root": str(self.pictures)}
        regions = self.changed(**changes).regions.to_dict()
        params = {"regions": regions, "dataset": dataset, "captions": {"lexicon": "photographs"}}
        (self.root / "params.yaml").write_text(yaml.safe_dump(params))
        if not (self.root / "data/detector").exists():
            (self.root / "data/detector").symlink_to(self.detector)

    def start(self, *arguments: str, before: str = "", **changes: object) -> subprocess.Popen[str]:
        """The stage in a process of its own, as DVC starts it; `before`: Python that runs first."""
        self.write_params(**changes)
        repository = Path(stage.__file__).parent.parent
        environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
        code = f"{before}\nfrom stages.extract_regions import main, stage_main\nstage_main(main, arguments=True)"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def workplace(tmp_path: Path, detector: Path) -> Workplace:
    return Workplace(tmp_path, detector)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, detector: Path) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    place = Workplace(tmp_path_factory.mktemp("reference"), detector)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place.run()
    torch.set_num_threads(threads)
    return place.files()
