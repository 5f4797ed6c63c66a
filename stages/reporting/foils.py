"""The foils that the report shows: which ones, how both captions were scored, and which word is held responsible."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.errors import InputError
from stages.foils.words import KINDS
from stages.params.report import ReportParams
from stages.reporting.queries import Inspector


def caption_wins(row: Mapping[str, Any]) -> bool:
    """Whether the caption scores higher than its foil."""
    return bool(row["caption_score"] > row["foil_score"])


def shown_foils(rows: Sequence[dict[str, Any]], params: ReportParams) -> list[dict[str, Any]]:
    """Choose, of each kind, `params.foils` drawn at random, and then the worst of the rest.

    The worst are those that score highest above their captions. The draw depends only on `params.seed`.
    """
    chosen = []
    for number, kind in enumerate(KINDS):
        of_kind = [row for row in rows if row["kind"] == kind]
        generator = np.random.default_rng([params.seed, 2, number])
        drawn = sorted(generator.choice(len(of_kind), min(params.foils, len(of_kind)), replace=False).tolist())
        lost = [i for i, row in enumerate(of_kind) if not caption_wins(row) and i not in drawn]
        lost.sort(key=lambda i: (of_kind[i]["caption_score"] - of_kind[i]["foil_score"], of_kind[i]["caption_id"]))
        chosen += [of_kind[i] for i in (*drawn, *lost[: (params.foils + 1) // 2])]
    return chosen


def foil_entry(key: str, row: Mapping[str, Any], inspector: Inspector) -> dict[str, Any]:
    """A foil for the page's interactive part, in the form of a query whose results are the caption and the foil.

    `position` is the changed word's; `byScore` and `byGate` are those of the words held responsible, all in the foil.

    Raises:
        InputError: the caption is not in the captions: it is from another evaluation.
    """
    try:
        at = inspector.row_of[str(row["caption_id"])]
        tokens, lengths = inspector.captions.batch([at])
        caption = tokens[0, : int(lengths[0])].tolist()
        foil = list(caption)
        (foil[row["position"]],) = inspector.vocabulary.encode([row["foil_word"]])
        texts = (row["caption"], row["foil"])
        details = inspector.explain([row["image_id"]] * 2, [caption, foil], texts)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"data/evaluation: foil of caption {row['caption_id']}: {error}; expected foils of the captions here"
        ) from None
    scores = (row["caption_score"], row["foil_score"])
    return {
        "key": key,
        "id": str(row["caption_id"]),
        "image": row["image_id"],
        "text": row["foil"],
        "search": f"{row['image_id']} {row['caption']} {row['foil']}".lower(),
        "kind": row["kind"],
        "won": caption_wins(row),
        "position": row["position"],
        "byScore": row["guilty_by_score"],
        "byGate": row["guilty_by_gate"],
        "results": [
            {
                "image": row["image_id"], "text": text, "at": None, "right": not number, "beyond": False,
                "score": round(score, 3), **{name: value for name, value in detail.items() if name != "logit"},
            }
            for number, (text, score, detail) in enumerate(zip(texts, scores, details, strict=True))
        ],
    }  # fmt: skip


def gallery(entries: Sequence[Mapping[str, Any]], alts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The cards of the gallery: captions as (word, class), with the changed word and the guilty one marked."""
    cards = []
    for entry in entries:
        caption, foil = entry["results"]
        guilty = entry["byScore"] if entry["byGate"] is None else entry["byGate"]
        marks = {guilty: "guilty", entry["position"]: "changed"}
        if guilty == entry["position"]:
            marks[guilty] = "changed guilty"
        cards.append(
            {
                "key": entry["key"],
                "kind": entry["kind"],
                "won": entry["won"],
                "image": entry["image"],
                "alt": alts[entry["image"]],
                "caption": [(word, "own" if i == entry["position"] else "") for i, word in enumerate(caption["words"])],
                "foil": [(word, marks.get(i, "")) for i, word in enumerate(foil["words"])],
                "caption_score": f"{caption['score']:.1f}",
                "foil_score": f"{foil['score']:.1f}",
            }
        )
    return cards


def foil_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the foil table, from one split of metrics/foils.json."""
    columns = ("true_first", "true_first_balanced", "guilty_by_score", "guilty_by_gate", "chance")
    return [
        {
            "name": kind,
            "cells": [
                f"{values['foils']:,}",
                *("\N{EN DASH}" if values.get(c) is None else f"{values[c]:.1f}" for c in columns),
            ],
        }
        for kind, values in metrics.items()
    ]
