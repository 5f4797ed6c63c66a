"""Mean gates of matching pairs, of random other pairs, and of the hardest other pairs.

Training measures them on the val split after each epoch; evaluation measures them on the splits that it evaluates.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from camp_model.answers import RightAnswers
from camp_model.captions import CaptionTable
from camp_model.encoders import length_mask
from camp_model.encoding import encode_images
from camp_model.model import CAMP
from camp_model.scoring.collection import Collection

KINDS = ("positive", "negative", "hardest")
"""Kinds of pairs: the image is the caption's own, a random wrong one, or the wrong one that scores highest."""
SIDES = {"words": "gate", "content": "gate_content", "regions": "region_gate"}
"""The gates that a pair's mean is taken over -> prefix of the names of metrics. Content words name an object, a colour,
a size or a texture."""
STATISTICS = (*(f"{kind}_mean" for kind in KINDS), "auc", "hardest_auc")
NAMES = tuple(f"{prefix}_{statistic}" for prefix in SIDES.values() for statistic in STATISTICS)
"""Names of the metrics of `summarise`."""
BINS = 20
"""Number of bins of a histogram of gates from 0 to 1."""
COUNTS = tuple(f"{side}_{kind}" for side in SIDES for kind in KINDS)
"""Names of the histograms."""
AT_ONCE = 128
"""Pairs in one forward pass."""
Encode = Callable[[np.ndarray], tuple[Tensor, Tensor]]
"""Positions [P] of images -> their encoded regions [P, R, d] and mask [P, R]."""


def random_negatives(
    own: np.ndarray, images: int, generator: np.random.Generator, answers: RightAnswers, captions: np.ndarray
) -> np.ndarray:
    """Draw a random wrong image for each caption.

    Right images are redrawn, at most a hundred times: a caption for which all images are right gets one of them.

    Args:
        own: int64 [P], position of each caption's own image.
        images: number of images to draw from.
        generator: draws.
        answers: the right answers of the collection.
        captions: int64 [P], positions of the captions in the collection.

    Returns:
        int64 [P], positions of images.

    Raises:
        ValueError: there is only one image.
    """
    if images < 2:
        raise ValueError(f"random negatives: {images} image; expected two or more")
    negatives = (own + generator.integers(1, images, len(own))) % images
    for _ in range(100):
        redraw = answers.is_right(torch.from_numpy(negatives), torch.from_numpy(captions)).numpy()
        if not redraw.any():
            break
        negatives[redraw] = (own[redraw] + generator.integers(1, images, int(redraw.sum()))) % images
    return negatives


@torch.inference_mode()
def mean_gates(
    model: CAMP, encode: Encode, captions: CaptionTable, *, rows: np.ndarray, images: np.ndarray, content: Sequence[int]
) -> dict[str, np.ndarray]:
    """Measure the mean gates of P pairs.

    Args:
        encode: encodes images.
        rows: int64 [P], rows of `captions`.
        images: int64 [P], positions of images, for `encode`.
        content: ids of the content words.

    Returns:
        For each of SIDES, float64 [P]; NaN if the model has no such gates or the caption no content word.
    """
    means: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
    for start in range(0, len(rows), AT_ONCE):
        chunk = slice(start, start + AT_ONCE)
        regions, region_mask = encode(images[chunk])
        tokens, lengths = captions.batch(rows[chunk])
        tokens = tokens.to(regions.device)
        word_mask = length_mask(lengths.to(regions.device), tokens.shape[1])
        words = model.encode_captions(tokens, lengths)
        details = model.inspect_pairs(regions, region_mask, words, word_mask)
        content_mask = word_mask & torch.isin(tokens, torch.tensor(content, dtype=torch.int64, device=tokens.device))
        for side, gates, mask in (
            ("words", details.word_gates, word_mask),
            ("content", details.word_gates, content_mask),
            ("regions", details.region_gates, region_mask),
        ):
            means[side].append(_means(gates, mask))
    return {side: np.concatenate(values) if values else np.zeros(0) for side, values in means.items()}


def _means(gates: Tensor | None, mask: Tensor) -> np.ndarray:
    """Means over what is real: [P, L], bool [P, L] -> float64 [P]; NaN without gates, or if nothing is real."""
    if gates is None:
        return np.full(len(mask), np.nan)
    return ((gates.float() * mask).sum(1) / mask.sum(1)).cpu().numpy().astype(float)  # 0 / 0 is NaN


def gates_by_kind(
    model: CAMP,
    collection: Collection,
    chosen: np.ndarray,
    hardest: np.ndarray,
    generator: np.random.Generator,
    content: Sequence[int],
) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Measure the mean gates of some captions of a collection, with one image of each of KINDS.

    Args:
        chosen: int64 [P], positions of the captions in the collection.
        hardest: int64 [C], position of the wrong image that scores highest with each caption of the collection.
        generator: draws the random wrong images.
        content: ids of the content words.

    Returns:
        For each kind: positions [P] of the images, and the `mean_gates` of the pairs.

    Raises:
        ValueError: the collection has only one image.
    """
    own = collection.caption_image[chosen]
    answers = RightAnswers(torch.from_numpy(collection.caption_image), torch.from_numpy(collection.caption_text))
    random = random_negatives(own, len(collection.image_rows), generator, answers, chosen)
    rows = collection.caption_rows[chosen]

    def encode(positions: np.ndarray) -> tuple[Tensor, Tensor]:
        return encode_images(model, collection.regions, collection.image_rows[positions])

    return {
        kind: (images, mean_gates(model, encode, collection.captions, rows=rows, images=images, content=content))
        for kind, images in zip(KINDS, (own, random, hardest[chosen]), strict=True)
    }


def summarise(gates: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float | None]:
    """Summarise the mean gates of pairs.

    Args:
        gates: gates[kind][side] is float [P]; NaN counts as no gate.

    Returns:
        The metrics of NAMES: means, and areas under the curve of matching against random (`..._auc`) and against the
        hardest pairs (`..._hardest_auc`). None for a side without gates.
    """
    numbers: dict[str, float | None] = {}
    for side, prefix in SIDES.items():
        known = {kind: sides[side][~np.isnan(sides[side])] for kind, sides in gates.items()}
        some = all(map(len, known.values()))
        numbers |= {f"{prefix}_{kind}_mean": float(values.mean()) if some else None for kind, values in known.items()}
        for name, kind in (("auc", "negative"), ("hardest_auc", "hardest")):
            numbers[f"{prefix}_{name}"] = area_under_curve(known["positive"], known[kind]) if some else None
    return numbers


def histograms(gates: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, list[int]]:
    """Count the pairs with a mean gate in each bin: gates[kind][side], float [P] -> by COUNTS, without empty ones."""
    counted = {}
    for side in SIDES:
        for kind, sides in gates.items():
            known = sides[side][~np.isnan(sides[side])]
            # A mean of ones can be a rounding error above 1.
            counts, _ = np.histogram(np.clip(known, 0, 1), bins=BINS, range=(0, 1))
            if counts.any():
                counted[f"{side}_{kind}"] = counts.tolist()
    return counted


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a random value of `positive` is above one of `negative`; equal values count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))
