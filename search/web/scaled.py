"""Scales pictures of a collection to the sizes of the page; the most recent ones are cached."""

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum

from PIL import Image

from search.collection import PictureCollection
from search.web.queries import AT_ONCE
from stages.reporting.pictures import jpeg

CACHE_BYTES = 64 * 2**20


class LongestSide(IntEnum):
    """Pixels of a picture's longest side, at most."""

    SMALL = 360
    LARGE = 1280


@dataclass(frozen=True)
class Scaled:
    """A scaled picture."""

    jpeg: bytes
    etag: str


class ScaledPictures:
    """Scales pictures of a collection down, and caches up to CACHE_BYTES of the most recent ones.

    A picture is decoded as for the extractor, so that only its pixels reach the page, not its metadata.
    """

    def __init__(self, collection: PictureCollection, cache_bytes: int = CACHE_BYTES) -> None:
        self._collection, self._free_bytes = collection, cache_bytes
        self._cached: OrderedDict[tuple[str, str, LongestSide], Scaled] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = ThreadPoolExecutor(AT_ONCE, "decode")

    def get(self, picture_id: str, side: LongestSide) -> Scaled:
        """A picture of the collection.

        Raises:
            UnknownPicture: no such picture.
            RejectedImage: the file is gone or has changed.
        """
        # Looked up first, so that a picture that has left the collection is not shown from the cache.
        key = picture_id, self._collection.file(picture_id).sha256, side
        with self._lock:
            if (scaled := self._cached.get(key)) is not None:
                self._cached.move_to_end(key)
                return scaled
        content = self._decoding.submit(self._smaller, picture_id, side).result()
        scaled = Scaled(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        with self._lock:
            if key not in self._cached:
                self._cached[key] = scaled
                self._free_bytes -= len(scaled.jpeg)
            while self._free_bytes < 0 and self._cached:
                self._free_bytes += len(self._cached.popitem(last=False)[1].jpeg)
        return scaled

    def _smaller(self, picture_id: str, side: LongestSide) -> bytes:
        return jpeg(Image.fromarray(self._collection.pixels(picture_id)), side)
