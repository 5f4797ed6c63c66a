"""Which images go into which shard, which shards are missing, and the tables that make a store of them.

A shard's content key covers everything its bytes depend on, so a shard whose key is present and whole is right,
whoever wrote it and whenever: that gives resuming, incremental runs and fan-out over devices and machines.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from camp_model.regions import StoreInfo, read_header, write_manifest, write_rejected
from stages.contracts import read_table
from stages.detectors.base import GEOMETRY_DIM, GEOMETRY_SCALE, Description
from stages.detectors.images import PASSING_REASONS
from stages.errors import InputError
from stages.params.dataset import DatasetParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams, check_boxes
from stages.params.section import StageSections

# Extraction params that change nothing in a shard: how fast, where, and what is tolerated.
_WITHOUT_EFFECT = ("batch_size", "shard_size", "device", "max_rejected_share")


class ExtractSections(StageSections):
    """What the stage reads of params.yaml."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()
    regions: RegionsParams = RegionsParams()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        check_boxes(self.regions, self.dataset)
        return self


class PlannedImage(NamedTuple):
    """A row of images.parquet, with the boxes to describe where the params ask for given ones."""

    image_id: str
    path: str
    sha256: str
    width: int
    height: int
    boxes: np.ndarray | None = None
    """float32 [k, 4]"""


@dataclass(frozen=True)
class Shard:
    """A run of consecutive images and the content key of what will be known of them."""

    key: str
    images: tuple[PlannedImage, ...]

    @property
    def file_name(self) -> str:
        return f"{self.key}.arrow"


def store_info(params: RegionsParams, description: Description) -> StoreInfo:
    """What holds for all shards of a run."""
    return StoreInfo(
        region_dim=description.region_dim + (GEOMETRY_DIM if params.geometry else 0),
        max_regions=params.per_image,
        detector=description.fingerprint,
        dtype=params.dtype,
        categories=description.categories,
        attributes=description.attributes,
        geometry=GEOMETRY_SCALE if params.geometry else 0.0,
    )


def boundaries(image_ids: Sequence[str], shard_size: int) -> list[tuple[int, int]]:
    """Cut a list of images into runs (start, stop) of at most `shard_size`, mostly more than half of that.

    Where a cut falls is decided by the ids around it alone: an image whose hash is the smallest within half a shard
    on either side starts a run, and a run that is too long is cut evenly. So images added or taken away somewhere
    change the runs there and no others.
    """
    if not image_ids:
        return []
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in image_ids], dtype=np.uint64
    )
    reach = shard_size // 2
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


def plan_shards(params: ExtractSections, dataset: Path, detector: Path) -> list[Shard]:
    """All shards that the store needs, in the order of images.parquet; quick, opens no picture.

    Args:
        params: what the stage reads of params.yaml.
        dataset: the folder of images.parquet.
        detector: the folder of detector.json.

    Raises:
        InputError: images.parquet, boxes.parquet or detector.json is missing or damaged.
    """
    description = Description.load(detector)
    table = read_table(dataset / "images.parquet", ("image_id", "path", "sha256", "width", "height"))
    given = _given_boxes(dataset) if params.regions.boxes == "given" else None
    images = [
        PlannedImage(**row, boxes=None if given is None else given.get(row["image_id"], np.zeros((0, 4), np.float32)))
        for row in table.to_pylist()
    ]
    effective = {key: value for key, value in params.regions.to_dict().items() if key not in _WITHOUT_EFFECT}
    options = params.detector.options(description.backend)
    head = json.dumps([description.fingerprint, effective, options, GEOMETRY_SCALE], sort_keys=True).encode()
    return [
        _shard(head, images[start:stop])
        for start, stop in boundaries([image.image_id for image in images], params.regions.shard_size)
    ]


def _shard(head: bytes, images: Sequence[PlannedImage]) -> Shard:
    digest = hashlib.sha256(head)
    for image in images:
        digest.update(json.dumps([image.image_id, image.sha256]).encode())
        if image.boxes is not None:
            digest.update(np.ascontiguousarray(image.boxes).tobytes())
    return Shard(digest.hexdigest()[:40], tuple(images))


def is_whole(shard: Shard, out: Path) -> bool:
    """Whether the shard is there, complete, and need not be tried again."""
    path = out / shard.file_name
    if not path.exists():
        return False
    try:
        header = read_header(path)
    except ValueError:
        return False
    return header.key == shard.key and not any(reason in PASSING_REASONS for _, reason in header.rejected)


def missing_shards(shards: Sequence[Shard], out: Path) -> list[Shard]:
    """The shards that are still to be extracted into `out`."""
    return [shard for shard in shards if not is_whole(shard, out)]


class StoreCounts(NamedTuple):
    """What a finished store holds."""

    images: int
    rejected: int


def check_rejected(
    rejected: Sequence[tuple[str, str, str]], total: int, params: RegionsParams, sofar: str = ""
) -> None:
    """InputError when more than `max_rejected_share` of all images were rejected; rows are (image_id, path, reason)."""
    if len(rejected) > params.max_rejected_share * total:
        examples = "; ".join(f"{path}: {reason}" for _, path, reason in rejected[:3])
        raise InputError(
            f"params.yaml: regions.max_rejected_share: {len(rejected)} of {total} images are rejected{sofar}, more "
            f"than the allowed share of {params.max_rejected_share:g} ({examples})"
        )


def finish_store(params: ExtractSections, detector: Path, shards: Sequence[Shard], out: Path) -> StoreCounts:
    """Write manifest.parquet and rejected.parquet over shards that are all there, and remove what is not theirs.

    Raises:
        InputError: more images than allowed were rejected; nothing is written then.
        RuntimeError: a shard is missing.
    """
    rows: list[tuple[str, str, int, int]] = []
    rejected: list[tuple[str, str, str]] = []
    for shard in shards:
        try:
            header = read_header(out / shard.file_name)
        except ValueError as error:
            raise RuntimeError(f"{error}; all shards must be extracted before the store is finished") from None
        paths = {image.image_id: image.path for image in shard.images}
        rows += [
            (image_id, shard.file_name, row, count)
            for row, (image_id, count) in enumerate(zip(header.image_ids, header.num_regions, strict=True))
        ]
        rejected += [(image_id, paths[image_id], reason) for image_id, reason in header.rejected]
    check_rejected(rejected, len(rows) + len(rejected), params.regions)
    info = store_info(params.regions, Description.load(detector))
    _retry(lambda: write_rejected(out, info, rejected))
    _retry(lambda: write_manifest(out, info, rows))
    _prune(out, {shard.file_name for shard in shards})
    return StoreCounts(len(rows), len(rejected))


def _retry(write: Any) -> None:
    """Write a table, once more if another process that finishes the same store took our temporary for a stale one."""
    try:
        write()
    except FileNotFoundError:
        write()


def _prune(out: Path, wanted: set[str]) -> None:
    """Remove shards of other content and temporaries of killed runs."""
    for path in out.iterdir():
        if (path.suffix == ".arrow" and path.name not in wanted) or (path.name[0] == "." and path.suffix == ".tmp"):
            path.unlink(missing_ok=True)
