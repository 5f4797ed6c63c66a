"""Extraction: what is in the store, and what happens to it when a run is killed, raced, or given other images."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from camp_model.regions import RegionStore
from stages import extract_regions as stage
from stages.detectors.base import GEOMETRY_SCALE, Description
from stages.detectors.images import MISSING
from stages.detectors.scenes import build_network
from stages.detectors.weights import save_state
from stages.device import Precision
from stages.entry import hold_outputs
from stages.errors import InputError
from stages.extraction.shards import ExtractSections, boundaries, is_whole, missing_shards, plan_shards
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


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    network = build_network(CONFIG, 3, 2)
    sha = save_state(network.state_dict(), folder)
    Description("torchvision", "scenes", "test", sha, 256, ["a", "b", "c"], ["x", "y"], CONFIG).save(folder)
    return folder


class Workplace:
    """A folder with pictures, their table and a place for the store."""

    def __init__(self, root: Path, detector: Path) -> None:
        self.root, self.detector = root, detector
        self.pictures, self.dataset, self.out = root / "pictures", root / "data/dataset", root / "data/regions"
        self.pictures.mkdir()
        for i in range(COUNT):
            draw(self.pictures / f"{i:03d}.png", i)
        self.params = ExtractSections(dataset=DatasetParams(source="table", root=str(self.pictures)), regions=REGIONS)
        self.list()

    def list(self) -> None:
        list_images(self.pictures, self.dataset)

    def run(self, **changes: object) -> None:
        params = self.params.replace(regions=REGIONS.replace(**changes)) if changes else self.params
        stage.extract_regions(params, self.dataset, self.detector, self.out)

    def shards(self) -> dict[str, tuple[int, bytes]]:
        """Inode and bytes of each shard: a shard that was written again has another inode."""
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in sorted(self.out.glob("*.arrow"))}

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out.iterdir())}

    def write_params(self) -> None:
        """What a process of its own finds in its working directory."""
        params = {
            "captions": {"lexicon": "photographs"},
            "regions": REGIONS.to_dict(),
            "dataset": {"source": "table", "root": str(self.pictures)},
        }
        (self.root / "params.yaml").write_text(yaml.safe_dump(params))
        if not (self.root / "data/detector").exists():
            (self.root / "data/detector").symlink_to(self.detector)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The stage in a process of its own, as DVC starts it."""
        self.write_params()
        repository = Path(stage.__file__).parent.parent
        environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "stages.extract_regions", *arguments]
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def workplace(tmp_path: Path, detector: Path) -> Workplace:
    return Workplace(tmp_path, detector)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, detector: Path) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    place = Workplace(tmp_path_factory.mktemp("reference"), detector)
    place.run()
    return place.files()


def test_the_store_has_every_image_in_order_with_boxes_in_its_own_pixels(workplace: Workplace) -> None:
    workplace.run()
    store = RegionStore(workplace.out)
    assert store.image_ids == [f"{i:03d}" for i in range(COUNT)]
    assert (store.region_dim, store.max_regions) == (256, 4)
    assert store.detector == Description.load(workplace.detector).fingerprint
    features, mask = store.features(range(COUNT))
    assert features.dtype == np.float16 and np.isfinite(features).all() and mask.any(axis=1).all()
    for row in range(COUNT):
        width, height = store.size(row)
        assert (width, height) == [(120, 96), (96, 120), (150, 100)][row % 3]
        assert (store.boxes(row) <= [width, height] * 2).all() and (store.boxes(row) >= 0).all()
    assert pq.read_table(workplace.out / "rejected.parquet").num_rows == 0


def test_a_gpu_would_extract_in_float32_whatever_was_set_before(workplace: Workplace) -> None:
    Precision("tf32", torch.device("cpu"))
    workplace.run()
    flags = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    assert [operator.fp32_precision for operator in flags] == ["ieee"] * 3


def test_another_run_does_nothing_and_batch_size_is_no_reason_to(workplace: Workplace) -> None:
    workplace.run()
    before = workplace.shards()
    workplace.run(batch_size=8)
    assert workplace.shards() == before


def test_batches_do_not_change_features_beyond_float16(workplace: Workplace) -> None:
    stores = []
    for batch_size in (1, 7):
        workplace.run(batch_size=batch_size)
        stores.append(RegionStore(workplace.out).features(range(COUNT))[0].astype(np.float32))
        for path in workplace.out.glob("*.arrow"):
            path.unlink()
    np.testing.assert_allclose(stores[0], stores[1], atol=np.abs(stores[0]).max() * 2**-10)


def test_geometry_and_float32_are_other_shards(workplace: Workplace) -> None:
    workplace.run()
    before = set(workplace.shards())
    workplace.run(geometry=True, dtype="float32")
    assert not before & set(workplace.shards()), "shards of other params are pruned"
    store = RegionStore(workplace.out)
    assert (store.region_dim, store.info.dtype, store.info.geometry) == (261, "float32", GEOMETRY_SCALE)
    corners = 2 * store.boxes(0) / np.array([*store.size(0)] * 2) - 1
    np.testing.assert_allclose(store.features([0])[0][0][: len(corners), -5:-1], corners * GEOMETRY_SCALE, rtol=1e-4)


def test_given_boxes_are_described_in_their_order(workplace: Workplace) -> None:
    boxes = {"000": [[10, 10, 60, 60], [0, 0, 120, 96]], "001": [[5, 5, 50, 90]]}
    rows = [(name, *map(float, box), "thing", []) for name, several in boxes.items() for box in several]
    names = ("image_id", "x0", "y0", "x1", "y1", "category", "attributes")
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    pq.write_table(table, workplace.dataset / "boxes.parquet")
    params = workplace.params.replace(
        dataset=DatasetParams(source="coco", root=str(workplace.pictures)),
        regions=REGIONS.replace(boxes="given"),
    )
    stage.extract_regions(params, workplace.dataset, workplace.detector, workplace.out)
    store = RegionStore(workplace.out)
    np.testing.assert_allclose(store.boxes(0), boxes["000"], atol=1e-3)
    np.testing.assert_allclose(store.boxes(1), boxes["001"], atol=1e-3)
    assert store.num_regions.tolist() == [2, *[1] * (COUNT - 1)]
    np.testing.assert_allclose(store.boxes(2), [[0, 0, 150, 100]], atol=1e-3)


def test_unusable_files_are_rejected_with_reasons_and_the_run_goes_on(
    workplace: Workplace, capsys: pytest.CaptureFixture[str]
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
    draw(workplace.pictures / "011.png", 11)
    workplace.run(max_pixels=1_000_000)
    changed = {name for name, (inode, _) in workplace.shards().items() if before[name][0] != inode}
    assert len(changed) == 1
    assert "011" in RegionStore(workplace.out).image_ids


def test_too_many_rejected_images_stop_the_stage(workplace: Workplace) -> None:
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


def test_a_changed_image_touches_its_shard_alone(workplace: Workplace) -> None:
    workplace.run()
    before = workplace.shards()
    draw(workplace.pictures / "020.png", 999)
    workplace.list()
    workplace.run()
    after = workplace.shards()
    assert len(before.keys() - after.keys()) == len(after.keys() - before.keys()) == 1
    assert all(after[name] == before[name] for name in before.keys() & after.keys()), (
        "the others were not written again"
    )


def test_added_images_are_extracted_and_the_other_shards_left(workplace: Workplace) -> None:
    workplace.run()
    before = workplace.shards()
    for name in ("017a", "017b", "040"):
        draw(workplace.pictures / f"{name}.png", 7)
    workplace.list()
    workplace.run()
    after = workplace.shards()
    assert 1 <= len(after.keys() - before.keys()) <= 4 < len(after), "those that the three fall into, and neighbours"
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    assert len(RegionStore(workplace.out)) == COUNT + 3


def test_added_images_touch_few_shards() -> None:
    ids = [f"{i:06d}" for i in range(10_000)]
    size = 128

    def runs(names: list[str]) -> set[tuple[str, ...]]:
        return {tuple(names[start:stop]) for start, stop in boundaries(names, size)}

    base = runs(ids)
    lengths = [len(run) for run in base]
    assert max(lengths) <= size and sum(length > size // 3 for length in lengths) > 0.9 * len(lengths)
    added = [f"new{i:03d}" for i in range(100)]
    for position in (0, 3_333, 10_000):
        changed = runs(ids[:position] + added + ids[position:]) - base
        assert len(changed) <= 5, "the added images are most of a shard; its neighbours may be cut elsewhere"
    taken = runs(ids[:5_000] + ids[5_100:]) - base
    assert len(taken) <= 4
    assert [name for start, stop in boundaries(ids, size) for name in ids[start:stop]] == ids


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_lists_are_cut_whole(count: int, size: int) -> None:
    runs = boundaries([str(i) for i in range(count)], size)
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(count))
    assert all(0 < stop - start <= size for start, stop in runs)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_killed_run_resumes_to_the_same_bytes(workplace: Workplace, reference: dict[str, bytes], shards: int) -> None:
    child = workplace.start()
    wait_for(lambda: len(list(workplace.out.glob("*.arrow"))) >= shards)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.communicate()
    assert not (workplace.out / "manifest.parquet").exists(), "the run was killed in the middle"
    # What a kill in the middle of writing leaves behind, in each of its forms.
    (workplace.out / ".torn.arrow.0123.tmp").write_bytes(b"half")
    torn = max(
        plan_shards(workplace.params, workplace.dataset, workplace.detector),
        key=lambda s: not is_whole(s, workplace.out),
    )
    (workplace.out / torn.file_name).write_bytes(reference[torn.file_name][:5000])
    before = workplace.shards()
    workplace.run()
    assert workplace.files() == reference
    again = workplace.shards()
    kept = [name for name in before if name != torn.file_name]
    assert kept and all(again[name][0] == before[name][0] for name in kept), "a whole shard was extracted twice"


def test_two_processes_race_to_the_same_end(workplace: Workplace, reference: dict[str, bytes]) -> None:
    children = [workplace.start() for _ in range(2)]
    for child in children:
        out, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
        assert "40 images" in out
    assert workplace.files() == reference


def test_parts_are_filled_in_by_several_processes(workplace: Workplace, reference: dict[str, bytes]) -> None:
    children = [workplace.start("--shards", part, "--device", "cpu") for part in ("1/2", "2/2")]
    for child in children:
        _, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
    assert not (workplace.out / "manifest.parquet").exists()
    before = workplace.shards()
    workplace.run()
    assert workplace.shards() == before
    assert workplace.files() == reference


def test_several_devices_each_get_a_process(
    workplace: Workplace, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a stage that DVC runs: its outputs are held, and what the processes are to do is in no params.yaml.
    monkeypatch.chdir(workplace.root)
    monkeypatch.setenv("DVC_STAGE", "extract_regions")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(stage, "devices", lambda _: ["cpu", "cpu"])
    with hold_outputs("extract_regions"):
        workplace.run()
    assert workplace.files() == reference


def test_chosen_shards_alone_are_extracted(workplace: Workplace) -> None:
    shards = plan_shards(workplace.params, workplace.dataset, workplace.detector)
    done = stage.extract_missing(
        workplace.params, workplace.dataset, workplace.detector, workplace.out, {shards[2].key}
    )
    assert done == [shards[2].key]
    assert missing_shards(shards, workplace.out) == [shard for shard in shards if shard is not shards[2]]
    with pytest.raises(RuntimeError, match="all shards must be extracted"):
        stage.finish_store(workplace.params, workplace.detector, shards, workplace.out)


def test_read_only_links_of_a_cache_are_replaced_and_never_written(workplace: Workplace) -> None:
    workplace.run()
    cache = workplace.root / "cache"
    cache.mkdir()
    for path in list(workplace.out.iterdir()):
        path.chmod(0o444)
        os.link(path, cache / path.name)
    cached = {path.name: path.read_bytes() for path in cache.iterdir()}
    draw(workplace.pictures / "020.png", 999)
    workplace.list()
    workplace.run()
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == cached


def test_broken_tables_and_devices_are_named(workplace: Workplace) -> None:
    with pytest.raises(InputError, match=r"regions\.device: 'cuda:97' is not here"):
        workplace.run(device="cuda:97")
    with pytest.raises(InputError, match="is not a part such as 2/4"):
        stage._part("5/4", [])
    (workplace.dataset / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"images\.parquet: cannot be read"):
        workplace.run()
