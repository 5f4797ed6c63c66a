"""What the page and the API ask a collection, counted, with the names that people read."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

from starlette.concurrency import run_in_threadpool

from search.collection import Answer, Features, Hit, PairView, PictureCollection, Pixels, UnknownPicture
from search.pictures import Status
from search.web.counts import Counts
from stages.detectors.images import RejectedImage, decode
from stages.errors import InputError

AT_ONCE = 2
"""Pictures that are decoded at one time: one of the largest takes 200 MB."""
EXAMPLES = 6
MAX_SENTENCE = 1000
"""Characters of a sentence."""


@dataclass(frozen=True)
class Like:
    """What fits a picture."""

    hits: list[Hit]
    captions: list[tuple[str, float]]
    """(training caption, logit), the best first."""


class Queries:
    """Asks a collection for the page and the API."""

    def __init__(self, collection: PictureCollection) -> None:
        self.collection = collection
        self.counts = Counts(collection.status)
        # Always in the same threads: each thread that has decoded a picture keeps some of the memory for the next.
        self._looking = ThreadPoolExecutor(AT_ONCE, "look")

    def search(self, sentence: str, top: int, offset: int = 0) -> Answer:
        """As `PictureCollection.search`. InputError also for a sentence that is too long."""
        with self.counts.timed("search"):
            return self.collection.search(_checked(sentence), top, offset)

    def pair(self, picture_id: str, sentence: str) -> PairView:
        """As `PictureCollection.pair`. InputError also for a sentence that is too long."""
        with self.counts.timed("pair"):
            return self.collection.pair(picture_id, _checked(sentence))

    async def like_upload(self, data: bytes, top: int, captions: int) -> Like:
        """What fits a picture that somebody sent; while it waits for others it takes no thread.

        Raises:
            RejectedImage: what the extractor would reject, too.
            InputError: nothing here can look at pictures.
        """
        with self.counts.timed("similar"):
            seen = await asyncio.wrap_future(self._look(lambda: decode(data, self.collection.max_pixels)))
            return await run_in_threadpool(self._fitting, seen, top, captions)

    def _fitting(self, seen: Features, top: int, captions: int) -> Like:
        hits = self.collection.similar(seen, top) if top else []
        return Like(hits, self.collection.captions_like(seen, captions) if captions else [])

    def like(self, picture_id: str, top: int, captions: int) -> Like:
        """What fits a picture of the collection, itself left out.

        Raises:
            UnknownPicture: no such picture.
        """
        with self.counts.timed("similar"):
            hits = self.collection.similar_to(picture_id, top)
            try:
                fitting = self._fitting_to(picture_id, captions) if captions else []
            except (InputError, RejectedImage):  # nothing here can look at pictures, or the file is gone
                fitting = []
            return Like(hits, fitting)

    def _fitting_to(self, picture_id: str, captions: int) -> list[tuple[str, float]]:
        seen = self._look(lambda: self.collection.pixels(picture_id)).result()
        return self.collection.captions_like(seen, captions)

    def _look(self, decoded: Callable[[], Pixels]) -> Future[Features]:
        return self._looking.submit(lambda: self.collection.find_regions(decoded()))

    def first(self, top: int, offset: int = 0) -> list[Hit]:
        """The first pictures of the collection, which nothing has scored."""
        return [Hit(picture_id, 0.0) for picture_id in self.collection.first(top, offset)]

    @cached_property
    def examples(self) -> list[str]:
        """Sentences to begin with."""
        return self.collection.examples(EXAMPLES)

    def name(self, picture_id: str) -> str:
        """Where a picture lies below the folder of the collection; UnknownPicture where there is none."""
        return readable(self.collection.name(picture_id))

    def status(self) -> Status:
        """As `PictureCollection.status`, its texts as they can be sent."""
        status = self.collection.status()
        rejected = [(readable(name), readable(reason)) for name, reason in status.rejected]
        problem = None if status.problem is None else readable(status.problem)
        return replace(status, rejected=rejected, problem=problem, model=readable(status.model))

    def named(self, hits: Sequence[Hit]) -> list[tuple[Hit, str]]:
        """Hits with the names of their files; one that has left the collection meanwhile is left out."""
        pairs = []
        for hit in hits:
            with contextlib.suppress(UnknownPicture):
                pairs.append((hit, self.name(hit.picture_id)))
        return pairs


def readable(name: str) -> str:
    """A text that may hold bytes of a file name that are no UTF-8, which no answer can carry."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _checked(sentence: str) -> str:
    if len(sentence) > MAX_SENTENCE:
        raise InputError(f"sentence: has {len(sentence):,} characters; expected at most {MAX_SENTENCE:,}")
    return sentence


def matching_score(logit: float) -> float:
    """The paper's matching score m, between 0 and 1."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
