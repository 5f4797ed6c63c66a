"""Pictures of a collection at the sizes of the page, the last ones held."""

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

HELD_BYTES = 64 * 2**20


class LongestSide(IntEnum):
    """Pixels of a picture's longest side, at most."""

    SMALL = 360
    LARGE = 1280


@dataclass(frozen=True)
class Scaled:
    """A picture made smaller."""

    jpeg: bytes
    etag: str


class ScaledPictures:
    """Makes pictures of a collection smaller; holds the last ones, HELD_BYTES of them.

    A picture is decoded as the extractor decodes it, so nothing of its file but what is seen reaches the page.
    """

    def __init__(self, collection: PictureCollection, held_bytes: int = HELD_BYTES) -> None:
        self._collection, self._room = collection, held_bytes
        self._held: OrderedDict[tuple[str, str, LongestSide], Scaled] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = ThreadPoolExecutor(AT_ONCE, "decode")

    def get(self, picture_id: str, side: LongestSide) -> Scaled:
        """A picture of the collection.

        Raises:
            UnknownPicture: no such picture.
            RejectedImage: the file is gone or has changed.
        """
        # Asked first, so that a picture that has left the collection is not shown from what is held.
        key = picture_id, self._collection.sha256(picture_id), side
        with self._lock:
            if (scaled := self._held.get(key)) is not None:
                self._held.move_to_end(key)
                return scaled
        content = self._decoding.submit(self._smaller, picture_id, side).result()
        scaled = Scaled(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        with self._lock:
            if key not in self._held:
                self._held[key] = scaled
                self._room -= len(scaled.jpeg)
            while self._room < 0 and self._held:
                self._room += len(self._held.popitem(last=False)[1].jpeg)
        return scaled

    def _smaller(self, picture_id: str, side: LongestSide) -> bytes:
        return jpeg(Image.fromarray(self._collection.pixels(picture_id)), side)
