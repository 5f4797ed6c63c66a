"""One vector per picture, cached by shard: used for shortlists and to find similar pictures."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from camp_model.encoding import Regions, encode_batches
from camp_model.files import replacing, sha256_of
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.seal import check_seal, seal
from stages.indexing.engines import Ids, Vectors

VERSION = 2
"""Version of what a picture's vector is. 2: a joint embedding's own, however it pools; 1: the mean of its regions."""


@torch.inference_mode()
def picture_vectors(model: CAMP, regions: Regions, rows: Sequence[int] | Ids) -> Vectors:
    """Compute the unit vectors [n, d] of some pictures of a store.

    Raises:
        ValueError: the store's features are damaged.
    """
    batches = [model.image_vectors(*batch).cpu().numpy() for batch in encode_batches(model, regions, rows)]
    return np.concatenate([np.zeros((0, model.config.dim), np.float32), *batches])


def weights_key(checkpoint: Path) -> str:
    """Identity of a model: sha256 of its weights, whose metadata include the vocabulary."""
    return sha256_of(checkpoint / "model.safetensors")


def vector_file(weights: str, shard: str) -> str:
    """Name of the file with a model's vectors of a shard; a shard's name identifies its content."""
    return hashlib.sha256(f"{VERSION} {weights} {shard}".encode()).hexdigest()[:40] + ".npy"


def store_vectors(
    model: CAMP, weights: str, store: RegionStore, folder: Path, progress: Callable[[int], object]
) -> Vectors:
    """Return the vectors [n, d] of all pictures of a store, in its order; cached shards are not computed again.

    Args:
        weights: the model's `weights_key`.
        folder: the cache, one file per shard.
        progress: called with the number of pictures done since the last call.

    Raises:
        ValueError: the store's features are damaged.
    """
    vectors = np.zeros((len(store), model.config.dim), np.float32)
    for shard, rows in store.rows_of_shards().items():
        vectors[rows] = shard_vectors(model, weights, store, shard, rows, folder)
        progress(len(rows))
    return vectors


def shard_vectors(model: CAMP, weights: str, store: RegionStore, shard: str, rows: Ids, folder: Path) -> Vectors:
    """Return the vectors [n, d] of one shard's pictures, at `rows` of the store; arguments as in `store_vectors`."""
    path = folder / vector_file(weights, shard)
    known = _read(path, (len(rows), model.config.dim))
    if known is None:
        known = picture_vectors(model, store, rows)
        store.release()  # the features are not read again
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, known, allow_pickle=False)
            seal(temporary, append=True)
    return known


def _read(path: Path, shape: tuple[int, int]) -> Vectors | None:
    """Read a file of vectors; None if it is missing, torn, damaged or of another shape."""
    try:
        check_seal(path, "vectors")
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None
