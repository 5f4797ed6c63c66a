"""The region store: what a detector saw in every image, in memory-mapped Arrow shards.

A store is a folder: shards `<content key>.arrow`, `manifest.parquet` (a row per image) and `rejected.parquet` (images
that could not be read). Shards never change once written, so several processes may read one while others are added.

Shapes: n images, R regions of an image at most (`max_regions`), D the width of a region's feature (`region_dim`),
k regions of one image. Boxes are (x0, y0, x1, y1) in pixels of the original image, turned upright.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from camp_model.files import replacing, write_table

Array = npt.NDArray[Any]
VERSION = "1"
DTYPES = {"float16": pa.float16(), "float32": pa.float32()}


@dataclass(frozen=True)
class StoreInfo:
    """What holds for a whole store; written into every file of it."""

    region_dim: int
    max_regions: int
    detector: str
    """Fingerprint of the detector."""
    dtype: str = "float16"
    categories: list[str] = field(default_factory=list)
    """Names that class ids index."""
    attributes: list[str] = field(default_factory=list)
    """Names that attribute ids index."""
    geometry: float = 0.0
    """Scale of the five box numbers at the end of each feature; 0: there are none."""


@dataclass
class ImageRegions:
    """The k regions of one image, most confident first."""

    features: Array
    """[k, D]"""
    boxes: Array
    """float32 [k, 4]; all 0 where no box is known"""
    scores: Array
    """float32 [k], probability of the class"""
    classes: Array
    """int32 [k], -1 for none"""
    attributes: Array
    """int32 [k], -1 for none"""
    attribute_scores: Array
    """float32 [k]"""
    width: int
    height: int


@dataclass(frozen=True)
class ShardHeader:
    """What a whole shard says of itself."""

    key: str
    image_ids: list[str]
    num_regions: list[int]
    rejected: list[tuple[str, str]]
    """(image_id, reason) of the shard's images that could not be read."""
    info: StoreInfo


def _metadata(name: str, info: StoreInfo, **extra: Any) -> dict[bytes, bytes]:
    values = {"camp.format": name, "camp.version": VERSION, "camp.info": json.dumps(asdict(info), sort_keys=True)}
    values |= {f"camp.{key}": json.dumps(value) for key, value in extra.items()}
    return {key.encode(): value.encode() for key, value in values.items()}


def _read_info(path: Path, metadata: dict[bytes, bytes] | None, name: str) -> StoreInfo:
    metadata = metadata or {}
    found = metadata.get(b"camp.format", b"").decode(), metadata.get(b"camp.version", b"").decode()
    if found != (name, VERSION):
        raise ValueError(f"{path}: is of format {found[0]!r} version {found[1]!r}; expected {name!r} version {VERSION}")
    return StoreInfo(**json.loads(metadata[b"camp.info"]))


def _fixed(values: Array, kind: pa.DataType) -> pa.Array:
    """[n, ...] as a column of n fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind)
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))


def _stack(rows: Sequence[Array], shape: tuple[int, ...], dtype: str, fill: int = 0) -> Array:
    """Rows [k, ...] of differing k, padded with `fill`: [n, *shape]."""
    out = np.full((len(rows), *shape), fill, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def write_shard(
    path: Path,
    info: StoreInfo,
    key: str,
    images: Sequence[tuple[str, ImageRegions]],
    rejected: Sequence[tuple[str, str]] = (),
) -> None:
    """Write one shard under a temporary name and rename it; the same input gives the same bytes.

    Raises:
        ValueError: an image has more than `max_regions` regions or features of another width, or a feature is not
            finite or outside what the stored dtype holds.
    """
    r, d = info.max_regions, info.region_dim
    for image_id, regions in images:
        if len(regions.features) > r or regions.features.shape[1:] != (d,):
            raise ValueError(
                f"{image_id}: features of shape {regions.features.shape}; expected at most {r} rows of {d}"
            )
    with np.errstate(over="ignore"):
        features = _stack([item.features for _, item in images], (r, d), info.dtype)
    finite = np.isfinite(features).all(axis=(1, 2))
    if not finite.all():
        image_id = images[int(np.argmin(finite))][0]
        raise ValueError(f"{image_id}: a feature is not finite in {info.dtype}")
    regions_of = [item for _, item in images]
    columns = {
        "image_id": pa.array([image_id for image_id, _ in images], pa.string()),
        "num_regions": pa.array([len(item.features) for item in regions_of], pa.int32()),
        "features": _fixed(features, DTYPES[info.dtype]),
        "boxes": _fixed(_stack([item.boxes for item in regions_of], (r, 4), "float32"), pa.float32()),
        "scores": _fixed(_stack([item.scores for item in regions_of], (r,), "float32"), pa.float32()),
        "classes": _fixed(_stack([item.classes for item in regions_of], (r,), "int32", -1), pa.int32()),
        "attributes": _fixed(_stack([item.attributes for item in regions_of], (r,), "int32", -1), pa.int32()),
        "attribute_scores": _fixed(
            _stack([item.attribute_scores for item in regions_of], (r,), "float32"), pa.float32()
        ),
        "width": pa.array([item.width for item in regions_of], pa.int32()),
        "height": pa.array([item.height for item in regions_of], pa.int32()),
    }
    # One record batch, so that every column is one run of memory in the mapped file.
    batch = pa.record_batch(columns, metadata=_metadata("regions", info, key=key, rejected=list(rejected)))
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def _open_shard(path: Path) -> tuple[pa.RecordBatch, StoreInfo]:
    """Map a shard. ValueError if it is missing, torn, or no shard."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = reader.get_batch(0)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: is no whole Arrow file ({error}); expected a shard of regions") from None
    return batch, _read_info(path, batch.schema.metadata, "regions")


def read_header(path: Path) -> ShardHeader:
    """Who is in a shard, without its features.

    Raises:
        ValueError: the file is missing, torn, or no shard.
    """
    batch, info = _open_shard(path)
    metadata = batch.schema.metadata
    return ShardHeader(
        key=json.loads(metadata[b"camp.key"]),
        image_ids=batch.column("image_id").to_pylist(),
        num_regions=batch.column("num_regions").to_pylist(),
        rejected=[(image_id, reason) for image_id, reason in json.loads(metadata[b"camp.rejected"])],
        info=info,
    )


def write_manifest(folder: Path, info: StoreInfo, rows: Sequence[tuple[str, str, int, int]]) -> None:
    """Write manifest.parquet from rows (image_id, shard's file name, row in it, num_regions), in the store's order."""
    names = ("image_id", "shard", "row", "num_regions")
    kinds = (pa.string(), pa.string(), pa.int32(), pa.int32())
    columns = {name: pa.array([row[i] for row in rows], kinds[i]) for i, name in enumerate(names)}
    table = pa.table(columns).replace_schema_metadata(_metadata("regions_manifest", info))
    write_table(folder / "manifest.parquet", table)


def write_rejected(folder: Path, info: StoreInfo, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write rejected.parquet from rows (image_id, path, reason)."""
    names = ("image_id", "path", "reason")
    table = pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})
    write_table(folder / "rejected.parquet", table.replace_schema_metadata(_metadata("regions_rejected", info)))


class RegionStore:
    """Reads a store, memory-mapped: opening reads the manifest alone, workers share the pages of the shards.

    Raises:
        ValueError: the manifest is missing or no manifest; and, on first use of a shard, if that is missing, torn or
            of another store.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        manifest = self.path / "manifest.parquet"
        try:
            table = pq.read_table(manifest)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{manifest}: cannot be read ({error}); expected a store of regions") from None
        self.info = _read_info(manifest, table.schema.metadata, "regions_manifest")
        self.region_dim, self.max_regions = self.info.region_dim, self.info.max_regions
        self.detector = self.info.detector
        self.categories, self.attribute_names = self.info.categories, self.info.attributes
        self.image_ids: list[str] = table["image_id"].to_pylist()
        self.num_regions: npt.NDArray[np.int32] = table["num_regions"].to_numpy()
        shards = table["shard"].combine_chunks().dictionary_encode()
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shard_of: Array = shards.indices.to_numpy()
        self._row_in_shard: Array = table["row"].to_numpy()
        self._row_of: dict[str, int] | None = None
        self._columns: dict[int, dict[str, Array]] = {}

    def __reduce__(self) -> tuple[type["RegionStore"], tuple[Path]]:
        # A worker process opens the store itself instead of receiving its arrays.
        return RegionStore, (self.path,)

    def __len__(self) -> int:
        return len(self.image_ids)

    def row_of(self, image_id: str) -> int:
        """The row of an image. ValueError if the store does not hold it."""
        if self._row_of is None:
            self._row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        try:
            return self._row_of[image_id]
        except KeyError:
            raise ValueError(f"{self.path}: holds no image {image_id!r}") from None

    def _shard(self, index: int) -> dict[str, Array]:
        """The columns of a shard as arrays that lie in the mapped file."""
        columns = self._columns.get(index)
        if columns is None:
            path = self.path / self._shard_names[index]
            batch, info = _open_shard(path)
            if info != self.info:
                raise ValueError(f"{path}: is of another store than {self.path / 'manifest.parquet'}")
            n, r, d = batch.num_rows, self.max_regions, self.region_dim
            shapes = {"features": (n, r, d), "boxes": (n, r, 4)} | dict.fromkeys(
                ("scores", "classes", "attributes", "attribute_scores"), (n, r)
            )
            columns = {name: batch.column(name).values.to_numpy().reshape(shape) for name, shape in shapes.items()}
            columns |= {name: batch.column(name).to_numpy() for name in ("width", "height")}
            self._columns[index] = columns
        return columns

    def features(self, rows: Sequence[int] | Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Features [n, R, D] in the stored dtype and the mask [n, R], True at real regions."""
        rows = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(rows), self.max_regions, self.region_dim), dtype=self.info.dtype)
        for i, row in enumerate(rows):
            out[i] = self._shard(int(self._shard_of[row]))["features"][self._row_in_shard[row]]
        return out, np.arange(self.max_regions) < self.num_regions[rows][:, None]

    def _real(self, name: str, row: int) -> Array:
        values: Array = self._shard(int(self._shard_of[row]))[name][self._row_in_shard[row]]
        return values[: self.num_regions[row]]

    def boxes(self, row: int) -> Array:
        """float32 [k, 4] of one image."""
        return self._real("boxes", row)

    def scores(self, row: int) -> Array:
        """float32 [k], probability of each region's class."""
        return self._real("scores", row)

    def classes(self, row: int) -> Array:
        """int32 [k], indices of `categories`, -1 for none."""
        return self._real("classes", row)

    def attributes(self, row: int) -> Array:
        """int32 [k], indices of `attribute_names`, -1 for none."""
        return self._real("attributes", row)

    def attribute_scores(self, row: int) -> Array:
        """float32 [k]."""
        return self._real("attribute_scores", row)

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of the original image, in pixels."""
        shard, i = self._shard(int(self._shard_of[row])), self._row_in_shard[row]
        return int(shard["width"][i]), int(shard["height"][i])
