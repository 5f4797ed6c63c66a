"""What is known of pictures, on disk: regions by content and extractor, for all folders of a person.

The shards are the state, and there is no other: each is a file that is whole or not there, named by the content of its
pictures, and never changed. So a process that is killed has lost the shard that it was at, and two processes cannot
spoil anything; the lock only keeps them from extracting the same pictures twice.
"""

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from camp_model.model import CAMP
from camp_model.regions import MappedShard, RegionStore, StoreInfo, map_shard, read_header
from camp_model.seal import check_seal
from search.features import Extraction, Looker
from stages.detectors.base import Description
from stages.detectors.images import PASSING_REASONS
from stages.errors import InputError
from stages.extraction.describing import PlannedImage, store_info
from stages.extraction.filling import read_ahead
from stages.extraction.plan import ExtractSections, Plan, Shard, extraction_head, shard_key
from stages.extraction.shard_run import ShardRun
from stages.indexing.engines import Vectors
from stages.indexing.vectors import shard_vectors, vector_file

Row = tuple[str, str, int, int]
"""(sha256 of a picture, shard's file name, row in it, number of regions)"""
READ_AHEAD = 24
"""Pictures decoded ahead of the network."""
STALE = 3600.0
"""Seconds after which a temporary file is what a killed process left."""


class FeatureCache:
    """The regions that one extractor has seen.

    Args:
        folder: of all caches.
        looker: the extractor.
        extraction: what it was set up with.
    """

    def __init__(self, folder: Path, looker: Looker, extraction: Extraction) -> None:
        description = Description.load(looker.folder)
        # One at a time, which on a CPU is as fast: what is seen in a picture then depends, to the bit, on no other one.
        regions = extraction.regions.replace(max_rejected_share=1.0, device="cpu", batch_size=1)
        self.params = ExtractSections(detector=extraction.detector, regions=regions)
        self._head = extraction_head(self.params, description)
        self.folder = folder / "regions" / shard_key(self._head, ())
        self.vectors = folder / "vectors"
        self.lock = self.folder / "lock"
        self.info: StoreInfo = store_info(self.params.regions, description)
        self.looker = looker
        self.rows: dict[str, Row] = {}
        """By sha256, what has regions."""
        self.rejected: dict[str, str] = {}
        """sha256 -> why there will be no regions."""
        self._shards: dict[str, list[Row]] = {}
        """The rows of each shard, by file name."""
        self._mapped: dict[str, MappedShard] = {}
        """What is known is mapped, so that it can be read when another process has removed its file."""
        self._files: dict[str, tuple[int, int] | None] = {}
        """Inode and time of change of the files that are mapped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def _clean(self) -> None:
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob("*.partial")]:
            file = _file(path)  # None: another process has just renamed it
            if file and time.time() - file[1] / 1e9 > STALE:
                path.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Map shards that are new here, and read who is in them; a torn one goes: its pictures can be seen again."""
        for path in sorted(self.folder.glob("*.arrow")):
            if path.name in self._shards:
                continue
            try:
                file = _file(path)
                mapped, header = map_shard(path, check=False), read_header(path, check=False)
                whole = header.key == path.stem and header.info == mapped.info == self.info
            except ValueError as error:
                if _is_passing(reason := error.__context__):  # it may be whole
                    raise InputError(f"{path}: cannot be read now ({reason}); expected memory to read it") from None
                whole = False
            if not whole:
                path.unlink(missing_ok=True)
                continue
            places = enumerate(zip(header.image_ids, header.num_regions, strict=True))
            rows = [(name, path.name, row, count) for row, (name, count) in places]
            self._shards[path.name], self._mapped[path.name], self._files[path.name] = rows, mapped, file
            for row in rows:
                self.rows.setdefault(row[0], row)
            self.rejected |= {name: why for name, why in header.rejected if why not in PASSING_REASONS}

    def damaged(self, going: Callable[[], bool]) -> list[str]:
        """Read all shards and compare them with their seals.

        Args:
            going: asked before each; whether to go on.

        Returns:
            Those that are damaged or gone, or that another process has made again since they were mapped.
        """
        damaged = []
        for name in sorted(self._shards):
            if not going():
                break
            path = self.folder / name
            if not _whole(path) or _file(path) != self._files[name]:
                damaged.append(name)
        return damaged

    def forget(self, shards: Sequence[str], weights: str) -> None:
        """Let some shards go; from the disk, too, what is damaged, and what a model has made of it.

        Args:
            weights: of the model.
        """
        damaged = {name for name in shards if not _whole(self.folder / name)}
        for name in shards:
            if name in damaged:
                (self.folder / name).unlink(missing_ok=True)
            (self.vectors / vector_file(weights, name)).unlink(missing_ok=True)
            for known in (self._shards, self._mapped, self._files):
                known.pop(name)
        self.rows = {sha256: row for sha256, row in self.rows.items() if row[1] in self._shards}

    def extract(self, root: Path, pictures: Sequence[tuple[str, str]], done: Callable[[], bool]) -> dict[str, str]:
        """Look at some pictures and write their shard.

        Args:
            root: what paths start from.
            pictures: (sha256, path below `root`).
            done: called after each picture; whether to go on. If not, nothing is written.

        Returns:
            sha256 -> why a picture has no regions now, for reasons that may pass.
        """
        images = tuple(PlannedImage(sha256, path, sha256, 0, 0) for sha256, path in pictures)
        shard = Shard(shard_key(self._head, images), images)
        plan = Plan(self.params, root, self.looker.folder, self.info, len(images), (shard,))
        extractor = self.looker.extractor()
        passing: dict[str, str] = {}

        def reject(image: PlannedImage, reason: str) -> None:
            if reason in PASSING_REASONS:
                passing[image.image_id] = reason

        run = ShardRun(shard, plan, extractor, self.folder, reject)
        stream = ((shard, image) for image in images)
        for _, image, item in read_ahead(stream, extractor, root, self.params.regions.max_pixels, READ_AHEAD):
            run.add(image, item)
            if not done():
                return passing
        run.finish()
        run.write()
        self._shards.pop(shard.file_name, None)  # of the same pictures there may have been one, but without any
        return passing

    def identity(self, sha256: str) -> object:
        """That of the mapped shard which the regions of a picture are in."""
        return self._mapped[self.rows[sha256][1]].identity

    def store(self, rows: Sequence[Row]) -> RegionStore:
        """Some pictures as a store, all of whose shards are mapped."""
        return RegionStore.of(self.folder, self.info, rows, self._mapped)

    def vectors_of(self, model: CAMP, weights: str, shard: str) -> tuple[list[str], Vectors]:
        """The pictures of a shard and their vectors, remembered on disk."""
        store = self.store(self._shards[shard])
        rows = np.arange(len(store), dtype=np.int64)
        return store.image_ids, shard_vectors(model, weights, store, shard, rows, self.vectors)


def _file(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None where there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _whole(path: Path) -> bool:
    try:
        check_seal(path)
    except (ValueError, OSError) as error:
        if _is_passing(error):
            raise
        return False
    return True


def _is_passing(error: BaseException | None) -> bool:
    """Whether an error says something of the machine at this moment, not of the file."""
    few = errno.ENOMEM, errno.EMFILE, errno.ENFILE
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in few)
