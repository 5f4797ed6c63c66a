"""The style and the scripts of the pages: a fixed list, read once."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

from stages.pair_view.assets import pair_view_script, pair_view_style

FOLDER = Path(__file__).parent / "static"
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class StaticFiles:
    """The files below /static, at addresses that change with the content."""

    def __init__(self) -> None:
        def read(name: str) -> str:
            return (FOLDER / name).read_text(encoding="utf-8")

        texts = {
            "style.css": pair_view_style() + read("search.css"),
            "pair_view.js": pair_view_script(),
            **{name: read(name) for name in ("search.js", "picture.js", "icon.svg")},
        }
        self.files = {name: text.encode() for name, text in texts.items()}
        self._versions = {name: hashlib.sha256(data).hexdigest()[:12] for name, data in self.files.items()}

    def address(self, name: str) -> str:
        """The address of a file."""
        return f"/static/{name}?v={self._versions[name]}"


def static_routes(static: StaticFiles) -> APIRouter:
    """The route of the files; any other name is not found."""
    router = APIRouter(include_in_schema=False)

    @router.get("/static/{name}")
    def file(name: str, request: Request) -> Response:
        if name not in static.files:
            raise HTTPException(404)
        current = request.url.query == static.address(name).partition("?")[2]
        caching = "public, max-age=31536000, immutable" if current else "no-cache"
        kind = KINDS[Path(name).suffix]
        return Response(static.files[name], media_type=kind, headers={"Cache-Control": caching})

    return router
