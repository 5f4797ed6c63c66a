"""The cache of regions on disk, by content and extractor, for all folders of a user.

The shards are the only state. Each is a file that is complete or missing, is named by the content of its pictures, and
never changes. So a killed process loses only its current shard, and two processes cannot damage anything; the lock only
keeps them from extracting the same pictures twice.
"""

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from camp_model.model import CAMP
from camp_model.regions import MappedShard, RegionStore, StoreInfo, map_shard, read_header
from camp_model.seal import check_seal
from search.features import Extraction, RegionFinder
from stages.detectors.base import Description
from stages.detectors.images import CHANGED
from stages.errors import InputError
from stages.extraction.describing import PlannedImage, store_info
from stages.extraction.filling import read_ahead
from stages.extraction.plan import ExtractSections, Plan, Shard, shard_key, shard_key_prefix
from stages.extraction.shard_folder import may_pass
from stages.extraction.shard_run import ShardRun
from stages.indexing.engines import Vectors
from stages.indexing.vectors import shard_vectors, vector_file

Row = tuple[str, str, int, int]
"""(sha256 of a picture, shard's file name, row in it, number of regions)"""
READ_AHEAD = 24
"""Number of pictures decoded ahead of the network."""
STALE = 3600.0
"""Age in seconds from which a temporary file is treated as left by a killed process."""


class FeatureCache:
    """The regions that one extractor has extracted.

    Args:
        folder: folder of all caches.
        finder: the extractor.
        extraction: its settings.
    """

    def __init__(self, folder: Path, finder: RegionFinder, extraction: Extraction) -> None:
        description = Description.load(finder.folder)
        # One at a time, which is as fast on a CPU, so that a picture's features depend on no other picture, to the bit.
        regions = extraction.regions.replace(max_rejected_share=1.0, device="cpu", batch_size=1)
        self.params = ExtractSections(detector=extraction.detector, regions=regions)
        self._key_prefix = shard_key_prefix(self.params, description)
        self.folder = folder / "regions" / shard_key(self._key_prefix, ())
        self.vectors = folder / "vectors"
        self.lock = self.folder / "lock"
        self.info: StoreInfo = store_info(self.params.regions, description)
        self.finder = finder
        self.rows: dict[str, Row] = {}
        """sha256 of each picture with regions -> its row."""
        self.rejected: dict[str, str] = {}
        """sha256 -> why there will be no regions."""
        self.changes = 0
        """Number of times that a shard has come or gone."""
        self._shards: dict[str, list[Row]] = {}
        """Shard's file name -> its rows."""
        self._mapped: dict[str, MappedShard] = {}
        """Shards are memory-mapped, so that they can be read even after another process has removed their files."""
        self._files: dict[str, tuple[int, int] | None] = {}
        """Inode and modification time of the mapped files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def _clean(self) -> None:
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob("*.partial")]:
            file = _file(path)  # None: another process has just renamed it
            if file and time.time() - file[1] / 1e9 > STALE:
                path.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Map new shards and read their picture ids; remove torn ones, whose pictures can be extracted again."""
        for path in sorted(self.folder.glob("*.arrow")):
            if path.name in self._shards:
                continue
            try:
                file = _file(path)
                mapped, header = map_shard(path, check=False), read_header(path, check=False)
                is_complete = header.key == path.stem and header.info == mapped.info == self.info
            except ValueError as error:
                if _is_temporary(reason := error.__context__):  # it may be complete
                    raise InputError(f"{path}: cannot be read now ({reason}); expected memory to read it") from None
                is_complete = False
            if not is_complete:
                path.unlink(missing_ok=True)
                continue
            images = enumerate(zip(header.image_ids, header.num_regions, strict=True))
            rows = [(name, path.name, row, count) for row, (name, count) in images]
            self.changes += 1
            self._shards[path.name], self._mapped[path.name], self._files[path.name] = rows, mapped, file
            for row in rows:
                self.rows.setdefault(row[0], row)
            self.rejected |= {name: why for name, why in header.rejected if not may_pass(why)}

    def damaged(self, should_continue: Callable[[], bool]) -> list[str]:
        """Read all shards and check their seals.

        Args:
            should_continue: called before each shard; the check stops if it returns False.

        Returns:
            Shards that are damaged or missing, or that another process has replaced since they were mapped.
        """
        damaged = []
        for name in sorted(self._shards):
            if not should_continue():
                break
            path = self.folder / name
            if not _has_valid_seal(path) or _file(path) != self._files[name]:
                damaged.append(name)
        return damaged

    def forget(self, shards: Sequence[str], weights: str) -> None:
        """Unmap some shards, delete the vectors that a model has computed from them, and delete damaged shards.

        Args:
            weights: key of the model's weights.
        """
        self.changes += 1
        damaged = {name for name in shards if not _has_valid_seal(self.folder / name)}
        for name in shards:
            if name in damaged:
                (self.folder / name).unlink(missing_ok=True)
            (self.vectors / vector_file(weights, name)).unlink(missing_ok=True)
            for known in (self._shards, self._mapped, self._files):
                known.pop(name)
        self.rows = {sha256: row for sha256, row in self.rows.items() if row[1] in self._shards}

    def extract(
        self, root: Path, pictures: Sequence[tuple[str, str]], should_continue: Callable[[], bool]
    ) -> dict[str, str]:
        """Extract some pictures and write their shard.

        Args:
            root: folder that the paths are relative to.
            pictures: (sha256, path below `root`).
            should_continue: called after each picture; if it returns False, nothing is written.

        Returns:
            sha256 -> why a picture has no regions, for reasons that may be temporary.
        """
        images = tuple(PlannedImage(sha256, path, sha256, 0, 0) for sha256, path in pictures)
        shard = Shard(shard_key(self._key_prefix, images), images)
        plan = Plan(self.params, root, self.finder.folder, self.info, len(images), (shard,))
        extractor = self.finder.extractor()
        temporary: dict[str, str] = {}

        def reject(image: PlannedImage, reason: str) -> None:
            if may_pass(reason):
                temporary[image.image_id] = "changed while it was indexed" if reason == CHANGED else reason

        run = ShardRun(shard, plan, extractor, self.folder, reject)
        stream = ((shard, image) for image in images)
        for _, image, item in read_ahead(stream, extractor, root, self.params.regions.max_pixels, READ_AHEAD):
            run.add(image, item)
            if not should_continue():
                return temporary
        run.finish()
        run.write()
        self._shards.pop(shard.file_name, None)  # an earlier shard of the same pictures may have had no regions
        return temporary

    def identity(self, sha256: str) -> object:
        """Identity of the mapped shard that has the regions of a picture."""
        return self._mapped[self.rows[sha256][1]].identity

    def store(self, rows: Sequence[Row]) -> RegionStore:
        """A store of some pictures, whose shards are all mapped."""
        return RegionStore.of(self.folder, self.info, rows, self._mapped)

    def vectors_of(self, model: CAMP, weights: str, shard: str) -> tuple[list[str], Vectors]:
        """The pictures of a shard and their vectors, cached on disk."""
        store = self.store(self._shards[shard])
        rows = np.arange(len(store), dtype=np.int64)
        return store.image_ids, shard_vectors(model, weights, store, shard, rows, self.vectors)


def _file(path: Path) -> tuple[int, int] | None:
    """Identifies a file among others of the same name; None if there is no file."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _has_valid_seal(path: Path) -> bool:
    try:
        check_seal(path)
    except (ValueError, OSError) as error:
        if _is_temporary(error):
            raise
        return False
    return True


def _is_temporary(error: BaseException | None) -> bool:
    """Whether an error is due to the current state of the machine, not to the file."""
    few = errno.ENOMEM, errno.EMFILE, errno.ENFILE
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in few)
