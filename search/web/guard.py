"""Protects the server: it accepts only allowed host names, and no requests from pages of other sites."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.errors import InputError, shown

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names under which a browser on this machine finds the page."""
HEADERS = {
    # Whatever a caption or a file name holds: only this server's own scripts run, and nothing else is loaded.
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def guard(app: Starlette, allowed_hosts: Sequence[str]) -> None:
    """Check every request of `app`, and add HEADERS to every answer.

    Args:
        allowed_hosts: names besides those of this machine, as in an address, without a port.

    Raises:
        InputError: an entry of `allowed_hosts` is not a host name.
    """
    for name in allowed_hosts:
        bare = name.removeprefix("*.")
        if not bare.strip(".") or "/" in bare or "*" in bare:
            raise InputError(
                f"--allow-host: {shown(name)} is not a host name; expected one such as pictures.example.org"
            )
    # A request passes the middleware that was added last first.
    app.add_middleware(SameSiteOnly)
    app.add_middleware(KnownHostsOnly, names=[*LOOPBACK, *allowed_hosts])
    app.add_middleware(AnswerHeaders)


class KnownHostsOnly:
    """Refuses requests whose Host header is none of `names`, in the API's form, unlike starlette, which decides."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = False

        async def accept(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal known
            known = True

        async def drop(message: Message) -> None:
            """Starlette's own refusal."""

        await TrustedHostMiddleware(accept, self.names, www_redirect=False)(scope, receive, drop)
        if known:
            await self.app(scope, receive, send)
            return
        message = (
            f"Host: {shown(Headers(scope=scope).get('host'))} is not a name of this server; expected one of "
            f"{', '.join(LOOPBACK)}, or a name that the server was started with (--allow-host NAME)"
        )
        await JSONResponse({"error": message}, 400)(scope, receive, send)


class SameSiteOnly:
    """Refuses requests from pages of other sites, except links that a user follows.

    Browsers name the site in `Sec-Fetch-Site`, older ones in `Origin`; programs send neither and are accepted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_same_site(scope["method"], Headers(scope=scope)):
            message = (
                "refused: the request comes from a page of another site; expected one from a page of this server, or "
                "from a program, which sends neither Origin nor Sec-Fetch-Site"
            )
            await JSONResponse({"error": message}, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_same_site(method: str, headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return site in ("same-origin", "none") or link
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


class AnswerHeaders:
    """Adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
