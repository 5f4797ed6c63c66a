"""The HTTP API: JSON for programs, described by OpenAPI at /api/openapi.json."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from search.pictures import Status
from search.web.counts import CONTENT_TYPE
from search.web.queries import MAX_SENTENCE, Queries, SimilarResults, matching_score, named
from search.web.uploads import Uploads

Sentence = Annotated[str, Query(max_length=MAX_SENTENCE, description="What the picture shows, in words.")]
PictureId = Annotated[str, Query(max_length=1000, description="Id of an indexed picture.")]
Top = Annotated[int, Query(ge=1, le=1000, description="Pictures in the answer, at most.")]
Captions = Annotated[int, Query(ge=0, le=100, description="Training captions in the answer, at most.")]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="Best pictures that are left out.")]
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/*", "application/*")},
    }
}


class Picture(BaseModel):
    """A picture of an answer to a sentence."""

    id: str
    name: str = Field(description="Path below the folder of the pictures.")
    score: float = Field(description="Matching score m, between 0 and 1.")
    logit: float = Field(description="Logit of m, which separates scores near 0 or 1.")


class SearchAnswer(BaseModel):
    """The pictures that a sentence describes, best first."""

    sentence: str
    words: list[str] = Field(description="The words of the sentence, as the model reads them.")
    unknown: list[str] = Field(description="Words that the model does not know.")
    by_spelling: list[str] = Field(
        description="Words outside the model's vocabulary that its text encoder reads by their spelling."
    )
    dropped: int = Field(description="Number of words at the end of the sentence that the model does not read.")
    offset: int
    scored: int = Field(description="Number of pictures that CAMP ranked: all, or the shortlist.")
    total: int = Field(description="Number of pictures that were searched.")
    version: str = Field(description="Answers of one version continue each other; after a change it is another.")
    pictures: list[Picture]


class PairAnswer(BaseModel):
    """Gates, attention and score of one picture and one sentence: N words, R regions; null if the model has none."""

    id: str
    name: str
    score: float
    logit: float
    words: list[str]
    unknown: list[int] = Field(description="Positions of words that the model does not know.")
    by_spelling: list[int] = Field(description="Positions of words outside its vocabulary that it reads by spelling.")
    effects: list[float | None] = Field(
        description="[N], what each word adds to the logit; below 0 it counts against the picture."
    )
    word_gates: list[float] | None = Field(description="[N], between 0 and 1.")
    region_gates: list[float] | None = Field(description="[R], between 0 and 1.")
    word_attention: list[list[float]] | None = Field(description="[N][R], words' weights over regions; sums to 1.")
    region_attention: list[list[float]] | None = Field(description="[R][N], regions' weights over words; sums to 1.")
    width: int = Field(description="Width of the upright picture, in pixels.")
    height: int
    boxes: list[list[float]] = Field(description="[R][4], XYXY, in pixels.")
    labels: list[str] = Field(description="[R], attribute and class of each region; `region 3` without a name.")


class SimilarPicture(BaseModel):
    """A picture that is like another."""

    id: str
    name: str
    cosine: float


class FittingCaption(BaseModel):
    """A training caption that fits a picture."""

    text: str
    score: float
    logit: float


class SimilarAnswer(BaseModel):
    """The pictures most like a picture, and the training captions that fit it best."""

    pictures: list[SimilarPicture]
    captions: list[FittingCaption] | None = Field(
        description="Null if the training captions are not available, as with a shipped model."
    )


class Health(BaseModel):
    """The progress of indexing."""

    status: str = Field(description="ok, or problem: indexing has stopped, or a file of the workspace is damaged.")
    problem: str | None
    indexing: bool = Field(description="Whether more pictures may become ready.")
    progress: str = Field(description="The progress in words.")
    total: int
    ready: int = Field(description="Number of pictures that can be searched.")
    rejected: int = Field(description="Number of pictures that cannot be used; /api/rejected has the reasons.")
    copies: int = Field(description="Number of copies of other files, listed only under the first name.")
    model: str
    version: str = Field(description="That of the answers of /api/search now.")


class RejectedPicture(BaseModel):
    """A file that cannot be used, and why."""

    name: str
    reason: str


class Refusal(BaseModel):
    """Why a request was refused."""

    error: str


def health(status: Status) -> Health:
    """The progress of indexing a collection."""
    return Health(
        status="problem" if status.problem else "ok", problem=status.problem, indexing=status.scanning,
        progress=status.progress, total=status.total, ready=status.ready, rejected=status.rejected_count,
        copies=status.copies, model=status.model, version=status.version,
    )  # fmt: skip


def api_routes(queries: Queries, uploads: Uploads) -> APIRouter:
    """The routes below /api, and /metrics."""
    refusals: dict[int | str, dict[str, Any]] = {code: {"model": Refusal} for code in (400, 404, 422)}
    router = APIRouter(responses=refusals)

    @router.get("/api/search")
    def search(q: Sentence, top: Top = 20, offset: Offset = 0) -> SearchAnswer:
        """The pictures that a sentence describes."""
        answer = queries.search(q, top, offset)
        return SearchAnswer(
            sentence=q, words=answer.words, unknown=answer.unknown,
            by_spelling=answer.by_spelling, dropped=answer.dropped, offset=offset,
            scored=answer.scored, total=answer.total, version=answer.version,
            pictures=[
                Picture(id=hit.picture_id, name=name, score=matching_score(hit.score), logit=hit.score)
                for hit, name in named(answer.hits)
            ],
        )  # fmt: skip

    @router.get("/api/pair")
    def pair(id: PictureId, q: Sentence) -> PairAnswer:
        """Gates and attention of one picture and one sentence."""
        view = queries.pair(id, q)
        details = view.details
        return PairAnswer(
            id=id, name=queries.name(id), score=matching_score(view.score), logit=view.score, words=details["words"],
            unknown=details["unknown"], by_spelling=details["spelt"], effects=view.effects,
            word_gates=_shares(details["wordGates"]), region_gates=_shares(details["regionGates"]),
            word_attention=_rows(details["wordAttention"]), region_attention=_rows(details["regionAttention"]),
            width=view.width, height=view.height, boxes=view.boxes, labels=view.labels,
        )  # fmt: skip

    @router.get("/api/similar")
    def similar(id: PictureId, top: Top = 20, captions: Captions = 10) -> SimilarAnswer:
        """The pictures most like one of the collection, and the training captions that fit it."""
        return _similar(queries, queries.like(id, top, captions))

    @router.post("/api/similar", openapi_extra=UPLOAD, responses={c: {"model": Refusal} for c in (408, 413, 503)})
    async def similar_to_upload(request: Request, top: Top = 20, captions: Captions = 10) -> SimilarAnswer:
        """The pictures most like the one in the body, and the training captions that fit it. It is not stored."""
        return _similar(queries, await uploads.like(request, top, captions))

    _status_routes(router, queries)
    return router


def _status_routes(router: APIRouter, queries: Queries) -> None:
    @router.get("/api/health")
    def get_health() -> Health:
        """The progress of indexing."""
        return health(queries.status())

    @router.get("/api/rejected")
    def rejected() -> list[RejectedPicture]:
        """The files that cannot be used, with reasons, the first thousand."""
        return [RejectedPicture(name=name, reason=reason) for name, reason in queries.status().rejected]

    @router.post("/api/rescan", status_code=202)
    def rescan() -> Health:
        """Scan the folder for added, removed and changed pictures."""
        queries.collection.rescan()
        return health(queries.status())

    @router.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counts of queries and the time that they took, as Prometheus reads them."""
        return Response(queries.counts.text(), headers={"Content-Type": CONTENT_TYPE})


def _similar(queries: Queries, like: SimilarResults) -> SimilarAnswer:
    return SimilarAnswer(
        pictures=[SimilarPicture(id=hit.picture_id, name=name, cosine=hit.score) for hit, name in named(like.hits)],
        captions=[FittingCaption(text=t, score=matching_score(s), logit=s) for t, s in like.captions]
        if queries.collection.has_captions
        else None,
    )


def _shares(thousandths: list[int] | None) -> list[float] | None:
    return None if thousandths is None else [value / 1000 for value in thousandths]


def _rows(thousandths: list[list[int]] | None) -> list[list[float]] | None:
    return None if thousandths is None else [[value / 1000 for value in row] for row in thousandths]
