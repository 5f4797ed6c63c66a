"""Pictures read, checked and resized in threads, ahead of the network."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from stages.extraction.describing import Detector, Item, PlannedImage, read_picture
from stages.extraction.plan import Shard


def read_ahead(
    images: Iterator[tuple[Shard, PlannedImage]], detector: Detector, pictures: Path, max_pixels: int, ahead: int
) -> Iterator[tuple[Shard, PlannedImage, Item]]:
    """Read pictures in threads, `ahead` of them before they are asked for, and hand on the results in order."""
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
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
