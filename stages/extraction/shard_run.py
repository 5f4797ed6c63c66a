"""Extracts one shard: runs its images through the network, keeps partial results, and writes the file at the end."""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import cast

from camp_model.regions import ImageRegions, read_shard, storage_problem, write_shard
from stages.detectors.base import NetworkInput, RegionExtractor
from stages.detectors.images import RejectedImage
from stages.errors import InputError
from stages.extraction.describing import Detector, Item, PlannedImage, describe, with_geometry
from stages.extraction.plan import Plan, Shard
from stages.extraction.shard_folder import complete_header

WAITING_BYTES = 256 << 20
"""Bytes of decoded pictures that may wait for others of their shape; beyond it the largest group runs as it is."""
PARTIAL_SECONDS = 60.0
"""Seconds between writes of a shard's partial results, so that a kill loses no more than that."""


class ShardRun:
    """Runs the images of one shard through the network, in batches of one padded size.

    An earlier run may have left results, in partial files or in a shard with temporarily rejected images. All pictures
    are read again, to form the same batches as in an uninterrupted run; only those without a result go through the
    network.
    """

    def __init__(
        self, shard: Shard, plan: Plan, detector: Detector, folder: Path, reject: Callable[[PlannedImage, str], None]
    ) -> None:
        self.shard, self.info, self.params = shard, plan.info, plan.params.regions
        self.detector, self.folder = detector, folder
        self._reject = reject
        self._before = complete_header(folder / shard.file_name, shard)
        self._results: dict[str, ImageRegions] = {}
        for path in [*self._partial_files(), *([folder / shard.file_name] if self._before else [])]:
            self._results |= _readable(path)
        self._rejected: dict[str, str] = {}
        self._waiting: dict[tuple[int, int], list[tuple[PlannedImage, NetworkInput]]] = defaultdict(list)
        self._waiting_bytes = 0
        self._unwritten: list[tuple[str, ImageRegions]] = []
        self._written_at = time.monotonic()

    def add(self, image: PlannedImage, item: Item) -> None:
        """Add the next image of the shard, as `read_ahead` yields it."""
        if isinstance(item, NetworkInput):
            self._waiting[item.group].append((image, item))
            self._waiting_bytes += item.pixels.nbytes
            if len(self._waiting[item.group]) == self.params.batch_size:
                self._run(item.group)
            elif self._waiting_bytes > WAITING_BYTES:
                self._run(max(self._waiting, key=lambda group: len(self._waiting[group])))
        elif image.image_id not in self._results:
            if isinstance(item, RejectedImage):
                self._set_aside(image, str(item))
            else:
                self._accept(image, item)

    def _run(self, group: tuple[int, int]) -> None:
        batch = self._waiting.pop(group)
        self._waiting_bytes -= sum(item.pixels.nbytes for _, item in batch)
        batch = [(image, item) for image, item in batch if image.image_id not in self._results]
        if not batch:
            return
        regions = describe(cast(RegionExtractor, self.detector), batch, self.params)
        for (image, _), result in zip(batch, regions, strict=True):
            self._accept(image, result)

    def _accept(self, image: PlannedImage, regions: ImageRegions) -> None:
        if not len(regions.features):
            self._set_aside(image, "the detector returned no region")
            return
        regions = with_geometry(regions, self.params)
        if reason := storage_problem(self.info, regions):
            self._set_aside(image, f"{reason} (regions.dtype: {self.info.dtype})")
            return
        self._results[image.image_id] = regions
        self._unwritten.append((image.image_id, regions))
        if time.monotonic() - self._written_at > PARTIAL_SECONDS:
            name = f"{self.shard.key}.{uuid.uuid4().hex}.partial"
            write_shard(self.folder / name, self.info, self.shard.key, self._unwritten)
            self._unwritten, self._written_at = [], time.monotonic()

    def _set_aside(self, image: PlannedImage, reason: str) -> None:
        self._rejected[image.image_id] = reason
        self._reject(image, reason)

    def finish(self) -> None:
        """Run the images that are still waiting."""
        for group in list(self._waiting):
            self._run(group)

    def write(self) -> bool:
        """Write the shard, in its order, unless the same rows are there; return whether it was written."""
        path, ids = self.folder / self.shard.file_name, [image.image_id for image in self.shard.images]
        rows = [(image_id, self._results[image_id]) for image_id in ids if image_id in self._results]
        rejected = [(image_id, self._rejected[image_id]) for image_id in ids if image_id in self._rejected]
        unchanged = self._before is not None and self._before.rejected == rejected
        if not unchanged:
            try:
                write_shard(path, self.info, self.shard.key, rows, rejected)
            except ValueError as error:
                raise InputError(f"{path}: cannot be written: {error}") from None
        for partial in self._partial_files():
            partial.unlink(missing_ok=True)
        return not unchanged

    def _partial_files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.shard.key}.*.partial"))


def _readable(path: Path) -> dict[str, ImageRegions]:
    try:
        return read_shard(path)
    except ValueError:  # removed meanwhile by the process that finished the shard
        return {}
