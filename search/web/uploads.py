"""Uploaded pictures: limited in number, bytes and time; `Queries` limits their pixels."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from search.web.queries import Queries, SimilarResults

MAX_BYTES = 32_000_000
SECONDS = 60
"""Time that a picture may take to arrive."""
MAX_PENDING_BYTES = 8 * MAX_BYTES
"""Largest size of all uploads that are being received, waiting or being processed; further ones are refused for now."""
MIN_PENDING_BYTES = MAX_PENDING_BYTES // 64
"""Smallest size that an upload counts with, so that no more than 64 wait."""
RETRY_AFTER = 5
"""Seconds after which a refused client may try again."""


class UploadRefused(Exception):
    """An upload is a form, too large or too slow, or there are too many; the message is the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"Connection": "close"}  # the rest of the body is not read
        if status == 503:
            self.headers["Retry-After"] = str(RETRY_AFTER)


class Uploads:
    """Searches by uploaded pictures, of which it accepts at most MAX_PENDING_BYTES at a time."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._free_bytes = MAX_PENDING_BYTES

    async def like(self, request: Request, top: int, captions: int) -> SimilarResults:
        """As `Queries.like_upload`, for the body of a request.

        Raises:
            UploadRefused: it is a form, too large or too slow, too many others are being processed, or the server is
                stopped.
        """
        length = request.headers.get("content-length", "")
        size = min(max(int(length[:20]) if length.isdecimal() else MAX_BYTES, MIN_PENDING_BYTES), MAX_BYTES)
        taken = size if size <= self._free_bytes else 0
        self._free_bytes -= taken
        try:
            if not taken:
                if size == MIN_PENDING_BYTES:  # a connection that is closed while more is sent can lose the answer
                    await read_upload(request, discarded=True)
                raise UploadRefused(503, f"too many pictures are being processed; try again in {RETRY_AFTER} seconds")
            picture = await read_upload(request)
            if request.headers.get("content-type", "").startswith("multipart/"):
                raise UploadRefused(422, "the body is a form; expected the picture, as curl --data-binary sends it")
            return await self._queries.like_upload(picture, top, captions)
        except asyncio.CancelledError:  # would be a traceback in the log
            raise UploadRefused(503, "the server is being stopped") from None
        finally:
            self._free_bytes += taken


async def read_upload(request: Request, max_bytes: int = MAX_BYTES, discarded: bool = False) -> bytes:
    """The body of a request; nothing of it if it is `discarded`.

    Raises:
        UploadRefused: more than `max_bytes`, also where the header says less; slower than SECONDS; or broken off.
    """
    too_large = UploadRefused(413, f"the picture has more than {max_bytes:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                if not discarded:
                    body += chunk
    except TimeoutError:
        raise UploadRefused(408, f"the picture did not arrive within {SECONDS} s") from None
    except ClientDisconnect:  # nobody hears this, but the server's log would get a traceback
        raise UploadRefused(400, "the picture did not arrive whole") from None
    return bytes(body)
