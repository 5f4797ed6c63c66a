"""Pictures that somebody sends: bounded in bytes, in time and in pixels, and decoded as the extractor decodes."""

import asyncio
import threading

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from stages.detectors.images import decode

MAX_BYTES = 32_000_000
SECONDS = 60
"""Time that a picture may take to arrive."""
DECODING = threading.BoundedSemaphore(2)
"""Pictures decoded at one time, sent ones and those of the collection: one of the largest takes 200 MB."""


class UploadRefused(Exception):
    """A picture that is too large or too slow; the message is the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_upload(request: Request, max_bytes: int = MAX_BYTES) -> bytes:
    """The body of a request.

    Raises:
        UploadRefused: more than `max_bytes`, also where the header says less; or slower than SECONDS.
    """
    too_large = UploadRefused(413, f"the picture has more than {max_bytes:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise too_large
                body += chunk
    except TimeoutError:
        raise UploadRefused(408, f"the picture did not arrive within {SECONDS} s") from None
    return bytes(body)


def decode_upload(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    """The picture, uint8 RGB [H, W, 3], upright.

    Raises:
        RejectedImage: what the extractor would reject, too.
    """
    with DECODING:
        return decode(data, max_pixels)
