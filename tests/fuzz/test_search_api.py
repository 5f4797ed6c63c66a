"""Whatever is asked of the search API: a clear refusal or a right answer, never an error of its own, a hang, a bomb."""

import json
import resource
import time
from collections.abc import Sequence

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from starlette.testclient import TestClient

from search.collection import open_workspace
from search.web.application import create_application
from stages.cost import RUSAGE_UNIT
from tests.fuzz.requests import Request, Route, made_request, made_upload, uploads
from tests.fuzz.test_fuzz import LONGEST, MEMORY, SEEDS, fuzzing
from tests.search.conftest import HOSTILE_CAPTION, HOSTILE_NAME, Photographs, photographs

__all__ = ["photographs"]
SLOWEST = 20.0
"""Seconds of one answer, at most."""


@pytest.fixture(scope="module")
def client(photographs: Photographs) -> TestClient:
    """The application itself; an exception that it does not answer is raised here."""
    application = create_application(open_workspace(photographs.root))
    return TestClient(application, base_url="http://localhost", follow_redirects=False)


@pytest.fixture(scope="module")
def routes(client: TestClient) -> dict[str, Route]:
    """Every path that is served."""
    served: dict[str, Route] = {}
    for included in client.app.routes:  # type: ignore[attr-defined]
        for route in getattr(getattr(included, "original_router", None), "routes", [included]):
            known = served.setdefault(route.path, Route())
            known.methods |= set(getattr(route, "methods", None) or ())
            if isinstance(route, APIRoute):
                known.names |= {field.alias for field in route.dependant.query_params}
    assert {"/", "/api/search", "/api/pair", "/api/similar", "/image", "/picture", "/metrics"} <= served.keys()
    assert {"q", "top", "offset"} == served["/api/search"].names and served["/api/search"].methods
    return served


def ask(client: TestClient, request: Request) -> httpx.Response:
    begun = time.monotonic()
    answer = client.request(request.method, request.url, headers=request.headers, content=request.content)
    assert time.monotonic() - begun < SLOWEST
    assert answer.status_code < 500, (request.method, request.url[:300], answer.text[:300])
    assert "Traceback" not in answer.text
    html = answer.headers.get("content-type", "").startswith("text/html")
    assert not (html and (HOSTILE_NAME in answer.text or HOSTILE_CAPTION in answer.text)), "unescaped in a page"
    if answer.status_code >= 400 and not html:
        assert len(answer.content) < LONGEST
    return answer


def check_answer(request: Request, answer: httpx.Response, ids: Sequence[str]) -> None:
    """What is answered is right: pictures of the collection, best first, no more than were asked for."""
    if answer.status_code != 200 or request.method not in ("GET", "POST"):
        return
    path, asked = answer.url.path, answer.url.params
    if path in ("/api/search", "/api/similar"):
        pictures = json.loads(answer.text)["pictures"]
        scores = [picture["logit" if path == "/api/search" else "cosine"] for picture in pictures]
        assert scores == sorted(scores, reverse=True)
        assert {picture["id"] for picture in pictures} <= set(ids)
        assert len(pictures) <= int(asked.get_list("top")[-1] if "top" in asked else 20)
    elif path == "/image":
        assert answer.content.startswith(b"\xff\xd8")


@pytest.mark.timeout(1800)
def test_whatever_is_asked_is_answered_or_refused(
    client: TestClient, routes: dict[str, Route], photographs: Photographs
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses: dict[int, int] = {}

    @fuzzing()
    @given(SEEDS)
    def fuzz(seed: int) -> None:
        request = made_request(seed, routes, photographs.ids)
        answer = ask(client, request)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        check_answer(request, answer, photographs.ids)

    fuzz()
    assert statuses[200] > 0.15 * sum(statuses.values()), "most of it was not looked at"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * RUSAGE_UNIT < MEMORY


@pytest.mark.timeout(1800)
def test_whatever_is_sent_for_a_picture_is_looked_at_or_refused(client: TestClient, photographs: Photographs) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    samples = uploads()
    for name, content, right in samples:
        answer = ask(client, Request("POST", "/api/similar", content=content))
        assert (answer.status_code == 200) == right and answer.status_code in (200, 422), (name, answer.text[:300])

    @fuzzing(0.5)
    @given(SEEDS)
    def fuzz(seed: int) -> None:
        request = made_upload(seed, samples)
        check_answer(request, ask(client, request), photographs.ids)

    fuzz()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * RUSAGE_UNIT < MEMORY
