"""COCO's test split with matches that its own annotations lack: ECCV Caption (Chun et al., ECCV 2022) and CxC.

The package eccv-caption provides both lists of matches and their metrics; its ids of pictures and captions are COCO's.
"""

import contextlib
import io
import warnings
from collections import defaultdict
from typing import Any

import numpy as np

from camp_model.scoring.ranking import RankedQueries
from stages.errors import InputError
from stages.evaluation.folds import Fold

METRICS = ("cxc_recalls", "eccv_map_at_r", "eccv_rprecision", "eccv_r1")
EXPECTED = "expected Karpathy's test split with COCO's own ids (dataset.source karpathy and dataset_coco.json)"


def metrics_class() -> Any:
    """The package's class of metrics.

    Raises:
        InputError: the package is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it recommends a faster JSON reader
            from eccv_caption import Metrics
    except ImportError:
        raise InputError(
            "evaluate.eccv: needs the package eccv-caption; expected it after pip install -e '.[eccv]'"
        ) from None
    return Metrics


class EccvCaption:
    """The package's metrics on a fold whose captions have COCO's ids.

    Raises:
        InputError: the package is not installed, or the fold is not COCO's test split.
    """

    def __init__(self, fold: Fold) -> None:
        self.metrics = metrics_class()()
        coco_image: dict[int, int] = {caption: images[0] for caption, images in self.metrics.coco_gts["t2i"].items()}
        self.captions = fold.captions.caption_ids[fold.rows]
        where = f"evaluate.eccv: {fold.captions.path}"
        if missing := coco_image.keys() - set(self.captions.tolist()):
            raise InputError(
                f"{where}: caption_id: lacks {len(missing):,} of COCO's {len(coco_image):,}, {min(missing)} among "
                f"them; {EXPECTED}"
            )
        self.known = np.array([caption in coco_image for caption in self.captions.tolist()])
        ids = defaultdict(set)
        for caption, image in zip(self.captions[self.known].tolist(), fold.caption_image[self.known], strict=True):
            ids[int(image)].add(coco_image[caption])
        if len(ids) != len(set(coco_image.values())) or any(len(several) > 1 for several in ids.values()):
            raise InputError(f"{where}: image_id: captions are not grouped by picture as COCO's are; {EXPECTED}")
        self.images = np.full(len(fold.images), -1)
        for position, (coco_id,) in ids.items():
            self.images[position] = coco_id

    @property
    def depth(self) -> int:
        """How many results per query the metrics need, including those whose ids they do not know."""
        most = max(len(right) for sides in (self.metrics.cxc_gts, self.metrics.eccv_gts) for of in sides.values()
                   for right in of.values())  # fmt: skip
        return int(max(most, 10) + max((~self.known).sum(), (self.images < 0).sum()))

    def measure(self, ranked: RankedQueries) -> dict[str, float]:
        """Return percentages: cxc_{i2t,t2i}_{r1,r5,r10} and eccv_{i2t,t2i}_{map_at_r,rprecision,r1}.

        Args:
            ranked: the fold's ranking, with at least `depth` results per query.
        """
        known_captions = np.where(self.known, self.captions, -1)
        i2t = _results(self.images, known_captions, ranked.i2t_top.cpu().numpy())
        t2i = _results(known_captions, self.images, ranked.t2i_top.cpu().numpy())
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            values = self.metrics.compute_all_metrics(i2t, t2i, METRICS, Ks=(1, 5, 10))
        return {
            f"{name.partition('_')[0]}_{way}_{name.partition('_')[2]}": 100.0 * float(share)
            for name, ways in values.items()
            for way, share in ways.items()
        }


def _results(queries: np.ndarray, candidates: np.ndarray, top: np.ndarray) -> dict[int, list[int]]:
    """COCO's id of each query -> the ids of its results, best first; those without an id (-1) are left out."""
    results = np.where(top >= 0, candidates[top], -1)
    return {
        int(query): row[row >= 0].tolist() for query, row in zip(queries, results, strict=True) if query >= 0
    }  # fmt: skip
