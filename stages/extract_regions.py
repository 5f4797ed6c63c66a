"""Stage extract_regions: the pictures' regions, from the detector into content-keyed shards.

Threads read, check and resize pictures ahead, the device runs the network, another thread writes: none waits for the
others. `--shards 2/4` fills in every fourth shard and stops there, for several processes, devices or machines over
one folder; the plain run then finds nothing left to do and finishes the store.
"""

import argparse
import itertools
import multiprocessing
import os
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from camp_model.regions import ImageRegions, StoreInfo, write_shard
from stages.detectors.base import (
    Description,
    NetworkInput,
    PrecomputedRegions,
    RegionExtractor,
    append_geometry,
    given_boxes,
    load_detector,
)
from stages.detectors.images import RejectedImage, read_image
from stages.device import Precision
from stages.entry import end_with_parent, read_params, stage_main
from stages.errors import InputError
from stages.extraction.shards import (
    ExtractSections,
    PlannedImage,
    Shard,
    check_rejected,
    finish_store,
    is_whole,
    missing_shards,
    plan_shards,
    store_info,
)
from stages.params.regions import RegionsParams

DATASET, DETECTOR, OUT = Path("data/dataset"), Path("data/detector"), Path("data/regions")
READ_AHEAD = 4
"""Batches of pictures that are decoded ahead of the network."""
WAITING_BYTES = 256 << 20
"""Decoded pictures that may wait for others of their shape; beyond it the largest group runs as it is."""

Item = NetworkInput | ImageRegions | RejectedImage


def devices(name: str) -> list[str]:
    """The devices that `regions.device` means: `auto` and `cuda` are all GPUs of this machine.

    Raises:
        InputError: no such device here.
    """
    count = torch.cuda.device_count()
    if name in ("auto", "cuda") and count:
        return [f"cuda:{i}" for i in range(count)]
    if name == "auto":
        return ["mps" if torch.backends.mps.is_available() else "cpu"]
    known = name == "cpu" or (name == "mps" and torch.backends.mps.is_available())
    if not known and name not in {f"cuda:{i}" for i in range(count)}:
        raise InputError(f"params.yaml: regions.device: {name!r} is not here; expected auto, cpu, cuda, cuda:N or mps")
    return [name]


def _feed(shards: Sequence[Shard], out: Path) -> Iterator[tuple[Shard, PlannedImage]]:
    """The images of the shards one after another; a shard that somebody else finished meanwhile is passed over."""
    for shard in shards:
        if not is_whole(shard, out):
            yield from ((shard, image) for image in shard.images)


def _read_ahead(
    images: Iterator[tuple[Shard, PlannedImage]], read: Callable[[PlannedImage], Item], ahead: int
) -> Iterator[tuple[Shard, PlannedImage, Item]]:
    """Run `read` in threads, `ahead` images before they are asked for, and hand on the results in order."""
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        pending: deque[tuple[Shard, PlannedImage, Future[Item]]] = deque()
        try:
            for shard, image in images:
                pending.append((shard, image, pool.submit(read, image)))
                if len(pending) > ahead:
                    done_shard, done_image, item = pending.popleft()
                    yield done_shard, done_image, item.result()
            while pending:
                done_shard, done_image, item = pending.popleft()
                yield done_shard, done_image, item.result()
        finally:
            for *_, item in pending:
                item.cancel()


def _reader(
    detector: RegionExtractor | PrecomputedRegions, root: Path, max_pixels: int
) -> Callable[[PlannedImage], Item]:
    """What a thread does with one image."""

    def read(image: PlannedImage) -> Item:
        try:
            if not hasattr(detector, "prepare"):
                return detector.read(image.image_id, image.path, image.width, image.height)
            return detector.prepare(read_image(root / image.path, image.sha256, max_pixels))
        except RejectedImage as error:
            return error

    return read


class _ShardRun:
    """The images of one shard on their way through the network, in batches of one padded size."""

    def __init__(self, detector: RegionExtractor | PrecomputedRegions, params: RegionsParams) -> None:
        self.detector, self.params = detector, params
        self.found: dict[str, ImageRegions] = {}
        self.rejected: list[tuple[str, str]] = []
        self.waiting: dict[tuple[int, int], list[tuple[PlannedImage, NetworkInput]]] = defaultdict(list)
        self.waiting_bytes = 0

    def add(self, image: PlannedImage, item: Item) -> None:
        if isinstance(item, RejectedImage):
            self.rejected.append((image.image_id, str(item)))
        elif isinstance(item, ImageRegions):
            self.found[image.image_id] = item
        else:
            self.waiting[item.group].append((image, item))
            self.waiting_bytes += item.pixels.nbytes
            if len(self.waiting[item.group]) == self.params.batch_size:
                self._run(item.group)
            elif self.waiting_bytes > WAITING_BYTES:
                self._run(max(self.waiting, key=lambda group: len(self.waiting[group])))

    def _run(self, group: tuple[int, int]) -> None:
        batch = self.waiting.pop(group)
        self.waiting_bytes -= sum(item.pixels.nbytes for _, item in batch)
        given = None
        if self.params.boxes == "given":
            given = [
                given_boxes(image.boxes, item.width, item.height, self.params.per_image)
                for image, item in batch
                if image.boxes is not None
            ]
        regions = self.detector.forward([item for _, item in batch], given)  # type: ignore[union-attr]
        self.found |= {image.image_id: result for (image, _), result in zip(batch, regions, strict=True)}

    def finish(self, shard: Shard) -> list[tuple[str, ImageRegions]]:
        """Run what still waits; the shard's rows in its order."""
        for group in list(self.waiting):
            self._run(group)
        rows = [(image.image_id, self.found[image.image_id]) for image in shard.images if image.image_id in self.found]
        return [(name, append_geometry(item)) for name, item in rows] if self.params.geometry else rows


def _write(shard: Shard, out: Path, info: StoreInfo, run: _ShardRun, rows: list[tuple[str, ImageRegions]]) -> None:
    try:
        write_shard(out / shard.file_name, info, shard.key, rows, run.rejected)
    except FileNotFoundError:
        # A process that finished the same store removed our temporary: then this shard is there.
        if not is_whole(shard, out):
            raise
    except ValueError as error:
        raise InputError(f"{out / shard.file_name}: cannot be written: {error}") from None


def extract_missing(
    params: ExtractSections,
    dataset: Path,
    detector: Path,
    out: Path,
    shard_keys: Collection[str] | None = None,
    device: str | None = None,
) -> list[str]:
    """Extract the shards that are not in `out` yet; any number of processes may do so over one folder.

    Args:
        params: what the stage reads of params.yaml.
        dataset: the folder of images.parquet.
        detector: the folder of detector.json.
        out: the folder of the store.
        shard_keys: only shards with these content keys (see `plan_shards`); None: all.
        device: where to run; None: the first that `regions.device` means.

    Returns:
        The content keys of the shards that were extracted now.

    Raises:
        InputError: an input is missing or damaged, or too many images are rejected.
    """
    planned = plan_shards(params, dataset, detector)
    wanted = [shard for shard in planned if shard_keys is None or shard.key in shard_keys]
    todo = missing_shards(wanted, out)
    if not todo:
        return []
    out.mkdir(parents=True, exist_ok=True)
    device = device or devices(params.regions.device)[0]
    Precision("fp32", torch.device(device))
    network = load_detector(detector, params.regions, device, params.detector)
    info = store_info(params.regions, Description.load(detector))
    read = _reader(network, params.dataset.image_root(dataset), params.regions.max_pixels)
    stream = _read_ahead(_feed(todo, out), read, READ_AHEAD * params.regions.batch_size)
    total = sum(len(shard.images) for shard in planned)
    done, rejected = [], []
    bar = tqdm(total=sum(len(shard.images) for shard in todo), unit="image", mininterval=2, dynamic_ncols=True)
    with bar, ThreadPoolExecutor(max_workers=1) as writer:
        written: Future[None] | None = None
        for shard, group in itertools.groupby(stream, key=lambda entry: entry[0]):
            run = _ShardRun(network, params.regions)
            for _, image, item in group:
                run.add(image, item)
                bar.update()
                if isinstance(item, RejectedImage):
                    rejected.append((image.image_id, image.path, str(item)))
                    check_rejected(rejected, total, params.regions, " so far")
            rows = run.finish(shard)
            if written is not None:
                written.result()
            written = writer.submit(_write, shard, out, info, run, rows)
            done.append(shard.key)
        if written is not None:
            written.result()
    return done


def _on_devices(
    params: ExtractSections, dataset: Path, detector: Path, out: Path, missing: Sequence[Shard], names: Sequence[str]
) -> None:
    """One process per device, each over its share of the missing shards. Raises what a process raised."""
    # Started afresh: a process that was forked cannot use CUDA.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(names), mp_context=fresh, initializer=end_with_parent) as pool:
        parts = [
            pool.submit(
                extract_missing, params, dataset, detector, out, [shard.key for shard in missing[i :: len(names)]], name
            )
            for i, name in enumerate(names)
        ]
        for part in as_completed(parts):
            part.result()


def extract_regions(params: ExtractSections, dataset: Path, detector: Path, out: Path) -> None:
    """The whole stage: extract what is missing, then finish the store."""
    shards = plan_shards(params, dataset, detector)
    missing = missing_shards(shards, out)
    names = devices(params.regions.device)
    if len(names) > 1 and len(missing) > 1:
        _on_devices(params, dataset, detector, out, missing, names)
    else:
        extract_missing(params, dataset, detector, out, device=names[0])
    out.mkdir(parents=True, exist_ok=True)
    counts = finish_store(params, detector, shards, out)
    print(f"{counts.images} images in {len(shards)} shards ({len(missing)} extracted now), {counts.rejected} rejected")


def _part(text: str, shards: Sequence[Shard]) -> list[str]:
    """The keys of part `2/4`: every fourth shard from the second on."""
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise InputError(f"--shards: {text!r} is not a part such as 2/4")
    return [shard.key for shard in shards[int(number) - 1 :: int(parts)]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Extract the regions of all images.")
    parser.add_argument("--shards", help="only this part of the shards, such as 2/4; does not finish the store")
    parser.add_argument("--device", help="cpu, cuda:N or mps, for --shards")
    arguments = parser.parse_args()
    params = read_params(ExtractSections)
    if arguments.shards is None:
        extract_regions(params, DATASET, DETECTOR, OUT)
        return
    keys = _part(arguments.shards, plan_shards(params, DATASET, DETECTOR))
    extract_missing(params, DATASET, DETECTOR, OUT, shard_keys=keys, device=arguments.device)


if __name__ == "__main__":
    stage_main(main, arguments=True)
