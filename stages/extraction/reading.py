"""Pictures read, checked and resized in threads, ahead of the network."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from camp_model.regions import ImageRegions
from stages.detectors.base import NetworkInput, PrecomputedRegions, RegionExtractor
from stages.detectors.images import RejectedImage, read_image
from stages.extraction.plan import PlannedImage, Shard

Detector = RegionExtractor | PrecomputedRegions
Item = NetworkInput | ImageRegions | RejectedImage


def reader(detector: Detector, pictures: Path, max_pixels: int) -> Callable[[PlannedImage], Item]:
    """What a thread does with one image; precomputed regions need no picture."""

    def read(image: PlannedImage) -> Item:
        try:
            if not hasattr(detector, "prepare"):
                return detector.read(image.image_id, image.path, image.width, image.height)
            return detector.prepare(read_image(pictures / image.path, image.sha256, max_pixels))
        except RejectedImage as error:
            return error

    return read


def read_ahead(
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
