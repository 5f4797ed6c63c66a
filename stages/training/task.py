"""Identifies the retrieval task of a split."""

from pathlib import Path

from camp_model.seal import digest_of_values
from stages.contracts import read_table


def task_hash(captions: Path, images: Path) -> str:
    """A hash of a split's caption texts and pictures, independent of features and vocabulary.

    Args:
        captions: table of the split's captions.
        images: data/dataset/images.parquet, with the hash of every picture; if it is missing, ids are used.
    """
    pictures = {}
    if images.is_file():
        table = read_table(images, ("image_id", "sha256"))
        pictures = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    table = read_table(captions, ("image_id", "text"))
    pairs = zip(*(column.to_pylist() for column in table.columns), strict=True)
    rows = sorted([pictures.get(image_id) or image_id, text] for image_id, text in pairs)
    return digest_of_values(rows)
