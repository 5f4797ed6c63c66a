"""Extraction and the region store, each against the bare thing it wraps, in one run on this machine.

`python -m benchmarks.regions` prints ratios; the parts alone: `python -m benchmarks.regions store memory planning`.
"""

import hashlib
import importlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageFilter

from camp_model.regions import ImageRegions, RegionStore, StoreInfo, write_manifest, write_rejected, write_shard
from stages.cost import resident_bytes
from stages.detectors import DETECTORS
from stages.detectors.base import Description, NetworkInput, RegionExtractor, load_detector
from stages.detectors.images import read_image
from stages.detectors.timm import TimmExtractor
from stages.detectors.timm_maps import outputs
from stages.detectors.timm_weights import build
from stages.extract_regions import extract_regions
from stages.extraction.filling import devices, extract_missing
from stages.extraction.plan import ExtractSections, plan_shards
from stages.extraction.shard_folder import missing_shards
from stages.garbage import keep_freed_memory
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams

R, D, BATCH = 36, 2048, 128
STORE_IMAGES, SHARD = 1024, 256
EXTRACTION = {
    "cpu": (
        (DetectorParams(architecture="fasterrcnn_mobilenet_v3_large_fpn", weights="random"), 8, 4),  # short rounds
        (DetectorParams(backend="timm"), 32, 8),
    ),
    "cuda": (
        (DetectorParams(architecture="fasterrcnn_resnet50_fpn", weights="random"), 512, 8),
        (DetectorParams(backend="timm"), 2048, 64),
    ),
}
"""Networks, each with how many photographs it sees, and how many of them in a batch."""
ROUNDS = 5
PLANNED = 1_000_000
"""Images of the made-up table whose extraction is planned; there are no pictures."""


def best(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _regions(rng: np.random.Generator) -> ImageRegions:
    numbers, ids = np.zeros(R, dtype=np.float32), np.zeros(R, dtype=np.int32)
    boxes = np.zeros((R, 4), dtype=np.float32)
    return ImageRegions(rng.random((R, D), dtype=np.float32), boxes, numbers, ids, ids, numbers, 640, 480)


def make_store(folder: Path) -> RegionStore:
    """A store of STORE_IMAGES images at the published sizes."""
    info, rng, rows = StoreInfo(D, R, "benchmark"), np.random.default_rng(0), []
    for start in range(0, STORE_IMAGES, SHARD):
        once = _regions(rng)
        images = [(f"{i:012d}", once) for i in range(start, start + SHARD)]
        write_shard(folder / f"{start}.arrow", info, str(start), images)
        rows += [(name, f"{start}.arrow", row, R) for row, (name, _) in enumerate(images)]
    write_manifest(folder, info, rows)
    write_rejected(folder, info, [])
    return RegionStore(folder)


def store(folder: Path) -> None:
    """Random batches, opening, and bytes on disk."""
    kept = make_store(folder)
    flat = np.memmap(folder / "flat", dtype=np.float16, mode="w+", shape=(STORE_IMAGES, R, D))
    for i in range(STORE_IMAGES):
        flat[i] = kept.features([i])[0][0]
    batches = np.random.default_rng(1).integers(0, STORE_IMAGES, (8, BATCH))
    plain = np.memmap(folder / "flat", dtype=np.float16, mode="r", shape=(STORE_IMAGES, R, D))
    of_store, of_memmap = [], []
    for _ in range(4):  # by turns: what else the machine does meets both
        of_memmap.append(best(lambda: [plain[batch] for batch in batches], 1))
        of_store.append(best(lambda: [kept.features(batch) for batch in batches], 1))
    ratio, size = min(of_memmap) / min(of_store), batches.size * R * D * 2
    print(f"random batches of {BATCH} x {R} x {D} float16: {size / min(of_store) / 1e9:.2f} GB/s, numpy.memmap")
    print(f"  {size / min(of_memmap) / 1e9:.2f} GB/s: ratio {ratio:.2f} (wanted: at least 0.5)")
    stored = sum(path.stat().st_size for path in folder.glob("*.arrow")) + (folder / "manifest.parquet").stat().st_size
    print(f"bytes on disk / raw bytes: {stored / (STORE_IMAGES * R * D * 2):.4f} (wanted: at most 1.01)")
    rows = [(f"{i:012d}", f"{i // SHARD}.arrow", i % SHARD, R) for i in range(100_000)]
    write_manifest(folder / "large", kept.info, rows)
    print(
        f"opening a store of 100,000 images: {best(lambda: RegionStore(folder / 'large'), 3):.3f} s (wanted: under 1)"
    )


def _listed(dataset: Path, names: list[str], sha256: list[str], size: tuple[int, int]) -> None:
    """images.parquet."""
    columns = {
        "image_id": [Path(name).stem for name in names],
        "path": names,
        "split": ["train"] * len(names),
        "width": pa.array([size[0]] * len(names), pa.int32()),
        "height": pa.array([size[1]] * len(names), pa.int32()),
        "sha256": sha256,
    }
    dataset.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), dataset / "images.parquet")


def stream(folder: Path, count: int, dim: int) -> None:
    """Put `count` images through the stage in this process and print how far its memory grew, in MiB."""
    DETECTORS["synthetic"] = "benchmarks._synthetic_detector"
    Description("synthetic", "", "", "", dim).save(folder / "detector")
    names = [f"{i:06d}.jpg" for i in range(count)]
    _listed(folder / "dataset", names, [""] * count, (640, 480))
    params = ExtractSections(dataset=DatasetParams(source="table"), regions=RegionsParams(batch_size=8))
    paths = (folder / "dataset", folder / "detector")
    plan_shards(params, *paths)
    before = resident_bytes("VmHWM")
    extract_regions(params, *paths, folder / "regions", folder / "shards")
    print(json.dumps((resident_bytes("VmHWM") - before) / 2**20))


def memory(folder: Path) -> None:
    """How peak memory grows with the number of images: full-size rows by two counts, and 100,000 narrower ones."""
    grown = {}
    for count, dim in ((4_000, D), (12_000, D), (100_000, 32)):
        command = [sys.executable, "-m", "benchmarks.regions", "stream", str(count), str(dim)]
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            done = subprocess.run([*command, temporary], check=True, stdout=subprocess.PIPE, text=True)
        grown[count] = float(done.stdout.splitlines()[-1])
        print(f"{count} images of {R} x {dim}: peak memory {grown[count]:.0f} MiB above the start")
    slope = max(grown[12_000] - grown[4_000], 0) / 8_000
    print(f"at 100,000 of {R} x {D}: {grown[12_000] + 88_000 * slope:.0f} MiB by that slope (wanted: under 2048)")


def _photographs(folder: Path, count: int) -> None:
    """JPEGs in two shapes, coarse as photographs are."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = ((640, 480), (480, 640))[i % 2]
        noise = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
        noise.resize((width, height)).filter(ImageFilter.SHARPEN).save(folder / f"{i:03d}.jpg", quality=90)


def _extractor(
    folder: Path, params: DetectorParams, count: int, batch_size: int
) -> tuple[ExtractSections, list[Path], list[str]]:
    """Params, photographs and their hashes; in `folder` what the stage needs to run on them."""
    pictures, detector = folder / "pictures", folder / "detector"
    _photographs(pictures, count)
    files = sorted(pictures.iterdir())
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    _listed(folder / "dataset", [path.name for path in files], hashes, (640, 480))
    detector.mkdir()
    backend = importlib.import_module(DETECTORS[params.backend])
    backend.resolve(params, detector, folder / "dataset").save(detector)
    regions = RegionsParams(
        batch_size=batch_size, max_rejected_share=0, boxes="grid" if params.backend == "timm" else "detected"
    )
    dataset = DatasetParams(source="table", root=str(pictures))
    return ExtractSections(dataset=dataset, detector=params, regions=regions), files, hashes


def _batches(params: ExtractSections, folder: Path, prepared: dict[str, NetworkInput]) -> list[list[NetworkInput]]:
    """The batches that the stage forms: one padded size, within one shard."""
    groups: dict[object, list[NetworkInput]] = defaultdict(list)
    for shard in plan_shards(params, folder / "dataset", folder / "detector").shards:
        for image in shard.images:
            item = prepared[image.image_id]
            groups[shard.key, item.group].append(item)
    size = params.regions.batch_size
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def extraction(folder: Path) -> None:
    """The whole stage with each network."""
    keep_freed_memory()  # as in every stage
    device = devices("auto")[0]
    for detector, count, batch_size in EXTRACTION["cuda" if device.startswith("cuda") else "cpu"]:
        (own := folder / detector.backend).mkdir()
        _stage_against_network(own, device, detector, count, batch_size)


def small_pages(_: Path) -> None:
    """The same where memory comes in pages of 4 KiB."""
    print("memory in pages of 4 KiB:", flush=True)
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}
    subprocess.run([sys.executable, "-m", "benchmarks.regions", "extraction"], env=environment, check=True)


def _stage_against_network(folder: Path, device: str, detector: DetectorParams, count: int, batch_size: int) -> None:
    """The whole stage against the bare network on the same images, and against one image at a time."""
    params, files, hashes = _extractor(folder, detector, count, batch_size)
    network: RegionExtractor = load_detector(folder / "detector", params.regions, device)  # type: ignore[assignment]

    def pixels(index: int) -> np.ndarray:
        return read_image(files[index], hashes[index], params.regions.max_pixels)

    prepared = {path.stem: network.prepare(pixels(i)) for i, path in enumerate(files)}
    batches = _batches(params, folder, prepared)
    network.forward(batches[0])  # the first pass sets kernels up
    runs = iter(range(100))

    def bare() -> None:
        for batch in batches:
            network.forward(batch)

    def whole_stage() -> None:
        out = folder / f"out{next(runs)}"
        plan = plan_shards(params, folder / "dataset", folder / "detector")
        # The network is loaded already: that is no part of the throughput.
        extract_missing(plan, out, device, loading=lambda *_: network)

    def one_by_one() -> None:
        for i in range(len(files)):
            network.forward([network.prepare(pixels(i))])

    ways = [bare, whole_stage, one_by_one]
    if isinstance(network, TimmExtractor):
        # As timm has it, in the same memory format: without boxes and means of cells, its norms not folded.
        own = build(network.description.architecture, None, None).to(device, memory_format=torch.channels_last)
        images = [torch.stack([item.pixels for item in batch]).to(device) for batch in batches]

        @torch.inference_mode()
        def own_forward() -> None:
            for pixels in images:
                floats = pixels.contiguous(memory_format=torch.channels_last).float()
                outputs(own, (floats / 255 - network.mean) / network.std, network.earlier)

        ways.append(own_forward)
    rate, spent = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, np.inf)
    for _ in range(ROUNDS):  # by turns: what else the machine does meets all three
        for run in ways:
            begun = time.process_time()
            rate[run] = max(rate[run], len(files) / best(run, 1))
            spent[run] = min(spent[run], time.process_time() - begun)
    architecture = Description.load(folder / "detector").architecture
    print(f"{architecture} on {device}, {len(files)} photographs of 640 x 480, {torch.get_num_threads()} threads:")
    print(f"  bare forward {rate[bare]:.2f} images/s, whole stage {rate[whole_stage]:.2f} images/s: ratio")
    print(f"  {rate[whole_stage] / rate[bare]:.3f} (wanted: at least 0.95)")
    if device == "cpu":  # where other work slows both down by chance, this still compares them
        print(f"  images per second of processor time, whole stage / bare: {spent[bare] / spent[whole_stage]:.3f}")
    for run in ways[3:]:
        print(f"  timm's own forward {rate[run]:.2f} images/s: ratio {rate[whole_stage] / rate[run]:.3f}, of processor")
        print(f"  time {spent[run] / spent[whole_stage]:.3f} (wanted: at least 0.95)")
    wanted = "wanted: at least 3" if device.startswith("cuda") else "3 is wanted on a GPU, which is not here"
    ratio = rate[whole_stage] / rate[one_by_one]
    print(f"  one image at a time {rate[one_by_one]:.2f} images/s: ratio {ratio:.2f} ({wanted})")


def planning(folder: Path) -> None:
    """What a run does before it extracts anything, and what a task of a cluster is sent."""
    Description("synthetic", "", "", "", D).save(folder / "detector")
    names = [f"{i:012d}.jpg" for i in range(PLANNED)]
    _listed(folder / "dataset", names, [hashlib.sha256(name.encode()).hexdigest() for name in names], (640, 480))
    params = ExtractSections(dataset=DatasetParams(source="table"), regions=RegionsParams())
    begun, processor = time.perf_counter(), time.process_time()
    plan = plan_shards(params, folder / "dataset", folder / "detector")
    missing = missing_shards(plan.shards, folder / "shards")
    seconds, spent = time.perf_counter() - begun, time.process_time() - processor
    print(f"planning {PLANNED:,} images: {len(plan.shards):,} shards, {seconds:.1f} s, {spent:.1f} s of processor time")
    print(f"  a task of a cluster is sent {len(pickle.dumps(plan.of(missing[:1]))):,} bytes")


PARTS: dict[str, Callable[[Path], None]] = {
    part.__name__: part for part in (store, memory, planning, extraction, small_pages)
}


def main() -> None:
    if sys.argv[1:2] == ["stream"]:
        stream(Path(sys.argv[4]), int(sys.argv[2]), int(sys.argv[3]))
        return
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder))


if __name__ == "__main__":
    main()
