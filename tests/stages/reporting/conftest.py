"""A small run, evaluated, and its report page as a parser reads it."""

import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.evaluate import evaluate
from stages.params.evaluate import EvaluateParams
from stages.params.pipeline import Params
from stages.params.report import ReportParams
from stages.report import Inputs, write_report

INPUTS = Inputs()
EVALUATE = EvaluateParams(device="cpu", gate_pairs=40)


class Page(HTMLParser):
    """What a browser would parse out of the page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._within: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = (tag, dict(attrs))

    def handle_endtag(self, tag):
        self._within = None

    def handle_data(self, data):
        if self._within and self._within[0] == "script":
            self.scripts.append((self._within[1], data))
        elif not self._within or self._within[0] != "style":
            self.text += data

    @property
    def data(self) -> dict:
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))


def finished(make_run, root, monkeypatch, **switches):
    """A small run, evaluated; the working directory is its root."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("CAMP_TRACKING", "off")
    small = make_run(root, **switches)
    evaluate(
        EVALUATE, regions=INPUTS.regions, captions=INPUTS.captions, model=INPUTS.model, out=INPUTS.evaluation,
        metrics=INPUTS.metrics,
    )  # fmt: skip
    return small


@pytest.fixture
def small(make_run, tmp_path, monkeypatch):
    return finished(make_run, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def report(make_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a report."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("run")
        finished(make_run, root, patch)
        write_report(Params(report=ReportParams(queries=30)), INPUTS, Path("report/index.html"))
        yield (root / "report/index.html").as_uri()


def draw(**report) -> Page:
    write_report(Params(report=ReportParams(**report)), INPUTS, Path("report/index.html"))
    return Page(Path("report/index.html").read_text(encoding="utf-8"))
