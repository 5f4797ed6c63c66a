"""Indexes any folder of pictures in a thread, while the pictures indexed so far can be searched."""

import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from camp_model.model import CAMP
from camp_model.regions import ImageRegions
from search.cache import FeatureCache
from search.features import FILE, Extraction, RegionFinder, ready_detector
from search.listing import Listing, list_pictures
from search.locking import WaitAbandoned, locked
from search.pictures import PictureFile, Pictures, Status
from stages.contracts import read_fingerprint
from stages.detectors.base import Description
from stages.errors import InputError
from stages.indexing.engines import vector_ids
from stages.indexing.faiss_engine import FaissEngine

FIRST, MOST = 32, 128
"""Number of pictures in successive shards: few at first, so that searching can soon begin."""
PUBLISH_AT = 64
"""New pictures are published when they are one in this many of the published ones, because publishing takes time in
proportion to all pictures."""
RESCAN_SECONDS = 60.0
"""Seconds between two scans of the folder."""


class FolderSource:
    """The pictures below a folder.

    Args:
        root: the folder.
        model: in evaluation mode, on the CPU; `weights` is its `weights_key`.
        folder: the model's folder.
        cache: folder with the regions, vectors and hashes of files of all folders.

    Raises:
        InputError: the folder cannot be read, the model's detector cannot be loaded, or the model reads features of
            another width.
    """

    def __init__(self, root: Path, model: CAMP, weights: str, folder: Path, cache: Path) -> None:
        if not root.is_dir():
            raise InputError(f"{root}: is not a folder; expected a folder of pictures")
        self.root, self.model, self.weights, self.name = root.resolve(), model, weights, str(folder)
        extraction = Extraction.of_model(folder)
        ready = partial(ready_detector, extraction, folder, cache)
        fingerprint = Description.load(detector := ready()).fingerprint  # what the cache's key is made of
        self._finder = RegionFinder(detector, extraction.detector, extraction.regions, ready, fingerprint)
        self._cache = FeatureCache(cache, self._finder, extraction)
        if (width := self._cache.info.region_dim) != model.config.region_dim:
            raise InputError(
                f"{folder / 'config.json'}: region_dim: {model.config.region_dim}, but the features that {FILE} "
                f"describes have {width}; expected the detector and the regions.geometry of the model's training"
            )
        if read_fingerprint(folder).get("detector") is None:
            print(f"{folder}: does not name the detector of its training; assumed: {fingerprint}", file=sys.stderr)
        self._hashes = cache / "hashes.sqlite"
        self._engine = FaissEngine(model.config.dim)
        self._indexed: dict[str, object] = {}
        """Picture whose vector is in the engine -> identity of the mapped shard that it was computed from."""
        self._listing = Listing()
        self._temporary_rejections: dict[str, str] = {}
        self._pictures = self._snapshot()
        self._published: int | None = None
        """`changes` of the cache whose pictures of the listing are published; None: those of another listing are."""
        self._status = Status(0, 0, model=self.name)
        """As of then, because going through all pictures takes long."""
        self._busy = True
        self._problem: str | None = None
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)

    def start(self) -> None:
        """As `PictureSource.start`."""
        self._thread.start()

    def close(self) -> None:
        """As `PictureSource.close`; the current shard is abandoned."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def rescan(self) -> None:
        """As `PictureSource.rescan`; returns at once."""
        self._wake.set()

    def pictures(self) -> Pictures:
        """As `PictureSource.pictures`."""
        return self._pictures

    def status(self) -> Status:
        """As `PictureSource.status`."""
        status, pictures = self._status, self._pictures
        return replace(
            status, total=max(status.total, len(pictures)), ready=len(pictures), version=pictures.version,
            scanning=(self._busy or self._wake.is_set()) and not self._stop.is_set(), problem=self._problem,
        )  # fmt: skip

    def find_regions(self, image: npt.NDArray[np.uint8]) -> ImageRegions:
        """As `PictureSource.find_regions`."""
        return self._finder.find_regions(image)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._busy = True
            self._wake.clear()
            self._problem = None
            try:
                self._scan()
                self._busy = False
                # After searching can begin, because everything is read; shards found valid are not read again.
                if damaged := self._cache.damaged(lambda: not self._stop.is_set()):
                    # Before they are removed: until their pictures are extracted again, searching uses them.
                    self._wake.set()
                    self._cache.forget(damaged, self.weights)
            except WaitAbandoned:
                break
            except Exception as error:  # searching continues, and the next scan may succeed
                self._problem = f"indexing has stopped: {str(error)[:500] or type(error).__name__}"
            self._busy = False
            self._wake.wait(RESCAN_SECONDS)

    def _scan(self) -> None:
        """List the folder, extract new pictures, and print how long that took."""
        begun, processed = time.monotonic(), 0
        listing = list_pictures(self.root, self._hashes, lambda: not self._stop.is_set(), self._listing)
        if self._stop.is_set():
            raise WaitAbandoned
        if listing != self._listing:
            self._published = None
        self._listing, self._temporary_rejections = listing, {}
        self._publish()
        missing = deque(filter(self._is_missing, listing.paths))
        new = 0
        while missing:
            with locked(self._cache.lock, self._wait):
                self._cache.refresh()  # what another process has extracted meanwhile
                before = len(missing)
                if chunk := self._next(missing):
                    paths = [(sha256, listing.paths[sha256]) for sha256 in chunk]
                    self._temporary_rejections |= self._cache.extract(self.root, paths, lambda: not self._stop.is_set())
                    processed += len(chunk)
                    self._cache.refresh()
            if self._stop.is_set():
                raise WaitAbandoned
            new += before - len(missing)
            if new * PUBLISH_AT >= len(self._pictures) or not missing:
                self._publish()
                new = 0
            if any(map(self._is_missing, chunk)):
                raise InputError(f"{self._cache.folder}: lacks the shard that was just written; is the disk full?")
        if processed:
            seconds = time.monotonic() - begun
            rate = f"{processed:,} processed, {processed / seconds:.1f} a second"
            status = self.status()
            asides = {"that cannot be used": status.rejected_count, "that only copy others": status.copies}
            aside = "".join(f"; {count:,} {what}" for what, count in asides.items() if count)
            ready = f"{len(self._pictures):,} pictures can be searched after {seconds:.1f} s ({rate}){aside}"
            print(ready, file=sys.stderr)

    def _wait(self) -> bool:
        """While another process extracts, publish the shards that it finishes."""
        self._publish()
        return not self._stop.is_set()

    def _is_missing(self, sha256: str) -> bool:
        known = (self._cache.rows, self._cache.rejected, self._temporary_rejections)
        return not any(sha256 in pictures for pictures in known)

    def _next(self, missing: deque[str]) -> list[str]:
        """Remove from `missing` the pictures of the next shard, and those that have regions by now."""
        chunk: list[str] = []
        while missing and len(chunk) < min(MOST, max(FIRST, len(self._pictures) // 4)):
            if self._is_missing(sha256 := missing.popleft()):
                chunk.append(sha256)
        return chunk

    def _publish(self) -> None:
        """Publish the folder's pictures that have regions, so that they can be searched, and the status."""
        self._cache.refresh()
        if self._published == self._cache.changes:
            return
        paths, reasons = self._listing.paths, self._temporary_rejections | self._cache.rejected
        of_paths = [(paths[sha256], reasons[sha256]) for sha256 in paths.keys() & reasons.keys()]
        rejected = sorted([*self._listing.unreadable, *of_paths])
        self._status = Status(
            len(paths) - len(of_paths), 0, rejected, len(rejected), model=self.name, copies=self._listing.copies
        )
        self._index()
        self._published = self._cache.changes

    def _index(self) -> None:
        """Add the vectors of new pictures to the engine, and remove those of others."""
        known = (sha256 for sha256 in self._listing.paths if sha256 in self._cache.rows)
        wanted = {sha256: self._cache.identity(sha256) for sha256 in known}
        paths = {sha256: self._listing.paths[sha256] for sha256 in wanted}
        if wanted == self._indexed and paths == {sha256: file.name for sha256, file in self._pictures.files.items()}:
            return
        new = {sha256 for sha256, identity in wanted.items() if self._indexed.get(sha256) is not identity}
        for shard in sorted({self._cache.rows[sha256][1] for sha256 in new}):
            names, vectors = self._cache.vectors_of(self.model, self.weights, shard)
            chosen = [i for i, name in enumerate(names) if name in new]
            self._engine.add(vector_ids([names[i] for i in chosen]), vectors[chosen])
        removed = self._indexed.keys() - wanted.keys()
        self._indexed = wanted
        self._pictures = self._snapshot()
        self._engine.remove(vector_ids(sorted(removed)))

    def _snapshot(self) -> Pictures:
        """The pictures of the last listing that have regions, in the order of the folder."""
        ids: Sequence[str] = [sha256 for sha256 in self._listing.paths if sha256 in self._indexed]
        store = self._cache.store([self._cache.rows[sha256] for sha256 in ids])
        names = self._listing.paths
        files = {sha256: PictureFile(self.root, sha256, names[sha256]) for sha256 in ids}
        return Pictures(store, ids, np.arange(len(ids), dtype=np.int64), files, self._engine)
