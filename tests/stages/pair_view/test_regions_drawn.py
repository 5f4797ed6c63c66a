"""Which regions a pair's drawing singles out, in a real browser."""

import json

import pytest

from stages.pair_view.assets import pair_view_script, pair_view_style

BOXES = [[10 * i, 0, 10 * i + 10, 100] for i in range(8)]
WEIGHTS = [10, 20, 30, 40, 50, 60, 70, 720]
GATES = "Gate of each region"
POOLING = "Weight of each region in the match"


@pytest.mark.parametrize(
    ("pair", "heading", "first", "lines"),
    [
        ({"regionGates": [900, 1, 2, 3, 4, 5, 6, 7], "regionPooling": WEIGHTS}, f"{GATES}, strongest 6", 0, 4),
        # Gates that are open alike single out nothing: the weights do.
        ({"regionGates": [1000] * 8, "regionPooling": WEIGHTS}, f"{POOLING} (every gate is 1.00), strongest 6", 7, 4),
        (
            {"regionGates": [300] + [997] * 7, "regionPooling": WEIGHTS},
            f"{POOLING} (7 gates are 1.00), strongest 6", 7, 4,
        ),
        # That all are closed is the answer, and without weights there is nothing else to show.
        ({"regionGates": [1] * 8, "regionPooling": WEIGHTS}, f"{GATES}: 0 of each", 0, 0),
        ({"regionGates": [1000] * 8}, f"{GATES}: 1.00 of each", 0, 0),
        ({"regionPooling": [125] * 8}, f"{POOLING}: 13 % of each", 0, 0),
        ({}, "This model gives regions no weights", 0, 0),
    ],
)  # fmt: skip
def test_strongest_regions_are_stronger_than_others(page, tmp_path, pair, heading, first, lines):
    image = {"uri": "", "alt": "", "w": 80, "h": 100, "boxes": BOXES, "labels": [f"region {i}" for i in range(8)]}
    view = {"pair": {"words": [], "unknown": [], **pair}, "image": image, "word": None, "region": None}
    (tmp_path / "page.html").write_text(
        f"<!doctype html><style>{pair_view_style()}</style><body></body><script>{pair_view_script()}\n"
        f"const view = {json.dumps(view)}; document.body.append(drawStage(view), drawRegions(view));"
        "document.documentElement.dataset.ready = true;</script>"
    )
    page.open((tmp_path / "page.html").as_uri(), 1280)
    assert page.errors == []
    assert page.text(".label") == heading
    assert page.run("document.querySelector('.region').dataset.region") == str(first)
    assert page.count("rect.strong") == page.count("rect.halo") == lines
