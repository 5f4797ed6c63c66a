"""One shard: an Arrow IPC file of one record batch, so that a column is one run of memory in the mapped file.

A column of the regions has a list for each image, with one item per region: the values of all images lie one after
another, and offsets give the first of each image.
"""

import ctypes
import json
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from camp_model.files import replacing
from camp_model.regions.contents import Array, ImageRegions, StoreInfo, metadata, read_info
from camp_model.seal import check_seal, seal

DTYPES = {"float16": pa.float16(), "float32": pa.float32()}
COLUMNS = {
    "features": None,
    "boxes": pa.float32(),
    "scores": pa.float32(),
    "classes": pa.int32(),
    "attributes": pa.int32(),
    "attribute_scores": pa.float32(),
}
"""Name of each column with a list per image -> type of its values; None: the store's dtype."""


@dataclass(frozen=True)
class ShardHeader:
    """What a shard contains, without its features."""

    key: str
    image_ids: list[str]
    num_regions: list[int]
    rejected: list[tuple[str, str]]
    """(image_id, reason) of the shard's images that could not be read."""
    info: StoreInfo


def _shape(name: str, info: StoreInfo) -> tuple[int, ...]:
    """The shape of one region's value in a column."""
    return {"features": (info.region_dim,), "boxes": (4,)}.get(name, ())


def storage_problem(info: StoreInfo, regions: ImageRegions) -> str | None:
    """The reason why a store cannot hold these regions of an image; None if it can."""
    if not len(regions.features):
        return "no region"
    if not all(np.isfinite(values).all() for values in (regions.boxes, regions.scores, regions.attribute_scores)):
        return "a box or a score is not finite"
    if not np.isfinite(regions.features).all():
        return "a feature is not finite"
    with np.errstate(over="ignore"):
        stored = regions.features.astype(info.dtype)
    if not np.isfinite(stored).all():
        largest = float(np.abs(regions.features).max())
        return f"a feature is not finite in {info.dtype}: it is {largest:.4g}, above {np.finfo(info.dtype).max:.4g}"
    if regions.features.any() and not stored.any():
        largest = float(np.abs(regions.features).max())
        return f"every feature is 0 in regions.dtype: {info.dtype}: the largest is {largest:.4g}"
    return None


def write_shard(
    path: Path,
    info: StoreInfo,
    key: str,
    images: Sequence[tuple[str, ImageRegions]],
    rejected: Sequence[tuple[str, str]] = (),
) -> None:
    """Write one sealed shard under a temporary name and rename it; the same input gives the same bytes.

    Raises:
        ValueError: an image has no region, more than `max_regions` or features of another width, or a number is not
            finite or outside what the stored dtype holds.
    """
    r, d = info.max_regions, info.region_dim
    for image_id, item in images:
        if len(item.features) > r or item.features.shape[1:] != (d,):
            raise ValueError(f"{image_id}: features of shape {item.features.shape}; expected at most {r} rows of {d}")
        if reason := storage_problem(info, item):
            raise ValueError(f"{image_id}: {reason}")
    counts = [len(item.features) for _, item in images]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    columns = {
        "image_id": pa.array([image_id for image_id, _ in images], pa.string()),
        "num_regions": pa.array(counts, pa.int32()),
    }
    for name, kind in COLUMNS.items():
        columns[name] = _lists(
            name, offsets, [getattr(item, name) for _, item in images], kind or DTYPES[info.dtype], info
        )
    columns |= {name: pa.array([getattr(item, name) for _, item in images], pa.int32()) for name in ("width", "height")}
    batch = pa.record_batch(columns, metadata=metadata("regions", info, key=key, rejected=list(rejected)))
    with replacing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        seal(temporary)


def _lists(name: str, offsets: pa.Array, rows: Sequence[Array], kind: pa.DataType, info: StoreInfo) -> pa.Array:
    """Make a column of n lists from the rows [k, ...] of n images."""
    dtype, shape = kind.to_pandas_dtype(), _shape(name, info)
    values = np.concatenate([np.zeros((0, *shape), dtype), *(np.asarray(row, dtype) for row in rows)])
    if len(values) != offsets[-1].as_py():
        raise ValueError(f"{name}: {len(values)} rows for {offsets[-1]} regions")
    flat = pa.array(values.reshape(-1), type=kind)
    return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, shape[0]) if shape else flat)


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Convert any error from a damaged file without a seal to a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: is damaged ({str(error)[:200]}); expected a shard of regions") from None


def open_shard(path: Path, check: bool = True) -> tuple[pa.RecordBatch, StoreInfo, str, pa.Buffer]:
    """Map a shard.

    Args:
        path: the file.
        check: whether to check the seal, which reads the whole file.

    Returns:
        Its batch, info and version, and the mapped file.

    Raises:
        ValueError: the file is missing, torn, damaged, or no shard.
    """
    try:
        if check:
            check_seal(path)
        file = pa.memory_map(str(path)).read_buffer()
        batch = pa.ipc.open_file(file).get_batch(0)
        batch.validate()  # its buffers are as long as it says
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: is not a complete Arrow file ({str(error)[:200]}); expected a shard of regions"
        ) from None
    return batch, *read_info(path, batch.schema.metadata, "regions"), file


@dataclass(frozen=True)
class MappedShard:
    """A shard whose file is mapped, so that it stays readable after the file is renamed or removed."""

    columns: dict[str, Array]
    """Arrays in the file. Columns of regions are [S, ...] for the S regions of all images (version 1: with padding);
    `starts` [n] holds the first region of each image; `width` and `height` are [n]."""
    info: StoreInfo
    file: pa.Buffer
    """All of the mapped file."""
    identity: object = field(default_factory=object)
    """An object of this mapping alone; another file of the same name has another."""

    def release(self) -> None:
        """Give the pages that were read back to the system; reading them again brings them again."""
        advise = getattr(ctypes.CDLL(None), "madvise", None)
        if advise is not None and hasattr(mmap, "MADV_DONTNEED"):
            # Nothing is lost: the file is mapped only for reading.
            advise(ctypes.c_void_p(self.file.address), ctypes.c_size_t(self.file.size), mmap.MADV_DONTNEED)


def map_shard(path: Path, check: bool = True) -> MappedShard:
    """Map a shard; `check` as in `open_shard`.

    Raises:
        ValueError: the file is missing, torn, or no shard.
    """
    with _read_errors(path):
        batch, info, version, file = open_shard(path, check)
        columns = {}
        for name in COLUMNS:
            values = batch.column(name).values
            while isinstance(values, pa.FixedSizeListArray):
                values = values.values
            columns[name] = values.to_numpy().reshape(-1, *_shape(name, info))
        if version == "1":
            columns["starts"] = np.arange(batch.num_rows) * info.max_regions
        else:
            columns["starts"] = batch.column("features").offsets.to_numpy()[:-1]
        columns |= {name: batch.column(name).to_numpy() for name in ("width", "height")}
        return MappedShard(columns, info, file)


def read_header(path: Path, check: bool = True) -> ShardHeader:
    """Read which images a shard holds, without their features; `check` as in `open_shard`.

    Raises:
        ValueError: the file is missing, torn, or no shard.
    """
    with _read_errors(path):
        batch, info, _, _ = open_shard(path, check)
        values = batch.schema.metadata
        return ShardHeader(
            key=json.loads(values[b"camp.key"]),
            image_ids=batch.column("image_id").to_pylist(),
            num_regions=batch.column("num_regions").to_pylist(),
            rejected=[(image_id, reason) for image_id, reason in json.loads(values[b"camp.rejected"])],
            info=info,
        )


def read_shard(path: Path) -> dict[str, ImageRegions]:
    """The regions of every image in a shard, mapped from the file.

    Raises:
        ValueError: the file is missing, torn, or no shard.
    """
    header, columns = read_header(path), map_shard(path).columns
    images = {}
    for i, (image_id, count) in enumerate(zip(header.image_ids, header.num_regions, strict=True)):
        start = columns["starts"][i]
        arrays = {name: columns[name][start : start + count] for name in COLUMNS}
        images[image_id] = ImageRegions(**arrays, width=int(columns["width"][i]), height=int(columns["height"][i]))
    return images
