"""What the tests of search share: the small run of the stages' tests, opened as a workspace."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from camp_model.checkpoint import save_checkpoint
from camp_model.config import CampConfig
from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from search.collection import PictureCollection, open_workspace
from stages.detectors.base import Description
from stages.detectors.scenes import build_network
from stages.detectors.weights import save_state
from stages.extract_regions import extract_regions
from stages.extraction.plan import ExtractSections
from stages.params.captions import CaptionsParams
from stages.params.dataset import DatasetParams
from stages.params.regions import RegionsParams
from stages.prepare_dataset import prepare_dataset
from stages.tokenize_captions import tokenize_captions
from tests.search.folders import folder, opened
from tests.stages.conftest import SmallRun, chromium_tab, make_checkpoint, make_run, page
from tests.stages.extraction.conftest import draw

__all__ = ["chromium_tab", "folder", "make_checkpoint", "make_run", "opened", "page"]


@pytest.fixture
def run(make_run: Callable[..., SmallRun], tmp_path: Path) -> SmallRun:
    """A small run, every switch of the model as in params.yaml."""
    return make_run(tmp_path)


@pytest.fixture
def workspace(run: SmallRun) -> PictureCollection:
    """The small run, opened."""
    return open_workspace(run.root)


HOSTILE_NAME = "<img src=x onerror=alert(1)>&amp;'.jpg"
HOSTILE_CAPTION = "<script>alert(2)</script> a dog </script><img src=x onerror='alert(3)'>"
NETWORK = {"image_size": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
PICTURES = 40


@dataclass(frozen=True)
class Photographs:
    """A workspace of real photographs, or of drawn pictures where there are none, with an untrained model."""

    root: Path
    ids: list[str]
    """Of the pictures that can be searched."""
    hostile: str
    """Id of the picture whose file name is HOSTILE_NAME and whose caption is HOSTILE_CAPTION."""

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"


def _photographs(folder: Path) -> dict[str, str]:
    """Names of COCO photographs and a caption of each, copied into `folder`; drawn pictures where there are none."""
    coco = Path(os.environ.get("CAMP_COCO_MINI", Path(__file__).parents[3] / "shared/data/coco-mini"))
    folder.mkdir(parents=True)
    if not (coco / "annotations").is_dir():
        for number in range(PICTURES):
            draw(folder / f"{number:03d}.jpg", number)
        return {f"{number:03d}.jpg": f"a drawn picture of number {number}" for number in range(PICTURES)}
    annotated = json.loads((coco / "annotations/captions_val2017.json").read_text())
    captions = {item["image_id"]: " ".join(item["caption"].split()) for item in annotated["annotations"]}
    chosen = sorted(annotated["images"], key=lambda image: image["id"])[:PICTURES]
    for image in chosen:
        shutil.copy(coco / "val2017" / image["file_name"], folder)
    return {image["file_name"]: captions[image["id"]] for image in chosen}


def extract_in(root: Path, sections: ExtractSections) -> None:
    """Extract the regions of a workspace, as its stage does."""
    data = root / "data"
    extract_regions(sections, data / "dataset", data / "detector", data / "regions", root / ".work/shards")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Forty pictures through the stages that lie before training, one damaged since, one of a hostile name."""
    root = tmp_path_factory.mktemp("photographs")
    captions = _photographs(root / "pictures")
    first = next(iter(captions))
    (root / "pictures" / first).rename(root / "pictures" / HOSTILE_NAME)
    captions = {HOSTILE_NAME: HOSTILE_CAPTION} | {name: text for name, text in captions.items() if name != first}
    with (root / "pictures/captions.csv").open("w", newline="") as file:
        splits = ["train"] * (len(captions) - 4) + ["val"] * 2 + ["test"] * 2
        rows = [(*item, split) for item, split in zip(captions.items(), splits, strict=True)]
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    dataset = DatasetParams(source="table", root=str(root / "pictures"))
    prepare_dataset(dataset, root / "data/dataset")
    damaged = list(captions)[-1]
    (root / "pictures" / damaged).write_bytes(b"no picture any more")
    torch.manual_seed(0)
    sha = save_state(build_network(NETWORK, 3, 2).state_dict(), root / "data/detector")
    description = Description("torchvision", "scenes", "test", sha, 256, ["a", "b", "c"], ["x", "y"], NETWORK)
    description.save(root / "data/detector")
    regions = RegionsParams(per_image=6, min_per_image=6, max_rejected_share=0.5)
    extract_in(root, ExtractSections(dataset=dataset, regions=regions))
    words = CaptionsParams(lexicon="photographs")
    tokenize_captions(words, root / "data/dataset", root / "data/regions/rejected.parquet", root / "data/captions")
    vocabulary = Vocabulary.load(root / "data/captions/vocabulary.json")
    torch.manual_seed(0)
    save_checkpoint(
        root / "models/camp", CAMP(CampConfig(vocab_size=len(vocabulary), region_dim=256, word_dim=8, dim=16)),
        vocabulary,
    )  # fmt: skip
    (root / "models/camp/fingerprint.json").write_text(json.dumps({"detector": description.fingerprint}))
    sections = {"dataset": dataset, "regions": regions, "captions": words}
    (root / "params.yaml").write_text(yaml.safe_dump({name: params.to_dict() for name, params in sections.items()}))
    table = pq.read_table(root / "data/dataset/images.parquet", columns=["image_id", "path"]).to_pydict()
    ids = {Path(path).name: image_id for image_id, path in zip(*table.values(), strict=True)}
    return Photographs(root, [image_id for name, image_id in ids.items() if name != damaged], ids[HOSTILE_NAME])


class Server:
    """The page of a workspace, served by a process of its own."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search", *arguments],
            cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            pytest.fail(self.process.communicate()[1])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code, and what was written to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture(scope="session")
def server(photographs: Photographs) -> Iterator[Server]:
    """The photographs' page."""
    server = Server(photographs.root)
    yield server
    server.end()


@pytest.fixture(scope="session")
def collection(photographs: Photographs) -> PictureCollection:
    """The same pictures and model in this process."""
    return open_workspace(photographs.root)


@pytest.fixture
def tab(page: Any) -> Iterator[Any]:
    """The tab; scripts run again afterwards."""
    yield page
    page.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        yield client


def picture_bytes(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()
