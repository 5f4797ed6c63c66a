"""How much a difference in rsum between two models depends on the images and seeds that it was measured with.

Images are drawn (a paired bootstrap), not captions, because an image contributes its own query and those of its
captions; all models are measured on the same draws. A training run is a sample too, but three seeds are too few to draw
from: three drawn from three have two thirds of the variance of three new ones, and their deviation may be far from the
true one. Seeds therefore contribute Student's t with their sample deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class ImageHits:
    """The contribution of each of I images to rsum."""

    image: npt.NDArray[np.float64]
    """[I], at how many of the three depths the image's own query finds one of its captions."""
    captions: npt.NDArray[np.float64]
    """[I], the same for its captions as queries, summed over them."""
    count: npt.NDArray[np.float64]
    """[I], number of captions of the image."""

    def rsum(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """rsum of resampled images: `weights` [..., I], how often each image is drawn -> [...]."""
        i2t = weights @ self.image / weights.sum(-1)
        t2i = weights @ self.captions / (weights @ self.count)
        return np.asarray(100.0 * (i2t + t2i))


def image_hits(
    i2t_ranks: npt.NDArray[np.integer], t2i_ranks: npt.NDArray[np.integer], caption_image: npt.NDArray[np.integer]
) -> ImageHits:
    """Count the hits of each image.

    Args:
        i2t_ranks: [I], from 1.
        t2i_ranks: [C], from 1.
        caption_image: [C], position of each caption's image.
    """
    depths = np.array(DEPTHS)
    size = len(i2t_ranks)
    hits = (t2i_ranks[:, None] <= depths).sum(1).astype(np.float64)
    return ImageHits(
        image=(i2t_ranks[:, None] <= depths).sum(1).astype(np.float64),
        captions=np.bincount(caption_image, hits, minlength=size).astype(np.float64),
        count=np.bincount(caption_image, minlength=size).astype(np.float64),
    )


def rsum_difference(
    models: Sequence[ImageHits], others: Sequence[ImageHits], *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference in rsum, `models` minus `others`, and its interval; one seed says nothing about other seeds.

    Args:
        models, others: one entry per seed, in the same order of seeds, over the same images.

    Returns:
        The difference, and the lower and the upper end of the interval.

    Raises:
        ValueError: the numbers of seeds or of images differ.
    """
    sizes = {len(hits.image) for hits in (*models, *others)}
    if len(models) != len(others) or not models or len(sizes) != 1:
        raise ValueError(
            f"rsum_difference: {len(models)} and {len(others)} seeds over {sorted(sizes)} images; expected equal ones"
        )
    rng = np.random.default_rng(seed)
    (images,) = sizes
    weights = rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
    by_seed = np.stack([one.rsum(weights) - other.rsum(weights) for one, other in zip(models, others, strict=True)])
    whole = np.ones(images)
    seen = np.array([one.rsum(whole) - other.rsum(whole) for one, other in zip(models, others, strict=True)])
    drawn = by_seed.mean(0)
    if (seeds := len(seen)) > 1:
        # A hundred t values for each draw of images: with one, the ends of so heavy a tail are up to 20 % too far out.
        drawn = drawn + seen.std(ddof=1) / np.sqrt(seeds) * rng.standard_t(seeds - 1, (100, draws))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(seen.mean()), float(low), float(high)
