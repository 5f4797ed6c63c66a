"""How much a difference in recall between two models depends on the images and seeds that it was measured with.

Images are drawn (a paired bootstrap), not captions, because an image contributes its own query and those of its
captions; all models are measured on the same draws. A training run is a sample too, but three seeds are too few to draw
from: three drawn from three have two thirds of the variance of three new ones, and their deviation may be far from the
true one. Seeds therefore contribute Student's t with their sample deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.contracts import read_table

DEPTHS = (1, 5, 10)
MEASURES = ("rsum", *(f"{direction}_r{depth}" for direction in ("i2t", "t2i") for depth in DEPTHS))
"""Names of the numbers that are compared, in percent."""


@dataclass(frozen=True)
class ImageHits:
    """The contribution of each of I images to the recalls at D depths."""

    image: npt.NDArray[np.float64]
    """[I, D], whether the image's own query finds one of its captions, 0 or 1."""
    captions: npt.NDArray[np.float64]
    """[I, D], how many of its captions find the image."""
    count: npt.NDArray[np.float64]
    """[I], number of captions of the image."""
    queries: str = ""
    """What was ranked (`stages.evaluation.folds.queries_hash`)."""

    def measures(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """MEASURES of resampled images: `weights` [..., I], how often each image is drawn -> [..., 1 + 2 D]."""
        i2t = weights @ self.image / weights.sum(-1, keepdims=True)
        t2i = weights @ self.captions / (weights @ self.count)[..., None]
        recalls = 100.0 * np.concatenate([i2t, t2i], -1)
        return np.concatenate([recalls.sum(-1, keepdims=True), recalls], -1)


def image_hits(
    i2t_ranks: npt.NDArray[np.integer], t2i_ranks: npt.NDArray[np.integer], caption_image: npt.NDArray[np.integer]
) -> ImageHits:
    """Count the hits of each image.

    Args:
        i2t_ranks: [I], from 1.
        t2i_ranks: [C], from 1.
        caption_image: [C], position of each caption's image.
    """
    size = len(i2t_ranks)
    found = t2i_ranks[:, None] <= np.array(DEPTHS)
    return ImageHits(
        image=(i2t_ranks[:, None] <= np.array(DEPTHS)).astype(np.float64),
        captions=np.stack([np.bincount(caption_image, hits, minlength=size) for hits in found.T], -1),
        count=np.bincount(caption_image, minlength=size).astype(np.float64),
    )


def read_hits(path: Path, where: str = "") -> ImageHits:
    """The hits of each image, in the order of image ids, from the ranks that the stage evaluate wrote.

    The folds of COCO 1K are pooled: their rsum is over all queries. It is within 0.001 of the mean over folds that
    evaluate reports, because the folds have nearly equal numbers of captions.

    Args:
        where: the beginning of an error's message.

    Raises:
        InputError: the file cannot be read, or holds no ranks.
    """
    columns = ("direction", "image_id", "rank")
    table = read_table(path, columns, "ranks that the stage evaluate writes", form="evaluation", where=where)
    queries = table.to_pandas()
    i2t, t2i = (queries[queries["direction"] == direction] for direction in ("i2t", "t2i"))
    i2t = i2t.sort_values("image_id")
    positions = pd.Index(i2t["image_id"]).get_indexer(pd.Index(t2i["image_id"]))
    hits = image_hits(i2t["rank"].to_numpy(), t2i["rank"].to_numpy(), positions)
    return replace(hits, queries=table.schema.metadata.get(b"camp.queries", b"").decode())


def paired_differences(
    models: Sequence[ImageHits], others: Sequence[ImageHits], *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float, float]]:
    """Differences in MEASURES, `models` minus `others`, with their intervals; one seed says nothing about other seeds.

    Args:
        models, others: one entry per seed, in the same order of seeds, over the same images.

    Returns:
        For each measure the mean difference, and the lower and the upper end of its interval.

    Raises:
        ValueError: the numbers of seeds or of images differ.
    """
    sizes = {len(hits.image) for hits in (*models, *others)}
    if len(models) != len(others) or not models or len(sizes) != 1:
        raise ValueError(
            f"paired_differences: {len(models)} and {len(others)} seeds over {sorted(sizes)} images; expected equal "
            "ones"
        )
    rng = np.random.default_rng(seed)
    (images,) = sizes
    weights = rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
    pairs = list(zip(models, others, strict=True))
    whole = np.ones(images)
    seen = np.stack([one.measures(whole) - other.measures(whole) for one, other in pairs])
    drawn = np.mean([one.measures(weights) - other.measures(weights) for one, other in pairs], 0)
    if (seeds := len(seen)) > 1:
        # A hundred t values for each draw of images: with one, the ends of so heavy a tail are up to 20 % too far out.
        # Each comes with both signs: otherwise the interval would depend on which model is subtracted from which.
        deviation = rng.standard_t(seeds - 1, (50, draws, 1))
        deviation = np.concatenate([deviation, -deviation])
        drawn = (drawn + seen.std(0, ddof=1) / np.sqrt(seeds) * deviation).reshape(-1, len(MEASURES))
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    rows = zip(MEASURES, seen.mean(0), *ends, strict=True)
    return {name: (float(mean), float(low), float(high)) for name, mean, low, high in rows}
