"""A searchable collection: the interface that both the command line and the page use.

All methods may be called from several threads at once; the answers are the same as with a single caller.
"""

import random
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from camp_model.checkpoint import load_checkpoint
from camp_model.model import CAMP
from search.answers import Answer, Hit, UnknownPicture
from search.captions import CaptionRanker
from search.explaining import PairView, explain_pair
from search.features import Extraction
from search.folder import FolderSource
from search.pictures import PictureFile, Pictures, PictureSource, Status
from search.ranking import Ranked, Ranker, has_zero_threshold
from search.sentences import SentenceReader
from search.workspace import Workspace, WorkspaceSource
from stages.contracts import input_errors, read_fingerprint, read_table
from stages.detectors.images import CHANGED, RejectedImage, read_image
from stages.errors import InputError, shown
from stages.indexing.vectors import weights_key
from stages.params.index import IndexParams

Features = npt.NDArray[Any]
"""[R, region_dim], the features of a picture's R regions."""
Pixels = npt.NDArray[np.uint8]
"""RGB [H, W, 3], upright."""
MAX_RANKINGS = 32
"""Number of sentences whose rankings are cached, so that further rows of an answer cost nothing."""


class PictureCollection:
    """Pictures, and the model that ranks them; created by `open_workspace` and `open_folder`.

    Args:
        source: provides the pictures.
        model: in evaluation mode, on the CPU.
        reader: splits sentences into words.
        shortlist: number of pictures that CAMP ranks; None: all.
        captions: the table of training captions, if there is one.
        max_pixels: width times height above which a picture is not decoded.
        has_zero_threshold: see `has_zero_threshold`.
    """

    def __init__(
        self,
        source: PictureSource,
        model: CAMP,
        reader: SentenceReader,
        shortlist: int | None,
        captions: Path | None,
        max_pixels: int,
        has_zero_threshold: bool = True,
    ) -> None:
        self.source, self.model, self.reader = source, model, reader
        model.caption_encoder.limit_cache()
        self.max_pixels, self.has_zero_threshold = max_pixels, has_zero_threshold
        self._captions = captions
        self._caption_ranker = CaptionRanker(model, reader, captions) if captions and captions.is_file() else None
        self._ranker = Ranker(model, shortlist)
        self._lock = threading.Lock()
        """One query is computed at a time: two would only compete for the cores."""
        self._rankings: OrderedDict[tuple[int, ...], Ranked] = OrderedDict()
        self._rankings_of = source.pictures()

    def __len__(self) -> int:
        """Number of pictures that can be searched."""
        return len(self.source.pictures())

    def start(self) -> None:
        """Start indexing in the background, if necessary."""
        self.source.start()

    def close(self) -> None:
        """Stop; the collection cannot be used afterwards."""
        self.source.close()

    def rescan(self) -> None:
        """Look for added, removed and changed pictures, in the background if that takes long."""
        self.source.rescan()

    def status(self) -> Status:
        """The progress of indexing."""
        return self.source.status()

    def search(self, sentence: str, top: int, offset: int = 0) -> Answer:
        """The pictures that a sentence describes.

        Args:
            top: maximum number of hits.
            offset: number of hits to skip.

        Raises:
            InputError: the sentence has no words.
        """
        read = self.reader.read(sentence)
        pictures, ranked = self._rank(read.ids)
        chosen = slice(max(0, offset), max(0, offset) + max(0, top))
        hits = _hits(pictures, ranked.positions[chosen].tolist(), ranked.scores[chosen].tolist())
        return Answer(
            hits, list(read.words), read.unknown, read.by_spelling, read.dropped, len(ranked.positions), len(pictures),
            pictures.version,
        )  # fmt: skip

    def _rank(self, ids: tuple[int, ...]) -> tuple[Pictures, Ranked]:
        with self._lock:
            pictures = self.source.pictures()
            if self._rankings_of is not pictures:  # those of earlier states would keep their pictures in memory
                self._rankings, self._rankings_of = OrderedDict(), pictures
            ranked = self._rankings.pop(ids, None) or self._ranker.rank(pictures, ids)
            self._rankings[ids] = ranked  # now the most recently used
            if len(self._rankings) > MAX_RANKINGS:
                self._rankings.popitem(last=False)
            return pictures, ranked

    def pair(self, picture_id: str, sentence: str) -> PairView:
        """Explain the score of a picture and a sentence.

        Raises:
            UnknownPicture: no such picture.
            InputError: the sentence has no words.
        """
        read = self.reader.read(sentence)
        pictures = self.source.pictures()
        self._file(pictures, picture_id)
        with self._lock:
            return explain_pair(self.model, self.reader.vocabulary, pictures, picture_id, sentence, read)

    def find_regions(self, image: Pixels) -> Features:
        """The features of a picture, for `similar` and `captions_like`.

        Raises:
            InputError: features cannot be computed here.
        """
        with self._lock:
            return self.source.find_regions(image).features

    def similar(self, features: Features, top: int) -> list[Hit]:
        """The pictures most similar to a picture with these features."""
        pictures = self.source.pictures()
        return _hits(pictures, *pictures.nearest(self._vector_of(features), top))

    def similar_to(self, picture_id: str, top: int) -> list[Hit]:
        """The pictures most similar to one of the collection, which is left out.

        Raises:
            UnknownPicture: no such picture.
        """
        hits = self.similar(self.features(picture_id), top + 1)
        return [hit for hit in hits if hit.picture_id != picture_id][:top]

    def features(self, picture_id: str) -> Features:
        """The features of a picture of the collection, for `similar` and `captions_like`.

        Raises:
            UnknownPicture: no such picture.
        """
        pictures = self.source.pictures()
        self._file(pictures, picture_id)
        features, mask = pictures.store.features([int(pictures.rows[pictures.position[picture_id]])])
        own: Features = features[0][mask[0]]
        return own

    @property
    def has_captions(self) -> bool:
        """Whether the training captions are available; a shipped model comes without them."""
        return self._caption_ranker is not None

    def captions_like(self, features: Features, top: int) -> list[tuple[str, float]]:
        """The training captions that best fit a picture with these features, with CAMP's logits; empty if there are no
        captions."""
        if self._caption_ranker is None:
            return []
        self._caption_ranker.prepare()  # the first time takes long, and other calls need not wait
        with self._lock:
            return self._caption_ranker.rank(*self._encoded(features), top)

    @torch.inference_mode()
    def _vector_of(self, features: Features) -> npt.NDArray[np.float32]:
        """Features [R, region_dim] of one picture -> [1, d]."""
        return np.asarray(self.model.image_vectors(*self._encoded(features)).numpy())

    @torch.inference_mode()
    def _encoded(self, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [R, region_dim] of one picture -> regions [1, R, d] and mask [1, R]."""
        mask = torch.ones(1, len(features), dtype=torch.bool)
        regions = torch.from_numpy(np.asarray(features, np.float32))[None]
        return self.model.encode_regions(regions, mask), mask

    def first(self, top: int, offset: int = 0) -> list[Hit]:
        """The first pictures, in the order of the collection."""
        pictures = self.source.pictures()
        positions = range(len(pictures))[max(0, offset) : max(0, offset) + max(0, top)]
        return _hits(pictures, positions, [0.0] * len(positions))

    def examples(self, count: int) -> list[str]:
        """Short training captions as examples; empty if there are no captions."""
        if self._captions is None or not self._captions.is_file():
            return []
        with input_errors():
            texts = read_table(self._captions, ("text",))["text"].to_pylist()
        few = {text for text in texts if len(text.split()) <= 9 and len(text) <= 60}
        # Chinese, Japanese and Thai put no spaces between words.
        short = sorted(text for text in few if len(self.reader.vocabulary.tokenize(text)) > 3)
        return random.Random(0).sample(short, min(count, len(short)))

    def file(self, picture_id: str) -> PictureFile:
        """The file of a picture of the collection.

        Raises:
            UnknownPicture: no such picture.
        """
        return self._file(self.source.pictures(), picture_id)

    def pixels(self, picture_id: str) -> Pixels:
        """The pixels of a picture, as the detector read it; only if its bytes are those that were indexed.

        Raises:
            UnknownPicture: no such picture.
            RejectedImage: the file is gone or has changed.
        """
        file = self.file(picture_id)
        try:
            return read_image(file.path, file.sha256, self.max_pixels)
        except RejectedImage as error:
            if str(error) == CHANGED:
                raise RejectedImage("changed since it was indexed") from None
            raise

    @staticmethod
    def _file(pictures: Pictures, picture_id: str) -> PictureFile:
        try:
            return pictures.files[picture_id]
        except KeyError:
            raise UnknownPicture(f"picture: {shown(picture_id)} is not in the collection") from None


def _hits(pictures: Pictures, positions: Sequence[int], scores: Sequence[float]) -> list[Hit]:
    found = zip([pictures.ids[at] for at in positions], scores, strict=True)
    return [Hit(picture_id, score, pictures.files[picture_id]) for picture_id, score in found]


def open_workspace(root: Path) -> PictureCollection:
    """Open the pictures and the model of a workspace in which the pipeline has run.

    Raises:
        InputError: something is missing, damaged, or of another detector.
    """
    workspace = Workspace(root)
    if not workspace.model.is_dir():
        raise InputError(
            f"{workspace.model}: is not there: no model has been trained here; expected `make repro` first, or "
            "`dvc checkout` if a training failed after another, or --images and a folder of pictures"
        )
    with input_errors():
        model, vocabulary, _ = load_checkpoint(workspace.model)
    fingerprint = read_fingerprint(workspace.model)
    source = WorkspaceSource(workspace, model, str(workspace.model))
    shortlist = workspace.params.index.shortlist if fingerprint.get("joint_weight") else None
    return PictureCollection(
        source, model, SentenceReader(model, vocabulary, workspace.trained_captions), shortlist, workspace.captions,
        workspace.params.regions.max_pixels, has_zero_threshold(model, fingerprint),
    )  # fmt: skip


def open_folder(images: Path, *, model: Path, cache: Path) -> PictureCollection:
    """Open any folder of pictures, which is indexed in the background after `start`.

    Args:
        images: the folder.
        model: the folder of a checkpoint that says which features it reads (`search.features`).
        cache: folder of the cache of regions and vectors.

    Raises:
        InputError: a folder is missing, the model is damaged, or its detector cannot be loaded.
    """
    with input_errors():
        camp, vocabulary, _ = load_checkpoint(model)
    extraction = Extraction.of_model(model)
    source = FolderSource(images, camp, weights_key(model), model, cache)
    fingerprint = read_fingerprint(model)
    return PictureCollection(
        source, camp, SentenceReader(camp, vocabulary, extraction.captions),
        IndexParams().shortlist if fingerprint.get("joint_weight") else None, None,
        extraction.regions.max_pixels, has_zero_threshold(camp, fingerprint),
    )  # fmt: skip


__all__ = ["Answer", "Features", "Hit", "PairView", "PictureCollection", "Pixels", "RejectedImage", "Status",
           "UnknownPicture", "open_folder", "open_workspace"]  # fmt: skip
