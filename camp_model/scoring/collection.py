"""Rank a collection that is read from disk, without ever holding all scores.

Memory grows with the images I and with the captions C, never with I x C: it holds the encoded images if they fit, the
scores of all images with CAPTIONS_AT_ONCE captions, and the ranks and best results of every query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camp_model.captions import CaptionTable
from camp_model.encoding import EncodedImages, Regions, device_of, encode_captions
from camp_model.matchers.matching import mean_logits
from camp_model.model import CAMP
from camp_model.scoring.all_pairs import Progress
from camp_model.scoring.ranking import RankedQueries, WorkShare, rank_blocks

CAPTIONS_AT_ONCE = 1024
"""Largest number of captions whose scores with all images are held."""
PAIRS_AT_ONCE = 2**28
"""Largest number of scores held, of all images with some captions."""
OWN_PAIRS_AT_ONCE = 128
"""Captions scored at a time with their own images."""
Block = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Collection:
    """Images and captions that are ranked together."""

    regions: Regions
    image_rows: npt.NDArray[np.int64]
    """[I], rows of `regions`."""
    captions: CaptionTable
    caption_rows: npt.NDArray[np.int64]
    """[C], rows of `captions`."""
    caption_image: npt.NDArray[np.int64]
    """[C], position of each caption's image in `image_rows`."""

    @property
    def caption_text(self) -> npt.NDArray[np.int64]:
        """[C], equal for captions of the same text."""
        texts: npt.NDArray[np.int64] = self.captions.wording_index[self.caption_rows]
        return texts


def ensemble_logits(models: Sequence[CAMP], logits: Sequence[Tensor]) -> Tensor:
    """Combine the logits of several models, all of one shape, into the logit of their mean probability.

    If all models score by cosines, the cosines are averaged, as in SCAN's ensemble, then scaled and shifted by the mean
    scale and shift, because cosines trained with a ranking loss give no probabilities.
    """
    cosines = [cosine for model in models if (cosine := model.matcher.cosine) is not None]
    if len(models) == 1 or len(cosines) < len(models):
        return mean_logits(logits)
    mean = torch.stack([cosine.unscaled(one) for cosine, one in zip(cosines, logits, strict=True)]).mean(0)
    scale = torch.stack([cosine.log_scale for cosine in cosines]).exp().mean()
    return scale * mean + torch.stack([cosine.shift for cosine in cosines]).mean()


@torch.inference_mode()
def rank_collection(
    models: Sequence[CAMP],
    collection: Collection,
    top_k: int = 10,
    *,
    share: WorkShare | None = None,
    progress: Progress | None = None,
) -> RankedQueries:
    """Rank all captions for every image and all images for every caption, by one model or an ensemble.

    Args:
        models: in evaluation mode, on one device.
        top_k: results kept per query; fewer if there are fewer candidates.
        share: this process's share of the work of several processes; needs `top_k` 0.
        progress: called now and then with the number of pairs scored, by any of the models, since the last call.

    Raises:
        ValueError: features are damaged, or a score is not a finite number.
    """
    device = device_of(models[0])
    images = [
        EncodedImages(model, collection.regions, collection.image_rows, share=1 / len(models)) for model in models
    ]
    return rank_blocks(
        _blocks(models, images, collection, share, progress),
        _own_scores(models, images, collection, share),
        len(collection.image_rows),
        torch.from_numpy(collection.caption_image).to(device),
        top_k,
        caption_text=torch.from_numpy(collection.caption_text).to(device),
        share=share,
    )


def _chunks(collection: Collection, size: int, share: WorkShare | None) -> Iterator[npt.NDArray[np.int64]]:
    """Yield positions of captions of like length, so that little of a chunk is padding; only this process's chunks."""
    order = np.argsort(collection.captions.lengths[collection.caption_rows], kind="stable")
    starts = range(0, len(order), size)
    for start in starts if share is None else starts[share.rank :: share.count]:
        yield order[start : start + size]


def _blocks(
    models: Sequence[CAMP],
    images: Sequence[EncodedImages],
    collection: Collection,
    share: WorkShare | None,
    progress: Progress | None,
) -> Iterator[Block]:
    """Yield positions of some images [i] and some captions [c], and their logits [i, c].

    All images come for a chunk of captions before the next chunk.
    """
    device = device_of(models[0])
    size = min(CAPTIONS_AT_ONCE, max(1, PAIRS_AT_ONCE // len(collection.image_rows)))
    for chunk in _chunks(collection, size, share):
        words = [encode_captions(model, collection.captions, collection.caption_rows[chunk]) for model in models]
        caption_rows = torch.from_numpy(chunk).to(device)
        for blocks in zip(*(of_model.blocks() for of_model in images), strict=True):
            logits = ensemble_logits(models, [
                model.score_matrix(regions, mask, *some, progress=progress).float()
                for model, (_, regions, mask), some in zip(models, blocks, words, strict=True)
            ])  # fmt: skip
            rows = blocks[0][0]
            yield torch.arange(rows.start, rows.stop, device=device), caption_rows, logits


def _own_scores(
    models: Sequence[CAMP], images: Sequence[EncodedImages], collection: Collection, share: WorkShare | None
) -> Tensor:
    """Logit [C] of each caption with its own image; blocks may round it differently."""
    scores = torch.zeros(len(collection.caption_rows), device=device_of(models[0]))
    for chunk in _chunks(collection, OWN_PAIRS_AT_ONCE, share):
        logits = [
            model.score_pairs(
                *of_model.take(collection.caption_image[chunk]),
                *encode_captions(model, collection.captions, collection.caption_rows[chunk]),
            ).float()
            for model, of_model in zip(models, images, strict=True)
        ]
        scores[torch.from_numpy(chunk).to(scores.device)] = ensemble_logits(models, logits)
    if share is not None:
        share.sum_(scores)
    return scores
