"""Every page in a real browser: it fits, can be read and used by all, and shows names and captions as text."""

import itertools
import json
from typing import Any
from urllib.parse import quote

import pytest

from search.collection import PictureCollection
from search.web.pages import score_text
from tests.search.conftest import HOSTILE_CAPTION, HOSTILE_NAME, Photographs, Server
from tests.search.tabs import SENTENCE, WIDTHS, arrive, everything, loaded, searched
from tests.stages.reporting.test_browser import contrast


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_load_nothing_from_elsewhere_and_can_be_read(
    tab: Any, server: Server, photographs: Photographs, width: int, theme: str
) -> None:
    picture = f"{server.address}picture?id={quote(photographs.ids[4])}&q={quote(SENTENCE)}#w1"
    for address, texts in (
        (server.address, (".lead", ".examples a", "footer p", "footer summary", ".name em")),
        (searched(server), (".said", "#answer .quiet", ".quiet strong", ".tile .score", ".tile .at", ".ask button")),
        (f"{server.address}?like={quote(photographs.ids[4])}", (".tile .score", "h2")),
        (picture, (".verdict .score", ".verdict", ".effects caption", ".effects .num", "thead th", ".word .num",
                   ".word[aria-pressed=true] .num", "#say", ".key", ".trail a", ".trail span")),
        (searched(server, "!?"), (".problem",)),
        (f"{server.address}picture?id={quote(photographs.ids[4])}&q={'Rindfleisch' * 20}+a", ()),
    ):  # fmt: skip
        tab.open(address, width, theme)
        loaded(tab)
        assert [error for error in tab.errors if "400" not in error] == []
        assert [url for url in tab.requests if not url.startswith((server.address, "about:"))] == []
        assert tab.run("document.documentElement.scrollWidth") == width
        for selector in texts:
            if tab.count(selector):
                assert contrast(tab, selector) >= 4.5, (address, selector)


def test_names_and_captions_are_text(tab: Any, server: Server, photographs: Photographs) -> None:
    hostile = f"{server.address}picture?id={quote(photographs.hostile)}&q={quote(HOSTILE_CAPTION)}"
    tab.open(hostile)
    assert tab.text("h1") == HOSTILE_NAME
    assert tab.run("document.querySelector('#q').value") == HOSTILE_CAPTION
    tab.wait("document.querySelector('#like .tiles') !== null")
    assert tab.errors == [] and tab.count("[onerror]") == 0
    for sentence in (HOSTILE_CAPTION, '"><img src=x onerror=alert(9)>', "{{ 7 * 7 }} ${7*7}", "'; alert(1); '"):
        tab.open(searched(server, sentence))
        assert tab.run("document.querySelector('#q').value") == sentence
        assert tab.errors == [] and tab.count("[onerror]") == 0 and tab.count("main script") == 0
    # Even what a page would run is not run.
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
    tab.run("new Promise(wake => setTimeout(wake, 200))")
    assert tab.run("document.title") != "1"


def test_broken_pictures_are_listed_with_their_reasons(tab: Any, server: Server, collection: PictureCollection) -> None:
    tab.open(searched(server))
    everything(tab)  # else a row that comes would push away what is pressed
    tab.click("footer summary")
    ((name, reason),) = collection.status().rejected
    assert tab.text(".rejected li").split() == f"{name} {reason}".split()
    tab.click("footer form button")
    arrive(tab, r"/\?q=a\+man\+riding.*")  # the search stays
    assert tab.count("#tiles img") >= 24


def test_every_control_has_a_name_and_is_large_enough_for_a_thumb(
    tab: Any, server: Server, photographs: Photographs
) -> None:
    roles = ("button", "link", "searchbox", "img", "image", "table", "region", "progressbar")
    for address in (searched(server), f"{server.address}picture?id={quote(photographs.ids[4])}&q=a+dog"):
        tab.open(address, 390)
        tree = tab.call("Accessibility.getFullAXTree")["nodes"]
        seen = [node for node in tree if node.get("role", {}).get("value") in roles and not node.get("ignored")]
        unnamed = [node for node in seen if not node.get("name", {}).get("value")]
        assert unnamed == []
        levels = tab.run("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        small = tab.run(
            "[...document.querySelectorAll('button, input[type=search], .tile, .trail a')]"
            ".filter(e => e.getClientRects().length)"
            ".map(e => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()])"
            ".filter(([, r]) => Math.min(r.width, r.height) < 24).map(([html]) => html)"
        )
        assert small == [], json.dumps(small)


def test_a_score_has_no_negative_zero() -> None:
    assert [score_text(logit) for logit in (-0.02, -0.06)] == ["m .495 (0.0)", "m .485 (\u22120.1)"]
