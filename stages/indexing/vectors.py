"""One vector for each picture, remembered by shard: what shortlists and pictures that are alike are found by."""

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
"""Of what is a picture's vector. 2: a joint embedding's own, however it pools; 1 had the mean of its regions."""


@torch.inference_mode()
def picture_vectors(model: CAMP, regions: Regions, rows: Sequence[int] | Ids) -> Vectors:
    """The unit vectors [n, d] of some pictures of a store.

    Raises:
        ValueError: the store's features are damaged.
    """
    batches = [model.image_vectors(*batch).cpu().numpy() for batch in encode_batches(model, regions, rows)]
    return np.concatenate([np.zeros((0, model.config.dim), np.float32), *batches])


def weights_key(checkpoint: Path) -> str:
    """Identity of a model: sha256 of its weights, in whose metadata its vocabulary is."""
    return sha256_of(checkpoint / "model.safetensors")


def vector_file(weights: str, shard: str) -> str:
    """Name of the file of the vectors that a model makes of a shard; shards are named by their content."""
    return hashlib.sha256(f"{VERSION} {weights} {shard}".encode()).hexdigest()[:40] + ".npy"


def store_vectors(
    model: CAMP, weights: str, store: RegionStore, folder: Path, progress: Callable[[int], object] | None = None
) -> Vectors:
    """The vectors [n, d] of all pictures of a store, in its order; those of a shard that is known are not made again.

    Args:
        weights: the model's `weights_key`.
        folder: of the files of vectors, one for each shard.
        progress: called with the number of pictures done since the last call.

    Raises:
        ValueError: the store's features are damaged.
    """
    vectors = np.zeros((len(store), model.config.dim), np.float32)
    for shard, rows in store.rows_of_shards().items():
        vectors[rows] = shard_vectors(model, weights, store, shard, rows, folder)
        if progress is not None:
            progress(len(rows))
    return vectors


def shard_vectors(model: CAMP, weights: str, store: RegionStore, shard: str, rows: Ids, folder: Path) -> Vectors:
    """The vectors [n, d] of all pictures of one shard, at `rows` of the store; arguments as of `store_vectors`."""
    path = folder / vector_file(weights, shard)
    known = _read(path, (len(rows), model.config.dim))
    if known is None:
        known = picture_vectors(model, store, rows)
        store.release()  # nobody reads the features again
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, known, allow_pickle=False)
            seal(temporary, append=True)
    return known


def _read(path: Path, shape: tuple[int, int]) -> Vectors | None:
    """A file of vectors; None where there is none, or one that is torn, damaged or of another shape."""
    try:
        check_seal(path)
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None
