"""Search in large collections: a joint-embedding shortlist, then CAMP on the top K.

CAMP scores every image with every caption, so its time grows with the collection. A second model, a joint embedding
(`matcher: joint`), gives every image one vector; an index of these vectors (faiss, the extra `retrieval`) finds the K
nearest images of a sentence in milliseconds, and CAMP ranks only those. Recall is then at most the shortlist's recall
at K. docs/scaling.md has time and memory for up to 1e9 images.

This module is for two models over a region store, for instance in a notebook. A CAMP trained with a joint term
(`camp_model.joint`) makes the shortlist from its own mean vectors: `search.ranking` does that for the search page.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camp_model.encoders import length_mask
from camp_model.encoding import Regions, device_of, encode_batches, encode_images
from camp_model.files import replacing
from camp_model.model import CAMP
from camp_model.seal import check_seal, seal


@dataclass(frozen=True)
class SearchResult:
    """The images found for Q sentences, best first."""

    rows: Tensor
    """int64 [Q, k], positions in the collection; -1 where the shortlist held fewer than k."""
    logits: Tensor
    """[Q, k], CAMP's; -inf beyond the shortlist."""
    shortlist: Tensor
    """int64 [Q, K], in the order of the joint embedding."""


class JointEmbedding:
    """One unit vector per image and per caption.

    Args:
        model: its matcher must score by cosines of vectors (`Matcher.has_vectors`), as `matcher: joint` does.

    Raises:
        ValueError: the matcher does not.
    """

    def __init__(self, model: CAMP) -> None:
        if not model.matcher.has_vectors:
            raise ValueError(f"joint embedding: needs model.matcher joint, not {model.config.matcher}")
        self.model = model.eval()
        self.dim = model.config.dim

    @torch.inference_mode()
    def images(self, features: Tensor, region_mask: Tensor) -> npt.NDArray[np.float32]:
        """[I, R, region_dim], bool [I, R] -> [I, d]."""
        vectors = self.model.image_vectors(self.model.encode_regions(features, region_mask), region_mask)
        return np.asarray(vectors.cpu().numpy())

    @torch.inference_mode()
    def captions(self, tokens: Tensor, lengths: Tensor) -> npt.NDArray[np.float32]:
        """int64 [C, N], int64 [C] -> [C, d]."""
        mask = length_mask(lengths.to(tokens.device), tokens.shape[1])
        return np.asarray(self.model.caption_vectors(self.model.encode_captions(tokens, lengths), mask).cpu().numpy())


def build_index(
    joint: JointEmbedding,
    regions: Regions,
    kind: str = "Flat",
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Any:
    """Build a faiss index of all images of a collection, by inner product of unit vectors.

    Args:
        joint: the model that makes the vectors.
        regions: the collection.
        kind: a faiss factory string: `Flat` is exact, `HNSW32` is for millions, `IVF65536_HNSW32,PQ64` for billions.
        batch_size: images encoded at a time.
        progress: called with the number of images added since the last call.

    Raises:
        ImportError: faiss is not installed (extra `retrieval`).
    """
    faiss = import_faiss()
    index = faiss.index_factory(joint.dim, kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        # A quantiser learns from a sample; 64 vectors for each of its cells are plenty.
        sample = np.random.default_rng(0).choice(len(regions), min(len(regions), 1_000_000), replace=False)
        index.train(np.concatenate(list(_vectors(joint, regions, np.sort(sample), batch_size))))
    for vectors in _vectors(joint, regions, np.arange(len(regions)), batch_size):
        index.add(vectors)
        if progress is not None:
            progress(len(vectors))
    return index


def import_faiss() -> Any:
    """Import faiss, for use in the calling thread.

    On macOS, faiss and PyTorch each bring an OpenMP library. Unless it is allowed, the second to start ends the process
    ("OMP: Error #15"); if it is, further threads of faiss may still crash (faiss-wheels issue 73), so there are none.

    Raises:
        ImportError: faiss is not installed (extra `retrieval`).
    """
    if sys.platform == "darwin":
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    import faiss

    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)  # for what this thread calls
    return faiss


def save_index(index: Any, path: Path | str) -> None:
    """Write a faiss index; the file is whole or not there."""
    faiss = import_faiss()
    with replacing(Path(path)) as temporary:
        faiss.write_index(index, str(temporary))
        seal(temporary, append=True)


def load_index(path: Path | str) -> Any:
    """Read a faiss index.

    Raises:
        ValueError: the file is missing, damaged, or no index.
    """
    faiss = import_faiss()
    try:
        check_seal(Path(path))
        index = faiss.read_index(str(path))
    except (OSError, RuntimeError):
        raise ValueError(f"{path}: cannot be read as an index; expected a faiss index") from None
    check_seal(Path(path), "a faiss index that save_index wrote")
    return index


class Retriever:
    """Ranks the images of a collection for sentences, by two models. The collection must not change.

    Args:
        model: CAMP, for the final order.
        joint: the joint embedding, for the shortlist. Both models read the same vocabulary and regions.
        index: from `build_index`, over the same collection.
        regions: the collection.

    Raises:
        ValueError: models, index and collection do not fit each other.
    """

    def __init__(self, model: CAMP, joint: JointEmbedding, index: Any, regions: Regions) -> None:
        if index.ntotal != len(regions) or index.d != joint.dim:
            raise ValueError(
                f"index: {index.ntotal} vectors of {index.d}; expected {len(regions)}, one per image, of {joint.dim}"
            )
        for key in ("vocab_size", "region_dim"):
            ours, theirs = getattr(model.config, key), getattr(joint.model.config, key)
            if ours != theirs:
                raise ValueError(f"model.{key}: {ours}, but the joint embedding has {theirs}")
        self.model, self.joint, self.index, self.regions = model.eval(), joint, index, regions

    @torch.inference_mode()
    def search(self, tokens: Tensor, lengths: Tensor, shortlist: int = 100, top_k: int = 10) -> SearchResult:
        """Find the images that sentences describe.

        Args:
            tokens: int64 [Q, N] word ids, as `camp_model.encoding.word_ids` gives them.
            lengths: int64 [Q].
            shortlist: K, images per sentence that CAMP ranks.
            top_k: results per sentence.

        Raises:
            ValueError: `shortlist` or `top_k` is below 1.
        """
        if min(shortlist, top_k) < 1:
            raise ValueError(f"shortlist {shortlist}, top_k {top_k}; expected 1 or more of both")
        device = device_of(self.model)
        depth = min(shortlist, len(self.regions))
        vectors = self.joint.captions(tokens.to(device), lengths)
        import_faiss()
        _, shortlists = self.index.search(vectors, depth)
        words = self.model.encode_captions(tokens.to(device), lengths)
        word_mask = length_mask(lengths.to(device), tokens.shape[1])
        size = min(top_k, depth)
        rows = torch.full((len(tokens), size), -1, dtype=torch.int64)
        logits = torch.full((len(tokens), size), -torch.inf)
        for query, row in enumerate(shortlists):
            candidates = np.sort(row[row >= 0])  # in the order of the disk
            if not len(candidates):
                continue
            encoded, region_mask = encode_images(self.model, self.regions, candidates)
            one = slice(query, query + 1)
            scores = self.model.score_matrix(encoded, region_mask, words[one], word_mask[one])[:, 0].float().cpu()
            best = scores.topk(min(size, len(scores)))
            rows[query, : len(best.indices)] = torch.from_numpy(candidates)[best.indices]
            logits[query, : len(best.indices)] = best.values
        return SearchResult(rows, logits, torch.from_numpy(shortlists))


def _vectors(
    joint: JointEmbedding, regions: Regions, rows: npt.NDArray[np.int64], batch_size: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the vectors [b, d] of some images, batch by batch."""
    with torch.inference_mode():
        for encoded, mask in encode_batches(joint.model, regions, rows, batch_size):
            yield joint.model.image_vectors(encoded, mask).cpu().numpy()
