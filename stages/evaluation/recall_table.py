"""The recall table: the columns, the paper's published rows, and the table as text for a terminal."""

from collections.abc import Mapping

COLUMNS = (
    "i2t_r1", "i2t_r5", "i2t_r10", "i2t_medr", "i2t_meanr",
    "t2i_r1", "t2i_r5", "t2i_r10", "t2i_medr", "t2i_meanr",
    "rsum",
)  # fmt: skip
"""Percent of the queries for r1, r5 and r10; ranks from 1 for medr and meanr; rsum is the sum of the six percents."""

FEW = 50
"""With fewer images, a split is too small to compare models by: one image is more than two points of image to text."""
HEADINGS = ("R@1", "R@5", "R@10", "medR", "meanR") * 2 + ("rsum",)


def _published(*recalls: float) -> dict[str, float]:
    names = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
    return {**dict(zip(names, recalls, strict=True)), "rsum": round(sum(recalls), 1)}


PAPER: dict[str, dict[str, float]] = {
    "Flickr30K, 1K test images": _published(68.1, 89.7, 95.2, 51.5, 77.1, 85.3),
    "COCO 1K, mean of 5 folds": _published(72.3, 94.8, 98.3, 58.5, 87.9, 95.0),
    "COCO 5K": _published(50.1, 82.1, 89.7, 39.0, 68.9, 80.2),
}
"""What the paper reports without an ensemble (Wang et al., ICCV 2019, tables 1 and 2); it has no mean ranks."""


def recall_text(metrics: Mapping[str, Mapping[str, float]], paper: bool = False) -> str:
    """The recall table of `metrics` ({split: {column: value}}) as text; `paper` adds the paper's rows below."""
    rows = [(split, values) for split, values in metrics.items()]
    if paper:
        rows += [(f"paper: {name}", values) for name, values in PAPER.items()]
    width = max(len(name) for name, _ in rows)
    half = 8 * 5
    lines = [
        " " * width + "image to text".center(half) + "text to image".center(half),
        " " * width + "".join(f"{heading:>8}" for heading in HEADINGS),
    ]
    for name, values in rows:
        cells = "".join(f"{values[column]:8.1f}" if column in values else f"{'-':>8}" for column in COLUMNS)
        lines.append(f"{name:<{width}}{cells}")
    lines += [line for name, values in metrics.items() for line in eccv_lines(name, values)]
    return "\n".join(lines)


def coarseness_note(images: int) -> str:
    """A sentence, to follow others, on how coarse the recalls of so few images are; empty if there are enough."""
    if images >= FEW:
        return ""
    return f" {images} images are too few to compare models by: each is {100 / images:.1f} points of a recall."


def eccv_lines(split: str, values: Mapping[str, float]) -> list[str]:
    """Lines with the results of ECCV Caption and CxC on a split, if they were measured."""
    lines = []
    for prefix, title in (("eccv", "ECCV Caption"), ("cxc", "CxC")):
        named = {key.removeprefix(f"{prefix}_"): value for key, value in values.items() if key.startswith(prefix)}
        if named:
            lines.append(f"{split}, {title}: " + ", ".join(f"{key} {value:.1f}" for key, value in named.items()))
    return lines
