"""The images and captions that are ranked together: a split, or folds of it that a protocol defines."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from camp_model.captions import CaptionTable
from camp_model.metrics import coco_folds
from camp_model.regions import RegionStore
from camp_model.scoring.collection import Collection
from camp_model.seal import digest_of_values
from stages.contracts import input_errors
from stages.errors import InputError
from stages.params.evaluate import COCO_FOLDS


@dataclass(frozen=True)
class Fold:
    """The images and captions of one split, or of one fold of it, that are ranked together."""

    name: str
    """Name of the split."""
    images: list[str]
    """[I], ids of the images that have captions, in the store's order."""
    captions: CaptionTable
    rows: np.ndarray
    """int64 [C], rows of `captions`."""
    caption_image: np.ndarray
    """int64 [C], position of each caption's image in `images`."""

    def collection(self, store: RegionStore) -> Collection:
        """The fold in the form that scoring takes."""
        image_rows = np.array([store.row_of(image_id) for image_id in self.images], dtype=np.int64)
        return Collection(store, image_rows, self.captions, self.rows, self.caption_image)


def read_split(name: str, captions: Path, store: RegionStore) -> Fold:
    """Read a split's captions and find their images in the store.

    Raises:
        InputError: the captions cannot be read, name an image without regions, or belong to fewer than two images.
    """
    with input_errors():
        table = CaptionTable.load(captions / f"{name}.parquet")
        index = table.image_index(store.image_ids)
    used, caption_image = np.unique(index, return_inverse=True)
    if len(used) < 2:
        raise InputError(
            f"{captions / f'{name}.parquet'}: image_id: has captions of {len(used)} images; expected 2 or more"
        )
    return Fold(name, [store.image_ids[i] for i in used], table, np.arange(len(table)), caption_image)


def folds_of(split: Fold, protocol: str) -> list[Fold]:
    """Return the parts of a split that `protocol` ranks separately (see EvaluateParams).

    Raises:
        InputError: the split has too few images for the protocol.
    """
    size, count = (len(split.images), 1) if protocol == "full" else COCO_FOLDS[protocol]
    try:
        folds = coco_folds(split.caption_image, len(split.images), size, count)
    except ValueError as error:
        raise InputError(f"evaluate.protocol: {protocol}, split {split.name}: {error}; expected full") from None
    return [
        Fold(split.name, split.images[images], split.captions, split.rows[captions], caption_image)
        for images, captions, caption_image in folds
    ]


def queries_hash(folds: Iterable[Fold]) -> str:
    """The sha256 of the images and captions that are ranked together: ranks are only comparable if theirs is equal."""
    ranked = []
    for fold in folds:
        images = [fold.images[image] for image in fold.caption_image.tolist()]
        captions = fold.captions.caption_ids[fold.rows].tolist()
        texts = [fold.captions.texts[row] for row in fold.rows.tolist()]
        ranked.append(sorted(zip(images, captions, texts, strict=True)))
    return digest_of_values(ranked)
