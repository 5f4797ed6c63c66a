"""The plan of an extraction: which images go into which shard, and the content key of each shard.

A shard's key covers everything that its bytes depend on, so a complete shard with the right key is valid, whoever wrote
it and whenever. This makes it possible to resume, to extract incrementally, and to use several devices and machines.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from camp_model.regions import StoreInfo
from stages.contracts import read_table
from stages.detectors.base import Description
from stages.detectors.boxes import GEOMETRY_SCALE
from stages.errors import InputError
from stages.extraction.describing import PlannedImage, store_info
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.params.section import StageSections

# Extraction params that do not change a shard: speed, place, and the tolerated share of rejected images.
_WITHOUT_EFFECT = ("batch_size", "shard_size", "device", "max_rejected_share")


class ExtractSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()
    regions: RegionsParams = RegionsParams()


@dataclass(frozen=True)
class Shard:
    """A run of consecutive images, and the content key of their results."""

    key: str
    images: tuple[PlannedImage, ...]

    @property
    def file_name(self) -> str:
        return f"{self.key}.arrow"


@dataclass(frozen=True)
class Plan:
    """What to extract. The plan is made once; processes and machines get the shards that they are to fill."""

    params: ExtractSections
    pictures: Path
    """The folder that the images' paths start from."""
    detector: Path
    """The folder of detector.json."""
    info: StoreInfo
    total: int
    """Images of the whole dataset."""
    shards: tuple[Shard, ...]

    def of(self, shards: Iterable[Shard]) -> "Plan":
        """The same plan for some of the shards."""
        return replace(self, shards=tuple(shards))


def boundaries(image_ids: Sequence[str], shard_size: int) -> list[tuple[int, int]]:
    """Cut a list of images into runs (start, stop) of at most `shard_size`, mostly longer than half of that.

    Only the ids around a cut decide where it is: an image whose hash is the smallest within half a shard on either side
    starts a run, and a run that is too long is cut evenly. So adding or removing images changes only nearby runs.
    """
    if not image_ids:
        return []
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in image_ids], dtype=np.uint64
    )
    reach = min(shard_size // 2, len(image_ids))
    padded = np.pad(hashes, reach, constant_values=np.iinfo(np.uint64).max)
    smallest = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).min(axis=1)
    starts = [0, *(i for i in np.flatnonzero(hashes == smallest).tolist() if i), len(image_ids)]
    runs: list[tuple[int, int]] = []
    for start, stop in itertools.pairwise(starts):
        parts = -(-(stop - start) // shard_size)
        edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
        runs += itertools.pairwise(edges)
    return runs


def _given_boxes(dataset: Path) -> dict[str, np.ndarray]:
    """The dataset's boxes [k, 4] by image."""
    path = dataset / "boxes.parquet"
    table = read_table(path, ("image_id", "x0", "y0", "x1", "y1"))
    if not table.num_rows:
        raise InputError(f"{path}: is empty; regions.boxes: given needs a dataset that brings boxes")
    boxes = np.stack([table[name].to_numpy() for name in ("x0", "y0", "x1", "y1")], axis=1).astype(np.float32)
    ids = table["image_id"].combine_chunks().dictionary_encode()
    indices = ids.indices.to_numpy()
    order = np.argsort(indices, kind="stable")
    groups = np.split(boxes[order], np.cumsum(np.bincount(indices, minlength=len(ids.dictionary)))[:-1])
    return dict(zip(ids.dictionary.to_pylist(), groups, strict=True))


def plan_shards(params: ExtractSections, dataset: Path, detector: Path) -> Plan:
    """Plan all shards that the store needs, in the order of images.parquet, without opening a picture.

    Args:
        params: the sections of params.yaml that the stage reads.
        dataset: the folder of images.parquet.
        detector: the folder of detector.json.

    Raises:
        InputError: images.parquet, boxes.parquet or detector.json is missing or damaged.
    """
    description = Description.load(detector)
    table = read_table(dataset / "images.parquet", ("image_id", "path", "sha256", "width", "height"))
    columns = [table[name].to_pylist() for name in ("image_id", "path", "sha256", "width", "height")]
    if params.regions.boxes == "given":
        given, none = _given_boxes(dataset), np.zeros((0, 4), np.float32)
        columns.append([given.get(image_id, none) for image_id in columns[0]])
    images = list(itertools.starmap(PlannedImage, zip(*columns, strict=True)))
    prefix = shard_key_prefix(params, description)
    shards = tuple(
        Shard(shard_key(prefix, images[start:stop]), tuple(images[start:stop]))
        for start, stop in boundaries(columns[0], params.regions.shard_size)
    )
    info = store_info(params.regions, description)
    return Plan(params, params.dataset.image_root(dataset), detector, info, len(images), shards)


def shard_key_prefix(params: ExtractSections, description: Description) -> bytes:
    """The part that all shards' keys begin with: everything that decides the results, except the pictures."""
    unread = (*_WITHOUT_EFFECT, *(() if params.regions.boxes == "grid" else ("grids",)))
    effective = {key: value for key, value in params.regions.to_dict().items() if key not in unread}
    options = params.detector.options(description.backend)
    return json.dumps([description.fingerprint, effective, options, GEOMETRY_SCALE], sort_keys=True).encode()


def _stated_size(image: PlannedImage) -> str:
    """The size of a picture without a file, which its precomputed boxes are placed in; empty if it is not known."""
    return f"{image.width} x {image.height}" if image.width and image.height else ""


def shard_key(prefix: bytes, images: Sequence[PlannedImage]) -> str:
    """The content key of a shard of `images`; `prefix` comes from `shard_key_prefix`."""
    digest = hashlib.sha256(prefix)
    digest.update(json.dumps([(image.image_id, image.sha256 or _stated_size(image)) for image in images]).encode())
    for image in images:
        if image.boxes is not None:
            digest.update(f"{len(image.boxes)} boxes".encode())
            digest.update(np.ascontiguousarray(image.boxes).tobytes())
    return digest.hexdigest()[:40]
