"""The report's page: tables, charts and the data of its interactive part, rendered as one HTML text."""

import base64
import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from camp_model.gates import SIDES
from stages.charts.gates import GATE_KINDS, GATE_SIDES, gate_epochs, gate_histograms
from stages.charts.lines import Line, in_buckets, line_chart
from stages.errors import InputError
from stages.evaluation.recall_table import COLUMNS, PAPER
from stages.pair_view.assets import pair_view_script, pair_view_style

HERE = Path(__file__).parent
PROTOCOLS = {
    "full": "",
    "coco_1k": "mean of five folds of 1,000 images",
    "coco_5k": "the first 5,000 images",
    "coco": "the first 5,000 images",
}
OTHER_GATES = {"open": "all gates held open", "another": "the gates of another pair in every pair"}


def render(context: Mapping[str, Any]) -> str:
    """Render the page's HTML. Every value is escaped, and only the script whose hash is given here may run."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own = "".join((HERE / name).read_text(encoding="utf-8") for name in ("wording.js", "page.js"))
    script = pair_view_script() + own
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("page.html.jinja").render(
        **context,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        css=Markup(pair_view_style() + (HERE / "page.css").read_text(encoding="utf-8")),
    )


def number(value: float | None, digits: int = 1) -> str:
    """Format a number for a table cell; a dash for None."""
    return "\N{EN DASH}" if value is None else f"{value:,.{digits}f}"


def recall_rows(retrieval: Mapping[str, Mapping[str, float]], notes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the recall table: the measured splits, then the paper's."""
    further = {name: PROTOCOLS["coco_1k"] for name in retrieval if name.endswith("_coco_1k")}
    measured = [(split, notes.get(split, further.get(split, "")), values, False) for split, values in retrieval.items()]
    published = [(name, "paper", values, True) for name, values in PAPER.items()]
    return [
        {"name": name, "note": note, "cells": [number(values.get(column)) for column in COLUMNS], "paper": paper}
        for name, note, values, paper in (*measured, *published)
    ]


def headline(recall: Mapping[str, float], gates: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few figures at the top of the page."""
    figures = [
        {"label": "rsum", "value": number(recall["rsum"]), "unit": "of 600", "note": "the six recalls added"},
        {"label": "Image → text, R@1", "value": number(recall["i2t_r1"]), "unit": "%", "note": ""},
        {"label": "Text → image, R@1", "value": number(recall["t2i_r1"]), "unit": "%", "note": ""},
    ]
    side = next((side for side in ("", "region_") if gates.get(f"{side}gate_auc") is not None), None)
    if side is not None:
        positive, negative = gates[f"{side}gate_positive_mean"], gates[f"{side}gate_negative_mean"]
        figures.append(
            {
                "label": f"{'Region' if side else 'Word'} gate, match / mismatch",
                "value": f"{positive:.2f} / {negative:.2f}",
                "unit": "",
                "note": f"it separates matches from mismatches with AUC {gates[f'{side}gate_auc']:.3f}",
            }
        )
    return figures


def read_curve(path: Path) -> dict[str, list[float]]:
    """Read the non-empty columns of a curve's CSV; a row with an empty cell in one of them is left out.

    Raises:
        InputError: the file cannot be read or holds something other than numbers.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
        rows = [row for row in rows if all(row[name] for name in names)]
        return {name: [float(row[name]) for row in rows] for name in names}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a curve of the training") from None
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; expected a table of numbers") from None


def charts(loss: Mapping[str, list[float]], recall: Mapping[str, list[float]], best: Any) -> list[dict[str, Any]]:
    """Charts of the loss by step, of validation recall by epoch, and of mean gates by epoch if the model has gates."""
    drawn = []
    if loss.get("loss"):
        line = in_buckets("loss", loss["step"], loss["loss"])
        svg = line_chart([line], "Training loss by step", "optimizer step")
        drawn.append(
            {"title": "Training loss", "svg": svg,
             "text": "Each optimizer step." if len(line.xs) == len(loss["loss"]) else
             f"Mean of {len(line.xs)} stretches of steps; the band spans the lowest and highest of each."}
        )  # fmt: skip
    epochs = recall.get("epoch", [])
    mark = (float(best), "kept") if isinstance(best, int | float) else None
    if epochs:
        lines = [Line("image → text", epochs, recall["i2t_r1"]), Line("text → image", epochs, recall["t2i_r1"]),
                 Line("mean of six", epochs, [value / 6 for value in recall["rsum"]])]  # fmt: skip
        svg = line_chart(lines, "Validation recall by epoch", "epoch", (0, 100), mark)
        drawn.append(
            {"title": "Validation recall, %", "svg": svg,
             "text": "R@1 each way and the mean of the six recalls; the epoch with the best mean is kept."}
        )  # fmt: skip
    lines = [Line(name, epochs, recall[column]) for name, column in
             (("matching", "gate_positive_mean"), ("random", "gate_negative_mean")) if recall.get(column)]  # fmt: skip
    if lines:
        svg = line_chart(lines, "Mean word gate by epoch", "epoch", (0, 1), mark)
        drawn.append({"title": "Validation gates", "svg": svg, "text": "Mean word gate of matching and random pairs."})
    return drawn


def gate_context(
    gates: Mapping[str, Any], pairs: Mapping[str, Sequence[Any]], by_epoch: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The content of the gates' section.

    Args:
        gates: of metrics/gates.json.
        pairs: columns of the table of pairs.
        by_epoch: columns of plots/val_gates.csv.
    """
    sides = {side: prefix for side, prefix in SIDES.items() if gates.get(f"{prefix}_auc") is not None}
    if not sides:
        reason = f"This model has no gates to show: {gates.get('reason', 'none were measured')}."
        return {"gate_reason": reason, "gate_rows": [], "gate_columns": [], "gate_histograms": [], "gate_epochs": []}
    means = [(title, f"{kind}_mean") for kind, title in GATE_KINDS.items()]
    separations = [("AUC, match against random", "auc"), ("AUC, match against hardest", "hardest_auc")]
    return {
        "gate_reason": "",
        "gate_rows": [
            {"name": title, "cells": [number(gates[f"{prefix}_{key}"], 3) for prefix in sides.values()]}
            for title, key in (*means, *separations)
        ],
        "gate_columns": [GATE_SIDES[side] for side in sides],
        "gate_histograms": [
            {"title": GATE_SIDES[side].capitalize(), "svg": svg} for side, svg in gate_histograms(pairs).items()
        ],
        "gate_epochs": [
            {"title": f"{GATE_SIDES[side].capitalize()}, by epoch", "svg": svg}
            for side, svg in gate_epochs(by_epoch).items()
        ],
    }


def failures(queries: Mapping[str, Sequence[Mapping[str, Any]]], alts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The worst queries in each direction, from the interactive part's data; `alts` describes the images."""
    sides = []
    for direction, title in (("t2i", "Text → image"), ("i2t", "Image → text")):
        worst = sorted((query for query in queries[direction] if query["worst"]), key=lambda query: -query["rank"])
        items = []
        for query in worst:
            first = query["results"][0]
            right = next(result for result in query["results"] if result["right"])
            item: dict[str, Any] = {"key": query["key"], "rank": query["rank"], "picture": query["image"]}
            if direction == "t2i":
                item |= {"text": query["text"], "first": first["image"], "right": right["image"],
                         "first_alt": alts[first["image"]], "right_alt": alts[right["image"]]}  # fmt: skip
            else:
                item |= {"alt": alts[query["image"]], "first": first["text"], "right": right["text"]}
            items.append(item)
        sides.append({"title": title, "queries": items})
    return sides


def context_note(source: str) -> str:
    """What readers must know before they compare with the paper's rows."""
    if source == "scenes":
        return "on photographs with human captions: another task than the drawn scenes above, not a comparison"
    return "comparable only where images, split and protocol are the paper's"


def image_count(metadata: Mapping[bytes, bytes]) -> int:
    """Number of images of a split, from the metadata of its evaluation."""
    return int(metadata.get(b"camp.images", b"0"))


def is_as_trained(metadata: Mapping[bytes, bytes]) -> bool:
    """Whether an evaluation used only the trained model, with its own gates; from the evaluation's metadata."""
    return metadata.get(b"camp.models", b"1") == b"1" and metadata.get(b"camp.gates", b"").decode() not in OTHER_GATES


def protocol_note(metadata: Mapping[bytes, bytes]) -> str:
    """How a split was measured, from the metadata of its evaluation."""
    captions = int(metadata.get(b"camp.captions", b"0"))
    parts = [
        f"{image_count(metadata):,} images, {captions:,} captions",
        PROTOCOLS.get(metadata.get(b"camp.protocol", b"").decode(), ""),
    ]
    if equal := int(metadata.get(b"camp.equal_captions", b"0")):
        parts.append(f"{equal:,} captions have the text of another image's, and are right for it too")
    # An opened pair is explained anew, by the trained model alone.
    if int(metadata.get(b"camp.models", b"1")) > 1:
        parts.append(f"ensemble of {int(metadata[b'camp.models'])}; what an opened pair shows is the first's")
    if applied := OTHER_GATES.get(metadata.get(b"camp.gates", b"").decode()):
        parts.append(f"ranked with {applied}; what an opened pair shows is with gates as trained")
    return "; ".join(part for part in parts if part)
