"""The report page in a real browser: it runs, fits, answers clicks and keys, and asks the network for nothing."""

import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

WIDTHS = (1280, 390)


def data(page: Any) -> dict[str, Any]:
    return page.run("JSON.parse(document.getElementById('data').textContent)")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_runs_and_fits_without_the_network(page, report, width, theme):
    page.open(report, width, theme)
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [report]
    assert page.run("document.documentElement.scrollWidth") == width
    # Whatever sticks out of the window lies in something that scrolls by itself.
    sticking_out = page.run(
        "[...document.querySelectorAll('body *')].filter(e => e.getClientRects().length"
        f" && e.getBoundingClientRect().right > {width} + 1 && !e.closest('.scroll, #queries, .skip'))"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    assert sticking_out == []
    assert page.run("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    assert page.count("#queries button") == len(data(page)["queries"]["t2i"])


def contrast(page: Any, selector: str) -> float:
    """WCAG contrast between an element's text and the first solid background behind it."""
    return page.run(
        """(selector => {
        const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data]; };
        const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
        const e = document.querySelector(selector);
        let behind = e;
        while (rgb(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
        const [a, b] = [rgb(getComputedStyle(e).color), rgb(getComputedStyle(behind).backgroundColor)].map(light);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        })"""
        + f"({json.dumps(selector)})"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(page, report, theme):
    page.open(report + "#t2i-0/0/w0", 1280, theme)
    for selector in (
        "body", ".lead", "caption", ".context td", ".rank.miss", ".rank.near", ".word[aria-pressed=true] .num",
        ".word .num", ".result .score", ".result.right .tick", ".say", "figcaption", ".facts dt", "#shown", "nav a",
        "#directions [aria-pressed=true]", ".region .num",
    ):  # fmt: skip
        assert contrast(page, selector) >= 4.5, selector
    page.open(report + "#t2i-0/0/r0", 1280, theme)
    strongest = page.run(
        "[...document.querySelectorAll('.word')].findIndex(w => w.style.getPropertyValue('--given') === '1.000')"
    )
    assert contrast(page, f".word[data-word='{strongest}'] .num") >= 4.5


@pytest.mark.parametrize("width", WIDTHS)
def test_clicking_a_query_a_result_and_a_word_shows_its_attention(page, report, width):
    page.open(report, width)
    query = data(page)["queries"]["t2i"][2]
    page.click("[data-query=t2i-2]")
    assert query["text"] in page.text("#detail h3")
    page.click("#detail [data-result='1']")
    pair = query["results"][1]
    assert page.count("#detail .word") == len(pair["words"])
    page.click("#detail [data-word='0']")
    assert page.run("location.hash") == "#t2i-2/1/w0"
    assert page.run("document.querySelector('[data-word=\"0\"]').getAttribute('aria-pressed')") == "true"
    assert f"gate of {pair['wordGates'][0] / 1000:.2f}" in page.text(".say")
    drawn = page.run(
        "Object.fromEntries([...document.querySelectorAll('mask [data-region]')]"
        ".map(r => [r.dataset.region, +r.style.fillOpacity]))"
    )
    weights = pair["wordAttention"][0]
    expected = {str(i): weight / max(weights) for i, weight in enumerate(weights)}
    assert drawn == pytest.approx(expected, abs=0.002)
    strongest = max(range(len(weights)), key=weights.__getitem__)
    assert page.run("document.querySelector('.region').dataset.region") == str(strongest)
    page.click("#detail [data-word='0']")  # once more: back to the gates
    assert page.run("location.hash") == "#t2i-2/1"
    assert page.errors == []


def test_boxes_lie_on_the_picture_where_the_regions_are(page, report):
    page.open(report + "#i2t-1", 1280)
    image = data(page)["images"][data(page)["queries"]["i2t"][1]["image"]]
    places = page.run(
        "(() => { const p = document.querySelector('.picture img').getBoundingClientRect();"
        "return [...document.querySelectorAll('rect.box')].map(r => { const b = r.getBoundingClientRect();"
        "return [+r.dataset.region, (b.left - p.left) / p.width, (b.top - p.top) / p.height,"
        "(b.right - p.left) / p.width, (b.bottom - p.top) / p.height]; }); })()"
    )
    assert len(places) == len(image["boxes"])
    for region, *place in places:
        x0, y0, x1, y1 = image["boxes"][region]
        expected = [x0 / image["w"], y0 / image["h"], x1 / image["w"], y1 / image["h"]]
        assert place == pytest.approx(expected, abs=0.02)


def test_a_region_shows_which_words_it_reads(page, report):
    page.open(report + "#i2t-1", 1280)
    pair = data(page)["queries"]["i2t"][1]["results"][0]
    boxes = data(page)["images"][pair["image"]]["boxes"]
    # The smallest is on top wherever it overlaps others.
    region = min(range(len(boxes)), key=lambda i: (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]))
    page.click(f"rect.box[data-region='{region}']")
    assert page.run("location.hash").endswith(f"/r{region}")
    given = page.run(
        "[...document.querySelectorAll('.word')].map(w => +getComputedStyle(w).getPropertyValue('--given'))"
    )
    weights = pair["regionAttention"][region]
    assert given == pytest.approx([weight / max(weights) for weight in weights], abs=0.002)


def test_keys_alone_reach_a_word_and_focus_stays(page, report):
    page.open(report + "#t2i-1", 1280)
    page.run("document.querySelector('#detail [data-word=\"0\"]').focus()")
    page.key("ArrowRight", 39)
    page.key("Enter", 13, "\r")
    assert page.run("location.hash") == "#t2i-1/w1"
    assert page.run("document.activeElement.dataset.word") == "1"
    page.run("document.querySelector('#queries button').focus()")
    page.key("Tab", 9)
    page.key("Enter", 13, "\r")
    assert page.run("document.activeElement.dataset.query") == "t2i-1"
    assert page.run("document.querySelector('[aria-current]').dataset.query") == "t2i-1"


def test_filters_by_rank_and_search(page, report):
    page.open(report, 390)
    page.click("[data-direction=i2t]")
    queries = data(page)["queries"]["i2t"]
    for name, keep in (("near", lambda rank: 1 < rank <= 10), ("far", lambda rank: rank > 10)):
        page.click(f"[data-filter={name}]")
        kept = [query["key"] for query in queries if keep(query["rank"])]
        assert page.run("[...document.querySelectorAll('.query')].map(q => q.dataset.query)") == kept
        assert page.run("document.querySelector('[aria-current]') !== null")
    page.click("[data-filter=all]")
    page.run(
        "(s => { s.value = 'BLUE square'; s.dispatchEvent(new Event('input')); })(document.getElementById('search'))"
    )
    kept = [query["key"] for query in queries if "blue square" in query["search"]]
    assert 0 < len(kept) < len(queries)
    assert page.run("[...document.querySelectorAll('.query')].map(q => q.dataset.query)") == kept
    assert page.text("#shown") == f"{len(kept)} of {len(queries)} queries"
    page.run("(s => { s.value = 'zebra'; s.dispatchEvent(new Event('input')); })(document.getElementById('search'))")
    assert "No query fits" in page.text("#queries") and page.errors == []


def test_an_address_opens_a_query_and_a_failure_leads_to_one(page, report):
    page.open(report + "#i2t-3/1/w0", 1280)
    assert page.run("document.querySelector('[aria-current]').dataset.query") == "i2t-3"
    assert page.run("document.querySelector('.result[aria-pressed=true]').dataset.result") == "1"
    key = page.run("document.querySelector('.failure').getAttribute('href')")
    page.click(".failure")
    page.wait(f"document.querySelector('[aria-current]').dataset.query === {json.dumps(key[1:])}")
    page.wait("document.activeElement.id === 'detail'")  # so that keys go on where the view is
    left = page.run("(document.querySelector('#failures').scrollIntoView({behavior: 'instant'}), scrollY)")
    page.click(".failures li:nth-child(2) .failure")
    page.wait(f"scrollY < {left} && document.activeElement.id === 'detail'")
    page.run("history.back()")
    page.wait(f"document.querySelector('[aria-current]').dataset.query === {json.dumps(key[1:])}")
    page.wait(f"Math.abs(scrollY - {left}) < 300")
    page.open(report + "#i2t-999/7/w99", 1280)  # names nothing: the page opens as usual
    assert page.run("document.querySelector('[aria-current]').dataset.query") == "t2i-0"
    page.open(report + "#t2i-0/99/w999", 1280)
    assert page.errors == []


def test_a_hostile_caption_is_shown_and_does_nothing(page, report):
    page.open(report, 1280)
    key = next(query["key"] for query in data(page)["queries"]["t2i"] if "<script>" in query["text"])
    page.open(f"{report}#{key}", 1280)
    assert "<script>alert(1)</script>" in page.text("#detail h3")
    assert page.errors == [] and page.count("script") == 2


def test_captions_from_right_to_left_accents_in_parts_and_long_words(page, report, tmp_path):
    text = Path(unquote(urlparse(report).path)).read_text(encoding="utf-8")
    head, tag, rest = text.partition('id="data">')
    content, end = json.loads(rest[: rest.index("</script>")]), rest[rest.index("</script>") :]
    first, second = content["queries"]["t2i"][:2]
    first["text"], first["results"][0]["words"][:2] = "\u05e9\u05e0\u05d9 (2)!", ["\u05e9\u05e0\u05d9", "2"]
    second["text"] = second["search"] = unicodedata.normalize("NFD", "m\u00e8o \u0111en")
    for result in content["queries"]["i2t"][0]["results"]:
        result["text"] = result["words"][0] = "Rindfleisch" * 20
    (tmp_path / "a.html").write_text(head + tag + json.dumps(content).replace("<", "\\u003c") + end)
    page.open((tmp_path / "a.html").as_uri(), 1280)
    for place in ("#detail h3 bdi", "[data-query=t2i-0] bdi", ".words-row"):
        own = "(e => [getComputedStyle(e).direction, e.getAttribute('lang')])"  # "": maybe not the page's English
        assert page.run(f"{own}(document.querySelector('{place}'))") == ["rtl", ""]
    places = "['0', '1'].map(at => document.querySelector(`[data-word=\"${at}\"]`).getBoundingClientRect().x)"
    assert page.run(places) == sorted(page.run(places), reverse=True)
    page.run("document.querySelector('[data-word=\"0\"]').focus()")
    page.key("ArrowLeft", 37)
    assert page.run("document.activeElement.dataset.word") == "1"
    page.run("(s => { s.value = 'm\u00e8o'; s.dispatchEvent(new Event('input')); })(document.getElementById('search'))")
    assert page.run("[...document.querySelectorAll('.query')].map(q => q.dataset.query)") == ["t2i-1"]
    page.open((tmp_path / "a.html").as_uri() + "#i2t-0/0/w0", 390)
    assert page.run("document.documentElement.scrollWidth") == 390 and page.errors == []


def test_every_picture_has_a_text_and_every_control_a_name(page, report):
    page.open(report + "#i2t-0/0/w0", 1280)
    assert page.run("[...document.images].every(image => image.alt.length > 3)")
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    unnamed = [
        node
        for node in tree
        if node.get("role", {}).get("value") in ("button", "link", "searchbox", "img", "image", "table", "region")
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    levels = page.run("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_small_targets_are_large_enough_for_a_thumb(page, report):
    page.open(report, 390)
    small = page.run(
        "[...document.querySelectorAll('main button, main input')].map(e => [e.outerHTML.slice(0, 80),"
        "e.getBoundingClientRect()]).filter(([, r]) => Math.min(r.width, r.height) < 24).map(([html]) => html)"
    )
    assert small == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_foil_of_the_gallery_opens_with_its_guilty_word_and_where_that_looks(page, report, width):
    page.open(report, width)
    foils = data(page)["foils"]
    assert page.count(".foil") == len(foils) > 5
    at = next(i for i, foil in enumerate(foils) if foil["byGate"] != foil["position"])
    foil, guilty = foils[at], foils[at]["byGate"]
    card = f".foil[href='#foils-{at}']"
    words = foil["results"][1]["words"]
    assert page.text(f"{card} ins") == words[foil["position"]] and page.text(f"{card} b.guilty") == words[guilty]
    assert page.text(f"{card} del") == foil["results"][0]["words"][foil["position"]]
    page.click(card)
    page.wait(f"document.querySelector('[aria-current]')?.dataset.query === 'foils-{at}'")
    assert page.run("location.hash") == f"#foils-{at}/w{guilty}"
    assert page.text(".word[aria-pressed=true] span") == words[guilty]
    assert page.text(".word.changed span") == words[foil["position"]] and page.text(".word.guilty .mark") == "guilty"
    drawn = page.run(
        "Object.fromEntries([...document.querySelectorAll('mask [data-region]')]"
        ".map(r => [r.dataset.region, +r.style.fillOpacity]))"
    )
    weights = foil["results"][1]["wordAttention"][guilty]
    assert drawn == pytest.approx({str(i): weight / max(weights) for i, weight in enumerate(weights)}, abs=0.002)
    assert words[guilty] in page.text(".verdict") and page.text("#detail h3").endswith(foil["kind"])
    page.click("#detail [data-result='0']")  # the caption itself
    assert page.run("location.hash") == f"#foils-{at}/0"
    assert page.text(".word.replaced span") == foil["results"][0]["words"][foil["position"]]
    page.open(f"{report}#foils-{at}/0", width)
    assert page.run("document.querySelector('.result[aria-pressed=true]').dataset.result") == "0"
    assert page.errors == []


def test_foils_are_filtered_by_kind_and_by_who_wins(page, report):
    page.open(report, 1280)
    page.click("[data-direction=foils]")
    foils = data(page)["foils"]
    for name, keep in (("lost", lambda foil: not foil["won"]), ("colour", lambda foil: foil["kind"] == "colour")):
        page.click(f"[data-filter={name}]")
        kept = [foil["key"] for foil in foils if keep(foil)]
        assert 0 < len(kept) < len(foils)
        assert page.run("[...document.querySelectorAll('.query')].map(q => q.dataset.query)") == kept
        assert page.text("#shown") == f"{len(kept)} of {len(foils)} foils"
    page.click("[data-direction=t2i]")  # the filter of the other kind of list goes
    assert page.text("#shown").endswith("queries") and page.count(".query") == len(data(page)["queries"]["t2i"])
    assert page.errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_foil_can_be_read(page, report, theme):
    page.open(report + "#foils-0/w0", 390, theme)
    texts = ".foil ins, .foil del, .foil .rank, .query del, .query ins, .verdict, .word .mark, .legend"
    for selector in texts.split(", "):
        assert contrast(page, selector) >= 4.5, selector
