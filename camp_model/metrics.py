"""Retrieval metrics: pure functions of scores and an explicit caption-to-image index.

A tie counts against the model: the rank of a query is 1 + the number of WRONG candidates that score at least as high
as the best right one. Right candidates never push each other down, so an image with the same caption twice can still
be first. Images without a caption are candidates, but not queries.

`caption_text` [C] has equal numbers for captions of the same text (`CaptionTable.wording_index`); without it, all texts
differ. Captions of the same text share their right images (`camp_model.answers`): a caption of another image is not
wrong for an image that has a caption of the same text, and the rank of a caption is that of the best of its right
images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camp_model.answers import RightAnswers

Array = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]]

RECALL_AT = (1, 5, 10)
"""K of recall@K."""
AT_ONCE = 1024
"""Queries ranked at a time."""


def _checked(
    scores: Tensor | Array, caption_image: Tensor | Array
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.int64]]:
    if isinstance(scores, Tensor):
        # numpy has no bfloat16.
        scores = (scores.float() if scores.dtype.itemsize < 4 else scores).detach().cpu().numpy()
    values: npt.NDArray[Any] = np.asarray(scores)
    stated = np.asarray(caption_image.cpu() if isinstance(caption_image, Tensor) else caption_image)
    index = stated.astype(np.int64)
    if not np.array_equal(index, stated):
        raise ValueError("caption_image: holds numbers that are not positions of images; expected whole ones")
    if values.ndim != 2 or index.shape != (values.shape[1],):
        raise ValueError(f"scores {values.shape} and caption_image {index.shape}; expected [I, C] and [C]")
    if len(index) and not (index.min() >= 0 and index.max() < values.shape[0]):
        raise ValueError(f"caption_image: not all between 0 and {values.shape[0] - 1}")
    if np.isnan(values).any():
        raise ValueError("scores: hold NaN")
    return values, index


def i2t_ranks(
    scores: Tensor | Array, caption_image: Tensor | Array, caption_text: Tensor | Array | None = None
) -> npt.NDArray[np.int64]:
    """Rank of each image's best own caption among all captions; images without a caption are left out.

    Args:
        scores: [I, C].
        caption_image: [C], position of the image that each caption belongs to.
        caption_text: [C], as in the module's docstring.

    Returns:
        int64, one rank from 1 for each image with a caption, in the order of images.

    Raises:
        ValueError: as `retrieval_metrics`.
    """
    values, index = _checked(scores, caption_image)
    answers = _answers(index, caption_text)
    ranks = []
    queries = np.unique(index)
    for start in range(0, len(queries), AT_ONCE):
        rows = queries[start : start + AT_ONCE, None]
        some = values[rows[:, 0]]  # [i, C]
        best = np.where(index == rows, some, -np.inf).max(axis=1, keepdims=True)  # [i, 1]
        wrong = ~answers.is_right(torch.from_numpy(rows), torch.arange(len(index))).numpy()  # [i, C]
        ranks.append(1 + ((some >= best) & wrong).sum(axis=1))
    return np.concatenate(ranks) if ranks else np.zeros(0, dtype=np.int64)


def t2i_ranks(
    scores: Tensor | Array, caption_image: Tensor | Array, caption_text: Tensor | Array | None = None
) -> npt.NDArray[np.int64]:
    """Rank from 1 of each caption's best right image among all images: [I, C], [C] -> int64 [C]; as `i2t_ranks`."""
    values, index = _checked(scores, caption_image)
    answers = _answers(index, caption_text)
    ranks = np.zeros(len(index), dtype=np.int64)
    images = torch.arange(len(values))[:, None]
    for start in range(0, len(index), AT_ONCE):
        columns = slice(start, start + AT_ONCE)
        right = answers.is_right(images, torch.arange(len(index))[columns]).numpy()
        best = np.where(right, values[:, columns], -np.inf).max(axis=0)
        ranks[columns] = 1 + ((values[:, columns] >= best) & ~right).sum(axis=0)
    return ranks


def _answers(index: npt.NDArray[np.int64], caption_text: Tensor | Array | None) -> RightAnswers:
    if caption_text is None:
        return RightAnswers(torch.from_numpy(index))
    text = torch.as_tensor(caption_text).cpu()
    if text.shape != index.shape:
        raise ValueError(f"caption_text {list(text.shape)}; expected one for each of {len(index)} captions")
    return RightAnswers(torch.from_numpy(index), text)


def ranks_to_metrics(
    i2t: npt.NDArray[np.integer[Any]] | Sequence[int], t2i: npt.NDArray[np.integer[Any]] | Sequence[int]
) -> dict[str, float]:
    """Recalls, median and mean ranks of both directions.

    Args:
        i2t: ranks of image queries, from 1.
        t2i: ranks of caption queries, from 1.

    Returns:
        {i2t,t2i}_{r1,r5,r10} in percent, {i2t,t2i}_{medr,meanr} as ranks, and rsum, the sum of the six recalls.

    Raises:
        ValueError: no queries, or a rank below 1.
    """
    metrics = {}
    for name, values in (("i2t", i2t), ("t2i", t2i)):
        ranks = np.asarray(values)
        if not len(ranks) or ranks.min() < 1:
            raise ValueError(f"{name} ranks: expected at least one, each from 1")
        for k in RECALL_AT:
            metrics[f"{name}_r{k}"] = 100.0 * float((ranks <= k).mean())
        metrics[f"{name}_medr"] = float(np.median(ranks))
        metrics[f"{name}_meanr"] = float(ranks.mean())
    metrics["rsum"] = sum(metrics[f"{direction}_r{k}"] for direction in ("i2t", "t2i") for k in RECALL_AT)
    return metrics


def retrieval_metrics(
    scores: Tensor | Array, caption_image: Tensor | Array, caption_text: Tensor | Array | None = None
) -> dict[str, float]:
    """Metrics of both directions, as `ranks_to_metrics` returns them; arguments as in `i2t_ranks`.

    Raises:
        ValueError: shapes that do not match, an index out of range, or a score that is NaN.
    """
    i2t = i2t_ranks(scores, caption_image, caption_text)
    t2i = t2i_ranks(scores, caption_image, caption_text)
    return ranks_to_metrics(i2t, t2i)


def mean_metrics(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric's mean over folds."""
    return {name: float(np.mean([fold[name] for fold in folds])) for name in folds[0]}


def coco_folds(
    caption_image: Tensor | Array, num_images: int, size: int = 1000, count: int = 5
) -> list[tuple[slice, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The folds of the COCO 1K protocol: the first count x size images, in order.

    Args:
        caption_image: [C], position of the image that each caption belongs to.
        num_images: number of all images.
        size: images per fold.
        count: number of folds.

    Returns:
        For each fold: the slice of its images, int64 positions of its captions, and their images within the fold.

    Raises:
        ValueError: fewer than count x size images.
    """
    if num_images < size * count:
        raise ValueError(f"{count} folds of {size} images need {size * count} images, but there are {num_images}")
    index = np.asarray(caption_image.cpu() if isinstance(caption_image, Tensor) else caption_image, dtype=np.int64)
    folds = []
    for start in range(0, size * count, size):
        captions = np.flatnonzero((index >= start) & (index < start + size))
        folds.append((slice(start, start + size), captions, index[captions] - start))
    return folds
