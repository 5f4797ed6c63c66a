"""Gates, attention and word effects for pairs of an image and a sentence, in the form that pair_view.js draws."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camp_model.encoding import encode_sentences
from camp_model.model import CAMP
from camp_model.out_of_vocabulary import FIRST_OOV_ID
from camp_model.regions import RegionStore
from camp_model.vocabulary import UNK, Vocabulary


@torch.inference_mode()
def explain_pairs(
    model: CAMP,
    vocabulary: Vocabulary,
    features: np.ndarray,
    mask: np.ndarray,
    ids: Sequence[Sequence[int]],
    texts: Sequence[str],
) -> list[dict[str, Any]]:
    """Explain the scores of aligned pairs of images and captions: the logits, and the data that pair_view.js draws.

    Args:
        model: in eval mode, on the CPU.
        features: [P, R, region_dim].
        mask: bool [P, R], True at regions.
        ids: word ids of each caption.
        texts: each caption as written.

    Returns:
        For each pair: logit, words, unknown (positions of words that the model does not know), spelt (positions of
        words outside its vocabulary that it reads by their spelling); wordGates, regionGates, wordAttention,
        regionAttention, wordPooling and regionPooling in thousandths, None if the model has none.
    """
    region_mask = torch.from_numpy(mask)
    regions = model.encode_regions(torch.from_numpy(features).float(), region_mask)
    pairs = model.inspect_pairs(regions, region_mask, *encode_sentences(model, ids))
    details = []
    for i, (caption, text) in enumerate(zip(ids, texts, strict=True)):
        n, r = len(caption), int(mask[i].sum())
        details.append({
            "logit": float(pairs.logits[i]),
            **written_words(vocabulary, text, caption),
            "unknown": [at for at, unread in enumerate(model.caption_encoder.unread(caption)) if unread],
            "wordGates": _per_mille(pairs.word_gates, i, n),
            "regionGates": _per_mille(pairs.region_gates, i, r),
            "wordAttention": _per_mille(pairs.word_attention, i, n, r),
            "regionAttention": _per_mille(pairs.region_attention, i, r, n),
            "wordPooling": _per_mille(pairs.word_pooling, i, n),
            "regionPooling": _per_mille(pairs.region_pooling, i, r),
        })  # fmt: skip
    return details


@torch.inference_mode()
def word_effects(model: CAMP, features: np.ndarray, mask: np.ndarray, ids: Sequence[int]) -> list[float | None]:
    """The effect of each word of a caption on its logit with one image: the logit minus that with <unk> in its place.

    A negative effect counts against the image. Words that the model does not know have no measurable effect: None.

    Args:
        model: in eval mode, on the CPU.
        features: [R, region_dim].
        mask: bool [R], True at regions.
        ids: the caption's word ids.
    """
    unread = model.caption_encoder.unread(ids)
    known = [position for position, token in enumerate(ids) if token > UNK and not unread[position]]
    without_one = [[*ids[:position], UNK, *ids[position + 1 :]] for position in known]
    region_mask = torch.from_numpy(mask)[None]
    regions = model.encode_regions(torch.from_numpy(features).float()[None], region_mask)
    logits = model.score_matrix(regions, region_mask, *encode_sentences(model, [ids, *without_one]))[0].tolist()
    effects: list[float | None] = [None] * len(ids)
    for position, without in zip(known, logits[1:], strict=True):
        effects[position] = logits[0] - without
    return effects


def written_words(vocabulary: Vocabulary, text: str, ids: Sequence[int]) -> dict[str, Any]:
    """The words as the model reads them, unknown ones as they are written; and those outside the vocabulary."""
    words = vocabulary.decode(token if token < len(vocabulary) else UNK for token in ids)
    written = iter(vocabulary.tokenize(text))
    for i, token in enumerate(ids):
        if token >= UNK:
            words[i] = next(written, words[i])
    return {"words": words, "spelt": [i for i, token in enumerate(ids) if token >= FIRST_OOV_ID]}


def _per_mille(values: Tensor | None, index: int, *shape: int) -> list[Any] | None:
    """Shares in whole thousandths, without padding: a third of the size of decimals."""
    if values is None:
        return None
    real = values[index][tuple(slice(0, size) for size in shape)]
    rounded: list[Any] = (real.double() * 1000).round().long().tolist()
    return rounded


def region_labels(store: RegionStore, row: int) -> list[str]:
    """The detector's name for each region of an image: `striped circle`, or `region 3` if it has none."""

    def name(names: Sequence[str], index: int) -> str:
        return names[index] if 0 <= index < len(names) else ""

    pairs: Iterable[tuple[Any, Any]] = zip(store.attributes(row), store.classes(row), strict=True)
    labels = [
        f"{name(store.attribute_names, int(attribute))} {name(store.categories, int(category))}".strip()
        for attribute, category in pairs
    ]
    return [label or f"region {number}" for number, label in enumerate(labels, start=1)]
