"""A tab with the page of the photographs, and what is asked of it."""

import re
import time
from typing import Any
from urllib.parse import quote

from tests.search.conftest import Server

SENTENCE = "a man riding a zyzzyva on the street"
WIDTHS = (1280, 390)
READY = "document.documentElement?.dataset.ready === 'true'"


def searched(server: Server, sentence: str = SENTENCE) -> str:
    return f"{server.address}?q={quote(sentence)}"


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


def everything(tab: Any) -> None:
    """Scroll until every picture is listed, after which nothing on the page moves."""
    for _ in range(100):
        tab.run("scrollTo(0, document.documentElement.scrollHeight)")
        if tab.run("document.querySelector('#more') === null"):
            return
        tab.run("new Promise(wake => setTimeout(wake, 60))")
    raise AssertionError(f"{tab.count('#tiles li')} pictures, and more are said to come")
