"""The HTML pages: the search, and one picture. Everything except dropping a picture works without scripts."""

import unicodedata
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from search.collection import Hit, PairView, UnknownPicture
from search.web.api import health
from search.web.queries import MAX_SENTENCE, Queries, SimilarResults, matching_score, named
from search.web.static import StaticFiles
from search.web.uploads import MAX_BYTES, Uploads
from stages.errors import InputError

FIRST = 24
"""Number of pictures of an answer before the user scrolls."""
MOST = 2000
"""Largest number of pictures that one page lists; scrolling loads more."""
SIMILAR_SHOWN = 12
CAPTIONS_SHOWN = 8
REJECTED_LISTED = 200
MIN_NEGATIVE_EFFECT = 0.005
"""A word counts against a picture if it lowers the logit by at least this: the smallest number not shown as 0."""
MIN_BAR_SCALE = 0.5
"""A bar of full width stands for an effect on the logit of at least this."""
GONE = "This picture is not in the collection: it was moved, changed or deleted since."
Text = Annotated[str, Query(max_length=MAX_SENTENCE)]
Id = Annotated[str, Query(max_length=1000)]


class Pages:
    """Renders the pages of a collection."""

    def __init__(self, queries: Queries, static: StaticFiles) -> None:
        self.queries = queries
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.globals |= {"static": static.address, "address": address, "max_upload": MAX_BYTES}
        self._environment.filters |= {
            "count": "{:,}".format, "score": score_text, "pictures": pictures_text, "sentence": sentence_of,
        }  # fmt: skip

    def render(self, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Render a page; it is not cached, because the collection may change."""
        text = self._environment.get_template(template).render(context)
        return HTMLResponse(text, status, headers={"Cache-Control": "no-cache"})

    def home(self, q: str, like: str, count: int) -> HTMLResponse:
        """The search page: the answer to the sentence `q`, pictures similar to `like`, or the first pictures."""
        page: dict[str, Any] = {"q": q, "answer": None, "like": None, "tiles": [], "problem": None, "count": count}
        page |= self._state()  # before the pictures are listed: if some come meanwhile, the list is older, not newer
        page["symbols"] = list(dict.fromkeys(c for c in q if unicodedata.category(c) == "So"))  # emoji are no words
        status = 200
        try:
            if q.strip():
                page["answer"] = answer = self.queries.search(q, count)
                page["tiles"] = self._tiles(answer.hits, q, 0)
            elif like:
                page["like"] = {"id": like, "name": self.queries.name(like)}
                page |= self._like(self.queries.like(like, count, CAPTIONS_SHOWN))
            else:
                page["tiles"] = self._tiles(self.queries.collection.first(count), "", 0)
        except UnknownPicture:
            page["problem"], status = GONE, 404
        except InputError as error:
            page["problem"], status = str(error), 400
        return self.render("home.html.jinja", status, **page)

    def rows(self, q: str, offset: int, count: int, version: str | None) -> HTMLResponse:
        """More pictures of an answer, or of the collection if there is no sentence, as items of the list.

        Raises:
            HTTPException: 409, the collection is no longer of the `version` of the first rows, so that these would
                repeat or pass over some.
        """
        hits = self.queries.search(q, count, offset).hits if q.strip() else self.queries.collection.first(count, offset)
        if version not in (None, self.queries.status().version):
            raise HTTPException(409, "pictures may have come or gone since; open the list anew")
        return self.render("rows.html.jinja", tiles=self._tiles(hits, q, offset))

    def like(self, like: SimilarResults, heading: str) -> HTMLResponse:
        """The results for a picture, as a part of a page."""
        return self.render("like.html.jinja", heading=heading, **self._like(like))

    def picture(self, picture_id: str, q: str, at: int) -> HTMLResponse:
        """The page of one picture; with a sentence, it explains their score."""
        page: dict[str, Any] = {"id": picture_id, "q": q, "pair": None, "problem": None}
        try:
            page["name"] = self.queries.name(picture_id)
        except UnknownPicture:
            return self.problem(404, GONE, q)
        status = 200
        try:
            if q.strip():
                page["pair"] = self._pair(self.queries.pair(picture_id, q), page["name"])
        except InputError as error:
            page["problem"], status = str(error), 400
        neighbours, total = self._neighbours(picture_id, q, at) if page["pair"] else ({}, 0)
        at = at if total else 0
        return self.render(
            "picture.html.jinja",
            status,
            **page,
            at=at,
            total=total,
            back=address("/", q=q, count=min(-(-at // FIRST) * FIRST, MOST)) + (f"#at{at}" if at else ""),
            neighbours=neighbours,
            at_hand=self.queries.collection.has_captions,
        )

    def problem(self, status: int, message: str, q: str = "") -> HTMLResponse:
        """The page of an error, with a link back to the search for `q`."""
        return self.render("problem.html.jinja", status, heading=HTTPStatus(status).phrase, message=message, q=q)

    def _state(self) -> dict[str, Any]:
        state = self.queries.status()
        return {
            "health": health(state), "rejected": state.rejected[:REJECTED_LISTED], "reasons": len(state.rejected),
            "examples": self.queries.examples, "at_hand": self.queries.collection.has_captions,
            "has_zero_threshold": self.queries.collection.has_zero_threshold, "most": MOST,
        }  # fmt: skip

    def _tiles(self, hits: Sequence[Hit], q: str, offset: int) -> list[dict[str, Any]]:
        return [
            {"id": hit.picture_id, "name": name, "at": at if q else 0, "q": q, "logit": hit.score if q else None,
             "cosine": None}
            for at, (hit, name) in enumerate(named(hits), start=offset + 1)
        ]  # fmt: skip

    def _like(self, like: SimilarResults) -> dict[str, Any]:
        return {
            "tiles": [
                {"id": hit.picture_id, "name": name, "at": 0, "q": "", "logit": None, "cosine": hit.score}
                for hit, name in named(like.hits)
            ],
            "captions": like.captions,
        }

    @staticmethod
    def _pair(view: PairView, name: str) -> dict[str, Any]:
        width = view.width or max((box[2] for box in view.boxes), default=1)
        height = view.height or max((box[3] for box in view.boxes), default=1)
        most = max([MIN_BAR_SCALE, *(abs(effect) for effect in view.effects if effect is not None)])
        against = [
            at for at, effect in enumerate(view.effects) if effect is not None and effect <= -MIN_NEGATIVE_EFFECT
        ]
        details = view.details
        gates = details["wordGates"] or [None] * len(details["words"])
        return {
            "logit": view.score,
            "width": width,
            "height": height,
            "spelt": list(dict.fromkeys(details["words"][at] for at in details["spelt"])),
            "words": [
                {"text": word, "unknown": at in details["unknown"], "effect": effect, "gate": gate,
                 "against": at in against, "bar": None if effect is None else 100 * effect / most}
                for at, (word, effect, gate) in enumerate(zip(details["words"], view.effects, gates, strict=True))
            ],
            "data": {
                "pair": {key: value for key, value in details.items() if key != "logit"},
                "against": against,
                "image": {"uri": address("/image", id=view.picture_id, side="large"), "alt": name, "w": width,
                          "h": height, "boxes": view.boxes, "labels": view.labels},
            },
        }  # fmt: skip

    def _neighbours(self, picture_id: str, q: str, at: int) -> tuple[dict[str, Any], int]:
        """The pictures before and after this one, the `at`-th in the answer to `q`, and the number of pictures in it.

        ({}, 0) if it is not the `at`-th any more, because the collection has changed.
        """
        offset = max(0, at - 2)
        answer = self.queries.collection.search(q, 3, offset)
        ranked = {offset + number: hit.picture_id for number, hit in enumerate(answer.hits, start=1)}
        if at < 1 or ranked.get(at) != picture_id:
            return {}, 0
        sides = (("before", at - 1), ("after", at + 1))
        return {name: {"id": ranked[n], "at": n} for name, n in sides if n in ranked}, answer.scored


def page_routes(pages: Pages, uploads: Uploads) -> APIRouter:
    """The routes of the pages."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    queries = pages.queries

    @router.get("/")
    def home(q: Text = "", like: Id = "", count: Annotated[int, Query(ge=1, le=MOST)] = FIRST) -> HTMLResponse:
        return pages.home(q, like, count)

    @router.get("/rows")
    def rows(q: Text = "", offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
             count: Annotated[int, Query(ge=1, le=200)] = FIRST,
             version: Annotated[str | None, Query(max_length=100)] = None) -> HTMLResponse:  # fmt: skip
        return pages.rows(q, offset, count, version)

    @router.get("/picture")
    def picture(id: Id, q: Text = "", at: Annotated[int, Query(ge=0, le=10_000_000)] = 0) -> HTMLResponse:
        return pages.picture(id, q, at)

    @router.get("/like")
    def like(id: Id) -> HTMLResponse:
        return pages.like(queries.like(id, SIMILAR_SHOWN, 0), "Pictures like it")

    @router.post("/like")
    async def like_upload(request: Request) -> HTMLResponse:
        return pages.like(await uploads.like(request, FIRST, 0), "Pictures like yours")

    @router.post("/captions")
    async def captions_of_upload(request: Request) -> HTMLResponse:
        # A separate request: comparing all training captions takes long, and the pictures need not wait for it.
        fitting = await uploads.like(request, 0, CAPTIONS_SHOWN)
        return pages.render("captions.html.jinja", captions=fitting.captions, at_hand=queries.collection.has_captions)

    @router.post("/rescan")
    def rescan(q: Text = "", like: Id = "") -> RedirectResponse:
        queries.collection.rescan()
        return RedirectResponse(address("/", q=q, like=like), 303)

    return router


def address(path: str, **query: object) -> str:
    """An address of this server; parameters that are empty or 0 are left out."""
    parameters = {name: value for name, value in query.items() if value not in ("", 0, None)}
    return f"{path}?{urlencode(parameters)}" if parameters else path


def sentence_of(caption: str) -> str:
    """A caption as a sentence to search by: the whole words of one that is too long for that."""
    return caption if len(caption) <= MAX_SENTENCE else caption[: MAX_SENTENCE + 1].rsplit(" ", 1)[0][:MAX_SENTENCE]


def pictures_text(count: int) -> str:
    """A number of pictures, in words."""
    return "1 picture" if count == 1 else f"{count:,} pictures" if count else "No pictures"


def score_text(logit: float) -> str:
    """The matching score, with its logit in brackets, because many scores are near 1."""
    m = matching_score(logit)
    short = "> .999" if m > 0.9995 else "< .001" if m < 0.0005 else f"{m:.3f}".removeprefix("0")
    return f"m {short} ({logit:z.1f})".replace("-", "\N{MINUS SIGN}")
