"""The page in a real browser against a real server: what a person does with it, and what must not happen."""

import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from search.collection import PictureCollection, open_workspace
from tests.search.conftest import HOSTILE_CAPTION, HOSTILE_NAME, Photographs, Server
from tests.stages.reporting.test_browser import contrast

SENTENCE = "a man riding a zyzzyva on the street"
WIDTHS = (1280, 390)
READY = "document.documentElement?.dataset.ready === 'true'"


@pytest.fixture(scope="module")
def collection(photographs: Photographs) -> PictureCollection:
    """The same pictures and model in this process."""
    return open_workspace(photographs.root)


@pytest.fixture
def tab(page: Any) -> Iterator[Any]:
    """The tab; scripts run again afterwards."""
    yield page
    page.call("Emulation.setScriptExecutionDisabled", value=False)


def searched(server: Server, sentence: str = SENTENCE) -> str:
    return f"{server.address}?q={quote(sentence)}"


def order(tab: Any) -> list[str]:
    """Ids of the pictures of the list, as they lie."""
    return tab.run("[...document.querySelectorAll('#tiles a')].map(a => new URL(a.href).searchParams.get('id'))")


def arrive(tab: Any, wanted: str) -> None:
    """Wait until the tab shows a page whose address ends so, and its script has run.

    The browser is asked, not the page: a script that is sent while a page takes another's place may never answer.
    """
    until = time.monotonic() + 60
    while True:
        address = ""
        try:
            history = tab.call("Page.getNavigationHistory")
            address = history["entries"][history["currentIndex"]]["url"]
            if re.search(f"{wanted}$", address) and tab.run(READY):
                return
        except AssertionError as error:  # between two pages
            assert "Not attached" in str(error) or "navigated or closed" in str(error), error
        assert time.monotonic() < until, f"{address} does not end with {wanted}"
        time.sleep(0.1)


def loaded(tab: Any) -> None:
    """Wait until every picture in the window is there."""
    tab.wait(
        "[...document.images].filter(i => i.getBoundingClientRect().top < innerHeight)"
        ".every(i => i.complete && i.naturalWidth)"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sentence_is_typed_and_a_picture_opened(
    tab: Any, server: Server, collection: PictureCollection, width: int
) -> None:
    tab.open(server.address, width)
    assert tab.count("#tiles img") >= 24
    tab.click("#q")
    tab.call("Input.insertText", text=SENTENCE)
    tab.key("Enter", 13, "\r")
    arrive(tab, r"/\?q=.*zyzzyva.*")
    expected = [hit.picture_id for hit in collection.search(SENTENCE, 24).hits]
    assert order(tab)[:24] == expected
    assert "zyzzyva" in tab.run("[...document.querySelectorAll('.said .unknown')].map(w => w.textContent)")
    assert "does not know" in tab.text("#answer .quiet")
    loaded(tab)
    tab.click("#tiles li:nth-child(2) a")
    arrive(tab, "/picture.*")
    assert tab.count("#words .word") == 8
    assert tab.run("new URLSearchParams(location.search).get('id')") == expected[1]
    loaded(tab)
    assert tab.count("#shown rect.box") == 6
    tab.run("history.back()")
    arrive(tab, r"/\?q=.*zyzzyva.*")
    assert order(tab)[:24] == expected and tab.errors == []


def test_an_opened_picture_shows_gates_attention_and_what_counts_against_it(
    tab: Any, server: Server, collection: PictureCollection, photographs: Photographs
) -> None:
    chosen = photographs.ids[4]
    tab.open(f"{server.address}picture?id={quote(chosen)}&q={quote(SENTENCE)}")
    view = collection.pair(chosen, SENTENCE)
    gates = tab.run("[...document.querySelectorAll('#words .word .num')].map(n => +n.textContent)")
    assert gates == pytest.approx([gate / 1000 for gate in view.details["wordGates"]], abs=0.006)
    rows = tab.run("[...document.querySelectorAll('.effects .num')].map(n => n.textContent)")
    assert rows == [
        "unknown" if effect is None else f"{effect:+.2f}".replace("-", "\N{MINUS SIGN}") for effect in view.effects
    ]
    unknown = view.details["unknown"]
    assert 4 in unknown and len(unknown) < 8
    against = [at for at, effect in enumerate(view.effects) if effect is not None and effect <= -0.005]
    assert tab.run("[...document.querySelectorAll('.word.against')].map(w => +w.dataset.word)") == against
    assert tab.run("[...document.querySelectorAll('.effects tr.against')].map(w => +w.dataset.word)") == against
    assert tab.run("[...document.querySelectorAll('.word.unknown')].map(w => +w.dataset.word)") == unknown
    assert tab.count(".picture .shade") == 0  # nothing is dimmed before a word is picked

    def lit() -> dict[str, float]:
        return tab.run(
            "Object.fromEntries([...document.querySelectorAll('mask [data-region]')]"
            ".map(r => [r.dataset.region, +r.style.fillOpacity]))"
        )

    def expected(word: int) -> Any:
        weights = view.details["wordAttention"][word]
        return pytest.approx({str(i): weight / max(weights) for i, weight in enumerate(weights)}, abs=0.002)

    place = tab.run("(r => [r.x + r.width / 2, r.y + r.height / 2])"
                    "(document.querySelector('[data-word=\"2\"]').getBoundingClientRect())")  # fmt: skip
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])  # over a word, not pressed
    tab.wait("document.querySelectorAll('.picture .shade').length === 1")
    assert lit() == expected(2) and "riding" in tab.text("figcaption.key") and "riding" in tab.text("#say")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    tab.wait("document.querySelectorAll('.picture .shade').length === 0")
    tab.click("#words [data-word='6']")
    assert tab.run("location.hash") == "#w6" and lit() == expected(6)
    tab.open(f"{server.address}picture?id={quote(chosen)}&q={quote(SENTENCE)}#w6")
    assert lit() == expected(6) and tab.errors == []


def drop(tab: Any, path: str) -> None:
    """Let a file go over the page, as a person does."""
    data = {"items": [], "files": [path], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        tab.call("Input.dispatchDragEvent", type=kind, x=300, y=400, data=data)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_dropped_picture_finds_those_like_it(
    tab: Any, server: Server, collection: PictureCollection, photographs: Photographs, width: int
) -> None:
    tab.open(searched(server), width)
    before = order(tab)
    chosen = photographs.ids[9]
    # The first picture that is looked at waits for the detector to be read.
    httpx.post(f"{server.address}api/similar", content=collection.picture(chosen).read_bytes(), timeout=120)
    drop(tab, str(collection.picture(chosen)))
    tab.wait("document.querySelector('.sought img')?.naturalWidth > 0")
    shown = tab.run(
        "[...document.querySelectorAll('#answer .tiles a')].map(a => new URL(a.href).searchParams.get('id'))"
    )
    assert shown == [hit.picture_id for hit in collection.similar(collection.pixels(chosen), 24)] and shown[0] == chosen
    loaded(tab)
    tab.wait("document.querySelectorAll('.fitting a').length > 0")
    captions = tab.run("[...document.querySelectorAll('.fitting a')].map(a => a.textContent)")
    assert captions == [text for text, _ in collection.captions_like(collection.pixels(chosen), 8)]
    assert tab.run("location.hash") == "#dropped" and tab.run("document.querySelector('#veil').hidden")
    tab.run("history.back()")
    arrive(tab, r"/\?q=.*zyzzyva[^#]*")
    assert order(tab)[:24] == before[:24] and tab.run("document.querySelector('#q').value") == SENTENCE
    tab.run("history.forward()")
    arrive(tab, "/#dropped")
    assert tab.run("[...document.querySelectorAll('#answer .tiles a')].length") == len(shown)
    assert [error for error in tab.errors if "ERR_" not in error] == []


def test_a_dropped_file_that_is_no_picture_is_said(tab: Any, server: Server, photographs: Photographs) -> None:
    tab.open(server.address)
    drop(tab, str(photographs.root / "params.yaml"))
    tab.wait("!document.querySelector('#failed').hidden")
    assert "is no image of a known format" in tab.text("#failed")
    assert tab.count("#tiles img") >= 24


@pytest.mark.parametrize("width", WIDTHS)
def test_scrolling_brings_one_more_row_until_all_are_there(
    tab: Any, server: Server, collection: PictureCollection, width: int
) -> None:
    tab.open(searched(server), width)
    expected = [hit.picture_id for hit in collection.search(SENTENCE, 100).hits]
    seen = len(order(tab))
    assert seen < len(expected) or width > 600
    for _ in range(40):
        tab.run("scrollTo(0, document.documentElement.scrollHeight)")
        tab.run("new Promise(wake => setTimeout(wake, 60))")
        if tab.count("#tiles li") == len(expected):
            break
    assert order(tab) == expected
    tab.wait("document.querySelector('#more') === null")
    assert tab.errors == []


def test_keys_alone_search_and_walk_over_the_pictures(tab: Any, server: Server) -> None:
    tab.open(server.address)
    tab.key("/", 191, "/")
    assert tab.run("document.activeElement.id") == "q" and tab.run("document.activeElement.value") == ""
    tab.call("Input.insertText", text="a dog")
    tab.key("Enter", 13, "\r")
    arrive(tab, r"/\?q=a\+dog")
    tab.run("document.querySelector('#q').focus()")
    tab.key("ArrowDown", 40)
    across = tab.run("getComputedStyle(document.querySelector('#tiles')).gridTemplateColumns.split(' ').length")

    def focused() -> int:
        return tab.run("[...document.querySelectorAll('#tiles a')].indexOf(document.activeElement)")

    assert focused() == 0
    for key, code, at in (("ArrowRight", 39, 1), ("ArrowDown", 40, 1 + across), ("ArrowLeft", 37, across)):
        tab.key(key, code)
        assert focused() == at
    tab.key("Enter", 13, "\r")
    arrive(tab, "/picture.*")
    assert tab.run("new URLSearchParams(location.search).get('at')") == str(across + 1)
    tab.key("ArrowRight", 39)
    arrive(tab, f"/picture.*at={across + 2}")
    tab.run("document.querySelector('#words .word').focus()")
    tab.key("ArrowRight", 39)
    assert tab.run("document.activeElement.dataset.word") == "1"
    assert "dog" in tab.text("#say")  # the focus alone shows where the word looks
    tab.key("Escape", 27)
    arrive(tab, r"/\?q=a\+dog")
    assert tab.errors == []


def test_without_scripts_it_searches_and_a_picture_can_be_read(
    tab: Any, server: Server, collection: PictureCollection
) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.call("Page.navigate", url=searched(server))
    tab.wait("document.querySelectorAll('#tiles img').length >= 24")
    assert order(tab) == [hit.picture_id for hit in collection.search(SENTENCE, 24).hits]
    assert tab.run("new URL(document.querySelector('#more a').href).searchParams.get('count')") == "48"
    assert tab.run("document.querySelector('#choose').hidden")
    tab.call("Page.navigate", url=tab.run("document.querySelector('#tiles a').href"))
    tab.wait("document.querySelectorAll('.effects tbody tr').length === 8")
    gates = tab.run("[...document.querySelectorAll('.effects tbody .gate')].map(n => +n.textContent)")
    view = collection.pair(collection.search(SENTENCE, 1).hits[0].picture_id, SENTENCE)
    assert gates == pytest.approx([gate / 1000 for gate in view.details["wordGates"]], abs=0.006)
    assert tab.run("getComputedStyle(document.querySelector('.effects td.gate')).display") != "none"


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
    tab.click("footer summary")
    ((name, reason),) = collection.status().rejected
    assert tab.text(".rejected li").split() == f"{name} {reason}".split()
    tab.click("footer form button")
    arrive(tab, r":\d+/")
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
