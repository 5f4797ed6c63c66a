"""The report page in a real browser: it runs, fits, answers clicks and keys, and asks the network for nothing."""

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from stages.evaluate import evaluate
from stages.params import EvaluateParams, Params, ReportParams
from stages.report import Inputs, write_report

WIDTHS = (1280, 390)


class Page:
    """One tab, driven over Chromium's DevTools protocol."""

    def __init__(self, chromium: str, profile: Path) -> None:
        self._process = subprocess.Popen(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0",
             f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (port.is_file() and port.read_text().count("\n")):
            if time.monotonic() > deadline:
                self._process.kill()
                pytest.fail("chromium did not open its DevTools port within 60 s")
            time.sleep(0.05)
        number, path = port.read_text().split()
        self._socket = connect(f"ws://127.0.0.1:{number}{path}", max_size=None, proxy=None)
        self._last = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are noted."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif event["method"] == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {params['message']}")
            self._socket.send(json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog",
                                          "params": {"accept": True}, "sessionId": self._session}))  # fmt: skip

    def open(self, address: str, width: int = 1280, theme: str = "light") -> None:
        """Load an address in a window of `width` pixels and wait until its script has run."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)
        # Without smooth scrolling nothing moves between looking where an element is and clicking there.
        features = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()])
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        self.errors.clear()
        self.call("Page.navigate", url=address)
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def run(self, script: str) -> Any:
        """The value of a script's expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        deadline = time.monotonic() + 20
        while not self.run(condition):
            assert time.monotonic() < deadline, f"{condition} did not come true: {self.errors}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Press the mouse where the element is, so that what covers it would get the click."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def key(self, name: str, code: int, text: str = "") -> None:
        key = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")


@pytest.fixture(scope="module")
def page(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("chromium")
    tab = Page(chromium, profile)
    yield tab
    tab.close()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def report(make_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a report."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("run")
        patch.chdir(root)
        patch.setenv("CAMP_TRACKING", "off")
        make_run(root)
        inputs = Inputs()
        evaluate(
            EvaluateParams(device="cpu", gate_pairs=40),
            regions=inputs.regions,
            captions=inputs.captions,
            model=inputs.model,
            out=inputs.evaluation,
            metrics=inputs.metrics,
        )
        write_report(Params(report=ReportParams(queries=30)), inputs, Path("report/index.html"))
        yield (root / "report/index.html").as_uri()


def data(page: Page) -> dict[str, Any]:
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


def contrast(page: Page, selector: str) -> float:
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
    for name, keep in (
        ("near", lambda rank: 1 < rank <= 10),
        ("far", lambda rank: rank > 10),
    ):
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
