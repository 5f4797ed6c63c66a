"""The script and the style that draw a pair, for pages that embed or serve them."""

from pathlib import Path

HERE = Path(__file__).parent


def pair_view_script() -> str:
    """Functions that draw a pair; a page's own script calls them."""
    return (HERE / "pair_view.js").read_text(encoding="utf-8")


def pair_view_style() -> str:
    """The colours and fonts of all pages, then the style of what pair_view.js draws."""
    return "".join((HERE / name).read_text(encoding="utf-8") for name in ("theme.css", "pair_view.css"))
