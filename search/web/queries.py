"""The queries of the page and the API to a collection, counted, with names that can be shown."""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

from starlette.concurrency import run_in_threadpool

from search.collection import Answer, Features, Hit, PairView, PictureCollection
from search.pictures import Status
from search.web.counts import Counts
from stages.detectors.images import decode
from stages.errors import InputError

AT_ONCE = 2
"""Number of pictures that are decoded at a time; one of the largest takes 200 MB."""
EXAMPLES = 6
MAX_SENTENCE = 1000
"""Characters of a sentence."""
REJECTED_SHOWN = 1000
"""Pictures that cannot be used whose reasons are sent."""


@dataclass(frozen=True)
class SimilarResults:
    """The pictures and captions most similar to a picture."""

    hits: list[Hit]
    captions: list[tuple[str, float]]
    """(training caption, logit), the best first."""


class Queries:
    """Queries a collection for the page and the API."""

    def __init__(self, collection: PictureCollection) -> None:
        self.collection = collection
        self.counts = Counts(collection.status)
        # Always in the same threads: each thread that has decoded a picture keeps some of the memory for the next.
        self._decoders = ThreadPoolExecutor(AT_ONCE, "regions")

    def search(self, sentence: str, top: int, offset: int = 0) -> Answer:
        """As `PictureCollection.search`; also raises InputError for a sentence that is too long."""
        with self.counts.timed("search"):
            return self.collection.search(_checked(sentence), top, offset)

    def pair(self, picture_id: str, sentence: str) -> PairView:
        """As `PictureCollection.pair`; also raises InputError for a sentence that is too long."""
        with self.counts.timed("pair"):
            return self.collection.pair(picture_id, _checked(sentence))

    async def like_upload(self, data: bytes, top: int, captions: int) -> SimilarResults:
        """The results for an uploaded picture; while it waits for others it takes no thread.

        Raises:
            RejectedImage: what the extractor would reject, too.
            InputError: there is no detector to extract its regions.
        """
        with self.counts.timed("similar"):
            features = await asyncio.wrap_future(self._decoders.submit(self._regions_of, data))
            return await run_in_threadpool(self._results_of, features, top, captions)

    def _results_of(self, features: Features, top: int, captions: int) -> SimilarResults:
        hits = self.collection.similar(features, top) if top else []
        return SimilarResults(hits, self.collection.captions_like(features, captions) if captions else [])

    def like(self, picture_id: str, top: int, captions: int) -> SimilarResults:
        """The results for a picture of the collection, without itself.

        Raises:
            UnknownPicture: no such picture.
        """
        with self.counts.timed("similar"):
            hits = self.collection.similar_to(picture_id, top)
            if not captions:
                return SimilarResults(hits, [])
            return SimilarResults(hits, self.collection.captions_like(self.collection.features(picture_id), captions))

    def _regions_of(self, data: bytes) -> Features:
        return self.collection.find_regions(decode(data, self.collection.max_pixels))

    @cached_property
    def examples(self) -> list[str]:
        """Example sentences."""
        return self.collection.examples(EXAMPLES)

    def name(self, picture_id: str) -> str:
        """The path of a picture below the folder of the collection; raises UnknownPicture if there is none."""
        return replace_invalid_utf8(self.collection.file(picture_id).name)

    def status(self) -> Status:
        """As `PictureCollection.status`, its texts as they can be sent, and of REJECTED_SHOWN pictures the reason."""
        status = self.collection.status()
        shown = status.rejected[:REJECTED_SHOWN]
        rejected = [(replace_invalid_utf8(name), replace_invalid_utf8(reason)) for name, reason in shown]
        problem = None if status.problem is None else replace_invalid_utf8(status.problem)
        return replace(status, rejected=rejected, problem=problem, model=replace_invalid_utf8(status.model))


def named(hits: Sequence[Hit]) -> list[tuple[Hit, str]]:
    """Hits with the names of their files, as they can be sent."""
    return [(hit, replace_invalid_utf8(hit.file.name)) for hit in hits]


def replace_invalid_utf8(name: str) -> str:
    """Replace bytes of a file name that are not UTF-8, which an answer cannot contain."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _checked(sentence: str) -> str:
    if len(sentence) > MAX_SENTENCE:
        raise InputError(f"sentence: has {len(sentence):,} characters; expected at most {MAX_SENTENCE:,}")
    return sentence


def matching_score(logit: float) -> float:
    """The paper's matching score m, between 0 and 1."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
