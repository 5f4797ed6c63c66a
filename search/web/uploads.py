"""Pictures that people send: bounded in number, in bytes and in time, and by `Queries` in pixels."""

import asyncio

from starlette.requests import Request

from search.web.queries import Like, Queries

MAX_BYTES = 32_000_000
SECONDS = 60
"""Time that a picture may take to arrive."""
ROOM = 8 * MAX_BYTES
"""Bytes of pictures that are on their way, wait or are looked at; further ones are told to come again."""
LEAST = ROOM // 64
"""Bytes that each is taken to have at least, so that no more than 64 wait."""
AGAIN = 5
"""Seconds after which they are."""


class UploadRefused(Exception):
    """A picture that is too large, too slow or one too many; the message is the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"Connection": "close"}  # what is still on its way is not read
        if status == 503:
            self.headers["Retry-After"] = str(AGAIN)


class Uploads:
    """Asks what fits pictures that are sent, as many at one time as there is room for."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._room = ROOM

    async def like(self, request: Request, top: int, captions: int) -> Like:
        """As `Queries.like_upload`, for the body of a request.

        Raises:
            UploadRefused: it is too large or too slow, or others are under way.
        """
        length = request.headers.get("content-length", "")
        size = min(max(int(length[:20]) if length.isdecimal() else MAX_BYTES, LEAST), MAX_BYTES)
        if size > self._room:
            raise UploadRefused(503, f"many other pictures are being looked at; come again in {AGAIN} seconds")
        self._room -= size
        try:
            return await self._queries.like_upload(await read_upload(request), top, captions)
        finally:
            self._room += size


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
