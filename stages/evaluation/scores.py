"""Scores of every image with every caption of a split, and the ranks that follow.

The score of a pair is m = sigmoid(logit). An ensemble's is the mean of its models' m, kept as the logit of that mean,
so that scores too close to 0 or 1 for a float stay apart. A tie counts against the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from camp_model.captions import CaptionTable
from camp_model.encoders import length_mask
from camp_model.metrics import i2t_ranks, t2i_ranks
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from stages.errors import InputError

TOP = 10
"""Results kept of each query."""
CAPTIONS_AT_ONCE = 1024


@dataclass(frozen=True)
class Split:
    """The images and captions of one split, or of one fold of it."""

    name: str
    images: list[str]
    """[I], the ids of the images that have captions, in the store's order."""
    captions: CaptionTable
    rows: np.ndarray
    """int64 [C], rows of `captions`."""
    caption_image: np.ndarray
    """int64 [C], position of each caption's image in `images`."""


@dataclass(frozen=True)
class Ranking:
    """What a fold's scores say about one direction's queries."""

    ranks: np.ndarray
    """int64 [Q], rank of the best right answer, 1 the best."""
    top: np.ndarray
    """int64 [Q, K], positions of the candidates that rank first, best first."""
    top_scores: np.ndarray
    """float32 [Q, K], their logits."""


def encode_images(
    model: CAMP, store: RegionStore, image_ids: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Regions [I, R, d] and their mask [I, R] of some images."""
    rows = [store.row_of(image_id) for image_id in image_ids]
    regions, masks = [], []
    for start in range(0, len(rows), 128):
        features, mask = store.features(rows[start : start + 128])
        masks.append(torch.from_numpy(mask).to(device))
        regions.append(model.encode_regions(torch.from_numpy(features).to(device, torch.float32), masks[-1]))
    return torch.cat(regions), torch.cat(masks)


@torch.inference_mode()
def score_fold(models: Sequence[CAMP], store: RegionStore, fold: Split, device: torch.device) -> np.ndarray:
    """Logits [I, C] of every image with every caption of a fold.

    Raises:
        InputError: a score is not a finite number.
    """
    shape = (len(fold.images), len(fold.rows))
    # Captions of like length share a tile, so little of it is padding.
    order = np.argsort(fold.captions.lengths[fold.rows], kind="stable")
    yes, no = None, None  # what `mean_logits` does, a model at a time: all of them at once may not fit
    with tqdm(
        total=len(models) * shape[0] * shape[1], unit="pair", unit_scale=True, desc=f"score {fold.name}",
        mininterval=2, dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for model in models:
            regions, region_mask = encode_images(model, store, fold.images, device)
            logits = np.empty(shape, dtype=np.float32)
            for start in range(0, len(order), CAPTIONS_AT_ONCE):
                chunk = order[start : start + CAPTIONS_AT_ONCE]
                tokens, lengths = fold.captions.batch(fold.rows[chunk])
                words = model.encode_captions(tokens.to(device), lengths)
                word_mask = length_mask(lengths.to(device), tokens.shape[1])
                scores = model.score_matrix(regions, region_mask, words, word_mask, progress=bar.update)
                logits[:, chunk] = scores.float().cpu().numpy()
            if not np.isfinite(logits).all():
                raise InputError("model.safetensors: gives scores that are not finite; expected weights that do")
            if len(models) == 1:
                return logits
            values = torch.from_numpy(logits)
            yes = logsigmoid(values) if yes is None else torch.logaddexp(yes, logsigmoid(values))
            no = logsigmoid(-values) if no is None else torch.logaddexp(no, logsigmoid(-values))
    assert yes is not None and no is not None
    return (yes - no).numpy()


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """The logits of the mean of several models' m, of one shape all."""
    if len(logits) == 1:
        return logits[0]
    yes, no = (torch.stack([logsigmoid(sign * values) for values in logits]).logsumexp(0) for sign in (1, -1))
    return yes - no


def rank_fold(scores: np.ndarray, caption_image: np.ndarray) -> tuple[Ranking, Ranking]:
    """Rank a fold both ways, image to text and text to image.

    Args:
        scores: [I, C], finite.
        caption_image: int64 [C]; every image has a caption.
    """
    captions_of = np.split(np.argsort(caption_image, kind="stable"), np.cumsum(np.bincount(caption_image))[:-1])
    return (
        Ranking(i2t_ranks(scores, caption_image), *_top(scores, captions_of)),
        Ranking(t2i_ranks(scores, caption_image), *_top(np.ascontiguousarray(scores.T), caption_image[:, None])),
    )


def _top(scores: np.ndarray, answers: Sequence[np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first TOP of [Q, K] candidates and their scores; `answers` holds the right ones of each query.

    Among equal scores the wrong candidates come first, as they do in the rank.
    """
    k = min(TOP, scores.shape[1])
    top = np.empty((len(scores), k), dtype=np.int64)
    for query, (values, right) in enumerate(zip(scores, answers, strict=True)):
        candidates = np.flatnonzero(values >= np.partition(values, -k)[-k])
        order = np.lexsort((candidates, np.isin(candidates, right), -values[candidates]))
        top[query] = candidates[order][:k]
    return top, np.take_along_axis(scores, top, axis=1).astype(np.float32)
