"""Extracts the missing shards, on one device or on several."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from stages import usable_cores
from stages.detectors.base import load_detector
from stages.device import Precision, choose_device
from stages.entry import end_with_parent
from stages.errors import InputError
from stages.extraction.describing import Detector, Item, PlannedImage, read_picture
from stages.extraction.plan import Plan, Shard
from stages.extraction.shard_folder import is_complete, missing_shards
from stages.extraction.shard_run import ShardRun
from stages.extraction.store import check_rejected_images

READ_AHEAD = 4
"""Batches of pictures that are decoded ahead of the network."""


def devices(name: str, key: str = "params.yaml: regions.device") -> list[str]:
    """The devices that `name`, the value of `key`, means: `auto` and `cuda` are all GPUs that this process may use.

    Raises:
        InputError: there is no such device here.
    """
    count = torch.cuda.device_count()
    if name in ("auto", "cuda") and count:
        return [f"cuda:{i}" for i in range(count)]
    return [str(choose_device(name, key))]


def load(plan: Plan, device: str) -> Detector:
    """Load the plan's detector, ready to run on a device."""
    return load_detector(plan.detector, plan.params.regions, device, plan.params.detector)


def _missing_images(shards: Sequence[Shard], folder: Path) -> Iterator[tuple[Shard, PlannedImage]]:
    """Yield the images of the shards in order; shards that another process has finished meanwhile are skipped."""
    for shard in shards:
        if not is_complete(shard, folder):
            yield from ((shard, image) for image in shard.images)


def read_ahead(
    images: Iterator[tuple[Shard, PlannedImage]], detector: Detector, pictures: Path, max_pixels: int, ahead: int
) -> Iterator[tuple[Shard, PlannedImage, Item]]:
    """Read pictures in threads, up to `ahead` of them in advance, and yield the results in order."""
    with ThreadPoolExecutor(max_workers=min(usable_cores(), 8)) as pool:
        pending: deque[tuple[Shard, PlannedImage, Future[Item]]] = deque()
        try:
            for shard, image in images:
                pending.append((shard, image, pool.submit(read_picture, detector, pictures, image, max_pixels)))
                if len(pending) > ahead:
                    done_shard, done_image, item = pending.popleft()
                    yield done_shard, done_image, item.result()
            while pending:
                done_shard, done_image, item = pending.popleft()
                yield done_shard, done_image, item.result()
        finally:
            for *_, item in pending:
                item.cancel()


def extract_missing(
    plan: Plan, folder: Path, device: str | None = None, loading: Callable[[Plan, str], Detector] = load
) -> list[str]:
    """Extract those of the plan's shards that are missing in `folder`; any number of processes may share it.

    Args:
        plan: the shards.
        folder: the folder of shards.
        device: where to run; None: the first device of `regions.device`.
        loading: loads the detector; called only if a shard is missing.

    Returns:
        The content keys of the shards that were written now.

    Raises:
        InputError: an input is missing or damaged, or too many images are rejected.
    """
    todo = missing_shards(plan.shards, folder)
    if not todo:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    params = plan.params.regions
    device = device or devices(params.device)[0]
    Precision("fp32", torch.device(device))  # features must not depend on whether this device has TF32
    detector = loading(plan, device)
    if detector.fingerprint != plan.info.detector:
        raise InputError(
            f"{plan.detector}: the detector on this machine is {detector.fingerprint[:12]}, the plan's is "
            f"{plan.info.detector[:12]}; expected the same weights, code and library versions on all machines"
        )
    ahead = READ_AHEAD * params.batch_size
    stream = read_ahead(_missing_images(todo, folder), detector, plan.pictures, params.max_pixels, ahead)
    rejected: list[tuple[str, str, str]] = []

    def reject(image: PlannedImage, reason: str) -> None:
        rejected.append((image.image_id, image.path, reason))
        check_rejected_images(rejected, plan.total, params, " so far")

    writing: list[tuple[str, Future[bool]]] = []
    bar = tqdm(total=sum(len(shard.images) for shard in todo), unit="image")
    with bar, ThreadPoolExecutor(max_workers=1) as writer:
        for shard, group in itertools.groupby(stream, key=lambda entry: entry[0]):
            run = ShardRun(shard, plan, detector, folder, reject)
            for _, image, item in group:
                run.add(image, item)
                bar.update()
            run.finish()
            if writing:
                writing[-1][1].result()  # at most one shard waits to be written
            writing.append((shard.key, writer.submit(run.write)))
    if padded := getattr(detector, "padded", ()):
        print(f"{len(padded)} images had rows of zeros after their precomputed regions, which were cut")
    return [key for key, written in writing if written.result()]


def extract_on_devices(plan: Plan, folder: Path, names: Sequence[str]) -> list[str]:
    """Run `extract_missing` in one process per device, each on its share of the shards. Raises what they raise."""
    if len(names) == 1 or len(plan.shards) < 2:
        return extract_missing(plan, folder, names[0])
    # Spawned: a forked process cannot use CUDA.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(names), mp_context=fresh, initializer=end_with_parent) as pool:
        shares = [
            pool.submit(extract_missing, plan.of(plan.shards[i :: len(names)]), folder, name)
            for i, name in enumerate(names)
        ]
        return [key for share in as_completed(shares) for key in share.result()]
