"""The page in a real browser against a real server: what a person does with it, and what must not happen."""

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from search.collection import PictureCollection
from tests.search.conftest import Photographs, Server
from tests.search.tabs import SENTENCE, WIDTHS, arrive, everything, loaded, searched


def order(tab: Any) -> list[str]:
    """Ids of the pictures of the list, as they lie."""
    return tab.run("[...document.querySelectorAll('#tiles a')].map(a => new URL(a.href).searchParams.get('id'))")


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
        "unknown" if effect is None else f"{effect:+.2f}".replace("-0.00", "+0.00").replace("-", "\N{MINUS SIGN}")
        for effect in view.effects
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
    httpx.post(f"{server.address}api/similar", content=collection.file(chosen).path.read_bytes(), timeout=120)
    drop(tab, str(collection.file(chosen).path))
    tab.wait("document.querySelector('.sought img')?.naturalWidth > 0")
    shown = tab.run(
        "[...document.querySelectorAll('#answer .tiles a')].map(a => new URL(a.href).searchParams.get('id'))"
    )
    assert (
        shown == [hit.picture_id for hit in collection.similar(collection.find_regions(collection.pixels(chosen)), 24)]
        and shown[0] == chosen
    )
    loaded(tab)
    tab.wait("document.querySelectorAll('.fitting a').length > 0")
    captions = tab.run("[...document.querySelectorAll('.fitting a')].map(a => a.textContent)")
    features = collection.find_regions(collection.pixels(chosen))
    assert captions == [text for text, _ in collection.captions_like(features, 8)]
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
    tab.run("scrollTo(0, document.documentElement.scrollHeight)")
    drop(tab, str(photographs.root / "params.yaml"))
    tab.wait("!document.querySelector('#failed').hidden")
    assert "is no image of a known format" in tab.text("#failed")
    box = "document.querySelector('#failed').getBoundingClientRect()"
    top, bottom, height = tab.run(f"(({{ top, bottom }}) => [top, bottom, innerHeight])({box})")
    assert 0 <= top < bottom <= height, "it is seen, however many pictures there are"
    assert tab.count("#tiles img") >= 24


@pytest.mark.parametrize("width", WIDTHS)
def test_scrolling_brings_one_more_row_until_all_are_there(
    tab: Any, server: Server, collection: PictureCollection, width: int
) -> None:
    tab.open(searched(server), width)
    expected = [hit.picture_id for hit in collection.search(SENTENCE, 100).hits]
    seen = len(order(tab))
    assert seen < len(expected) or width > 600
    everything(tab)
    assert order(tab) == expected
    assert tab.errors == []


def test_what_is_below_the_pictures_can_be_reached_and_more_are_asked_for(tab: Any, server: Server) -> None:
    tab.open(searched(server), 390)
    tab.run("document.querySelector('#tiles').dataset.round = 26")
    for _ in range(10):
        tab.run("scrollTo(0, document.documentElement.scrollHeight)")
        tab.run("new Promise(wake => setTimeout(wake, 60))")
    assert tab.count("#tiles li") == 26, "one round, however often somebody scrolls"
    assert tab.run("document.querySelector('footer').getBoundingClientRect().bottom <= innerHeight + 1")
    tab.click("#more a")
    tab.wait("document.querySelectorAll('#tiles li').length > 26")
    everything(tab)
    assert tab.errors == []


def test_rows_of_a_list_that_has_changed_are_not_mixed_with_it(tab: Any, server: Server) -> None:
    tab.open(searched(server), 390)
    before = order(tab)
    tab.run("document.querySelector('#tiles').dataset.version = 'older'")
    tab.run("scrollTo(0, document.documentElement.scrollHeight)")
    tab.wait("document.querySelector('#more').textContent.includes('pictures may have come or gone since')")
    assert order(tab) == before, "no picture is repeated or passed over"
    assert [error for error in tab.errors if "409" not in error] == []
    tab.click("#more a")
    tab.wait("location.search.includes('count=48')")


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
    entries = tab.run("history.length")
    tab.key("ArrowRight", 39)
    arrive(tab, f"/picture.*at={across + 2}")
    assert tab.run("history.length") == entries  # so that back leads to the list from there, too
    tab.run("document.querySelector('#words .word').focus()")
    tab.key("ArrowRight", 39)
    assert tab.run("document.activeElement.dataset.word") == "1"
    assert "dog" in tab.text("#say")  # the focus alone shows where the word looks
    tab.key("Escape", 27)
    arrive(tab, r"/\?q=a\+dog")
    tab.run("document.querySelectorAll('#tiles a')[2].focus()")
    tab.key("Enter", 13, "\r")
    arrive(tab, "/picture.*at=3")
    tab.key("Escape", 27)
    arrive(tab, r"/\?q=a\+dog")
    assert tab.run("history.length") == entries  # it went back, so that going back does not lead to the picture again
    tab.run("document.querySelectorAll('#tiles a')[2].focus()")
    tab.key("Enter", 13, "\r")
    arrive(tab, "/picture.*at=3")
    tab.call("Page.resetNavigationHistory")  # as in a tab of its own, where there is nothing to go back to
    tab.wait("!navigation.canGoBack")  # the page hears of it later
    tab.key("Escape", 27)
    arrive(tab, r"/\?q=a\+dog&count=24#at3")
    assert tab.run("document.querySelector(':target a').getBoundingClientRect().top >= 0")
    assert tab.errors == []


def test_the_focus_stays_on_words_and_regions_and_is_never_under_the_header(tab: Any, server: Server) -> None:
    tab.open(searched(server))
    tab.open(tab.run("document.querySelector('#tiles a').href"))
    tab.run("document.querySelector('#words .word:last-child').focus()")
    tab.key("Tab", 9)
    assert tab.run("document.activeElement.closest('#regions button') !== null")
    tab.run("new Promise(wake => setTimeout(wake, 50))")  # what the word's blur draws anew
    assert tab.run("document.activeElement.closest('#regions button') !== null")
    region = tab.run("document.activeElement.dataset.region")
    tab.key("Enter", 13, "\r")
    assert tab.run("[document.activeElement.dataset.region, document.activeElement.ariaPressed]") == [region, "true"]
    tab.key("ArrowRight", 39)
    assert "/picture" in tab.run("location.pathname") and tab.run("document.activeElement.dataset.region") == region
    for width, height, sticks in ((1280, 900, True), (390, 800, True), (640, 450, False)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        header = "getComputedStyle(document.querySelector('header.top')).position"
        assert (tab.run(header) == "sticky") == sticks, "where a window is low, it would hide half of it"
        kept = tab.run("parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop)")
        assert not sticks or kept > tab.run("document.querySelector('header.top').offsetHeight")
    assert tab.errors == []


def test_a_tall_picture_is_seen_whole(tab: Any, server: Server) -> None:
    tab.open(searched(server))
    tab.open(tab.run("document.querySelector('#tiles a').href"))
    image = tab.run("JSON.parse(document.querySelector('#pair').textContent).image")
    ratio = "+getComputedStyle(document.querySelector('#shown .picture')).getPropertyValue('--ratio')"
    assert tab.run(ratio) == pytest.approx(image["w"] / image["h"])
    height = tab.run("""(() => {
        const of = {...JSON.parse(document.querySelector("#pair").textContent), word: null, region: null};
        of.image = {...of.image, w: 30, h: 3000};
        document.querySelector("#shown").replaceChildren(drawStage({...of, marks: () => [], toggle() {}}));
        return document.querySelector(".picture").getBoundingClientRect().height / innerHeight;
    })()""")
    assert 0 < height < 0.79


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
