"""The server's application: pages, API and pictures of one collection."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from search.collection import PictureCollection, UnknownPicture
from search.web.api import api_routes
from search.web.guard import guard
from search.web.pages import Pages, page_routes
from search.web.queries import Queries
from search.web.scaled import LongestSide, ScaledPictures
from search.web.static import StaticFiles, static_routes
from search.web.uploads import UploadRefused, Uploads
from stages.detectors.images import RejectedImage
from stages.errors import InputError

PARAMETER_LABELS = {"q": "the sentence, q"}
"""Query parameter -> its name in messages to users."""


def create_application(collection: PictureCollection, allowed_hosts: Sequence[str] = ()) -> FastAPI:
    """The application that serves a collection.

    Args:
        allowed_hosts: host names that requests may use, besides those of this machine.

    Raises:
        InputError: an entry of `allowed_hosts` is not a host name.
    """
    # No page of documentation: FastAPI's loads its scripts from elsewhere.
    application = FastAPI(
        title="CAMP search", description="Pictures found by sentences.", openapi_url="/api/openapi.json",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    queries, static = Queries(collection), StaticFiles()
    uploads, pages = Uploads(queries), Pages(queries, static)
    for router in (
        api_routes(queries, uploads), page_routes(pages, uploads), static_routes(static), _image_routes(collection),
    ):  # fmt: skip
        application.include_router(router)
    _add_error_handlers(application, pages)
    application.add_middleware(HeadAsGet)
    guard(application, allowed_hosts)
    return application


class HeadAsGet:
    """Answers HEAD as GET; the server itself sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


def _image_routes(collection: PictureCollection) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    pictures = ScaledPictures(collection)
    sides = {side.name.lower(): side for side in LongestSide}

    @router.get("/image")
    def image(
        request: Request,
        id: Annotated[str, Query(max_length=1000)],
        side: Annotated[str, Query(pattern=f"^({'|'.join(sides)})$")] = "small",
    ) -> Response:
        scaled = pictures.get(id, sides[side])
        headers = {"ETag": scaled.etag, "Cache-Control": "private, no-cache"}
        if scaled.etag in request.headers.get("if-none-match", ""):  # one of several, or weakened by a proxy
            return Response(status_code=304, headers=headers)
        return Response(scaled.jpeg, media_type="image/jpeg", headers=headers)

    return router


def _add_error_handlers(application: FastAPI, pages: Pages) -> None:
    """Answer errors with a page for browsers and with JSON for programs."""

    def refuse(request: Request, status: int, message: str) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
        if wants_page or request.url.path in ("/", "/picture", "/rescan"):
            return pages.problem(status, message)
        return JSONResponse({"error": message}, status)

    @application.exception_handler(InputError)
    def wrong_input(request: Request, error: InputError) -> Response:
        return refuse(request, 404 if isinstance(error, UnknownPicture) else 400, str(error))

    @application.exception_handler(RejectedImage)
    def rejected(request: Request, error: RejectedImage) -> Response:
        reason = str(error)
        message = reason if reason.startswith("the file ") else f"the picture {reason}"
        return refuse(request, 422 if request.method == "POST" else 404, message)

    @application.exception_handler(UploadRefused)
    async def upload(request: Request, error: UploadRefused) -> Response:  # a server that stops waits for no thread
        response = refuse(request, error.status, str(error))
        response.headers.update(error.headers)
        return response

    @application.exception_handler(RequestValidationError)
    def wrong_query(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = PARAMETER_LABELS.get(first["loc"][-1], first["loc"][-1])
        return refuse(request, 422, f"{where}: {first['msg'].removeprefix('String ')}"[:300])

    @application.exception_handler(HTTPException)
    def not_served(request: Request, error: HTTPException) -> Response:
        message = f"there is no page at {request.url.path}" if error.status_code == 404 else str(error.detail)
        response = refuse(request, error.status_code, message[:300])
        response.headers.update(error.headers or {})  # 405 lists the methods that there are
        return response
