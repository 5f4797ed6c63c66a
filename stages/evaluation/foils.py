"""Measures how often a caption beats its foil on its own picture, and which word of the foil the model finds wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from camp_model.encoding import encode_images, encode_sentences
from camp_model.foils import balance
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.scoring.collection import ensemble_logits
from camp_model.vocabulary import UNK
from stages.errors import InputError
from stages.evaluation.folds import Fold
from stages.evaluation.tables import FOIL_SCHEMA
from stages.foils.table import Foils
from stages.foils.words import KINDS

AT_ONCE = 32
"""Foils scored in one forward pass, each with all its variants."""
Case = tuple[list[int], list[list[int]]]
"""Positions in a foil; and word ids of the caption, of the foil, and of the foil without each of the positions."""


def choose_foils(foils: Foils, split: Fold, rows: np.ndarray, limit: int) -> list[int]:
    """Draw at most `limit` foils of some captions at random, as equally many of each kind as possible.

    Args:
        rows: int64, the captions' rows in the split's table.
    """
    wanted = set(split.captions.caption_ids[rows].tolist())
    order = np.random.default_rng(0).permutation(len(foils)).tolist()
    drawn_of: Counter[str] = Counter()
    turns = []
    for foil in order:
        if int(foils.captions.caption_ids[foil]) in wanted:
            kind = foils.kinds[foil]
            turns.append((drawn_of[kind], KINDS.index(kind), foil))
            drawn_of[kind] += 1
    return sorted(foil for _, _, foil in sorted(turns)[:limit])


@torch.inference_mode()
def measure_foils(
    models: Sequence[CAMP],
    store: RegionStore,
    split: Fold,
    foils: Foils,
    chosen: Sequence[int],
    *,
    lexicon: Sequence[int],
) -> pa.Table:
    """Score foils and their captions against the captions' own pictures; return a table of FOIL_SCHEMA.

    One of the foil's words that are in the lexicon is held responsible. By score: the word whose replacement by <unk>
    raises the foil's logit the most. By gate: the word with the lowest gate in the first model. Ties go to a word that
    was not changed, so they count against the model.

    Args:
        chosen: rows of `foils`.
        lexicon: ids of the lexicon's words.

    Raises:
        InputError: the lexicon lacks a changed word, or the split lacks a foil's caption.
    """
    row_of = {caption_id: row for row, caption_id in enumerate(split.captions.caption_ids.tolist())}
    known = set(lexicon)
    rows: list[dict[str, Any]] = []
    for start in tqdm(range(0, len(chosen), AT_ONCE), desc=f"foils {split.name}"):
        batch = list(chosen[start : start + AT_ONCE])
        cases = [_case(split, foils, foil, row_of, known) for foil in batch]
        images = [foils.captions.image_ids[foil] for foil in batch]
        at = [store.row_of(image_id) for image_id in images]
        encoded = [encode_images(model, store, at) for model in models]
        of_each = [_variant_logits(model, *regions, cases) for model, regions in zip(models, encoded, strict=True)]
        logits = ensemble_logits(models, of_each).tolist()
        gates = _gates(models[0], *encoded[0], cases)
        for number, (foil, (candidates, variants)) in enumerate(zip(batch, cases, strict=True)):
            (caption, own, *without), logits = logits[: len(variants)], logits[len(variants) :]
            rows.append({
                "caption_id": int(foils.captions.caption_ids[foil]), "image_id": images[number],
                "kind": foils.kinds[foil],
                "caption": split.captions.texts[row_of[int(foils.captions.caption_ids[foil])]],
                "foil": foils.captions.texts[foil], "position": foils.positions[foil], "word": foils.words[foil],
                "foil_word": foils.foil_words[foil], "caption_score": caption, "foil_score": own,
                "guilty_by_score": candidates[int(np.argmax(without))],
                "guilty_by_gate": None if gates is None else candidates[int(np.argmin(gates[number, candidates]))],
                "candidates": len(candidates),
            })  # fmt: skip
    return pa.Table.from_pylist(rows, FOIL_SCHEMA)


def _case(split: Fold, foils: Foils, foil: int, row_of: Mapping[int, int], known: set[int]) -> Case:
    """The positions that may be held responsible; and the caption, the foil, and the foil without each of these."""
    caption_id = int(foils.captions.caption_ids[foil])
    own = foils.captions.batch([foil])[0][0].tolist()
    changed = foils.positions[foil]
    # The changed word comes last, so that ties go to another word.
    candidates = sorted((at for at, word in enumerate(own) if word in known), key=lambda at: (at == changed, at))
    if caption_id not in row_of or changed not in candidates:
        what = f"caption {caption_id}" if caption_id not in row_of else f"the word {foils.foil_words[foil]!r}"
        raise InputError(
            f"{foils.captions.path}: {what}: is not in {split.captions.path.name} or lexicon.json beside it; expected "
            "all three from one run of tokenize_captions"
        )
    without = [[*own[:position], UNK, *own[position + 1 :]] for position in candidates]
    return candidates, [split.captions.batch([row_of[caption_id]])[0][0].tolist(), own, *without]


def _variant_logits(model: CAMP, regions: Tensor, region_mask: Tensor, cases: Sequence[Case]) -> Tensor:
    """Logits of all variants of all cases with the case's image, one after the other."""
    texts = [variant for _, variants in cases for variant in variants]
    image = [number for number, (_, variants) in enumerate(cases) for _ in variants]
    return model.score_pairs(regions[image], region_mask[image], *encode_sentences(model, texts)).float().cpu()


def _gates(model: CAMP, regions: Tensor, region_mask: Tensor, cases: Sequence[Case]) -> np.ndarray | None:
    """The word gates [P, N] of the foils with their images; None if the model has no word gates."""
    if model.config.no_gates_reason():
        return None
    foils = encode_sentences(model, [variants[1] for _, variants in cases])
    gates = model.inspect_pairs(regions, region_mask, *foils).word_gates
    return None if gates is None else gates.float().cpu().numpy()


def foil_metrics(table: pa.Table) -> dict[str, dict[str, float | int | None]]:
    """Metrics for each kind of foil, and for all.

    foils: their number. true_first: percent whose caption scores higher. true_first_balanced: the same, weighted by
    `camp_model.foils.balance`, so that a model that reads only the two words gets 50 %; None if no two words replace
    each other. foils_balanced: the number of equally weighted foils that would be as informative (Kish's effective
    sample size). guilty_by_score, guilty_by_gate: percent whose changed word is held responsible (None if words have no
    gates). chance: the same for a guess among the candidates.
    """
    columns = table.to_pydict()
    kinds, position = np.array(columns["kind"], dtype=object), np.array(columns["position"], dtype=int)
    truths = np.array(columns["foil_score"], dtype=float) < np.array(columns["caption_score"], dtype=float)
    by_score = np.array(columns["guilty_by_score"], dtype=int) == position
    gate = np.array(columns["guilty_by_gate"], dtype=float)  # NaN where null
    by_gate = np.where(np.isnan(gate), np.nan, gate == position)
    chance = 1 / np.array(columns["candidates"], dtype=float)
    weights = balance(columns["word"], columns["foil_word"])
    metrics: dict[str, dict[str, float | int | None]] = {}
    for kind in (*KINDS, "all"):
        of_kind = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        if of_kind.any():
            gated, weight = by_gate[of_kind], float(weights[of_kind].sum())
            balanced = 100 * float((weights * truths)[of_kind].sum()) / weight if weight else None
            metrics[kind] = {
                "foils": int(of_kind.sum()),
                "true_first": 100 * float(truths[of_kind].mean()),
                "true_first_balanced": balanced,
                "foils_balanced": round(weight**2 / float((weights[of_kind] ** 2).sum())) if weight else 0,
                "guilty_by_score": 100 * float(by_score[of_kind].mean()),
                "guilty_by_gate": None if np.isnan(gated).any() else 100 * float(gated.mean()),
                "chance": 100 * float(chance[of_kind].mean()),
            }
    return metrics
