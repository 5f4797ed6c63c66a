"""Read a store, and write its tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from camp_model.files import read_table, write_table
from camp_model.regions.contents import Array, StoreInfo, metadata, read_info
from camp_model.regions.shards import MappedShard, map_shard


def write_manifest(folder: Path, info: StoreInfo, rows: Sequence[tuple[str, str, int, int]]) -> None:
    """Write manifest.parquet from rows (image_id, shard's file name, row in it, num_regions), in the store's order."""
    names = ("image_id", "shard", "row", "num_regions")
    kinds = (pa.string(), pa.string(), pa.int32(), pa.int32())
    columns = {name: pa.array([row[i] for row in rows], kinds[i]) for i, name in enumerate(names)}
    table = pa.table(columns).replace_schema_metadata(metadata("regions_manifest", info))
    write_table(folder / "manifest.parquet", table)


def write_rejected(folder: Path, info: StoreInfo, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write rejected.parquet from rows (image_id, path, reason)."""
    names = ("image_id", "path", "reason")
    table = pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})
    write_table(folder / "rejected.parquet", table.replace_schema_metadata(metadata("regions_rejected", info)))


class RegionStore:
    """Reads a memory-mapped store. Opening it reads only the manifest; processes share the pages of the shards.

    Args:
        path: the folder.
        check: whether to check the seal of each shard on its first use, which reads all of it.

    Raises:
        ValueError: the manifest is missing or damaged; later, on its first use, a shard is missing, damaged or of
            another store.
    """

    def __init__(self, path: Path, check: bool = True) -> None:
        self.path, self.check = Path(path), check
        manifest = self.path / "manifest.parquet"
        table = read_table(manifest, (), "a store of regions")
        info, _ = read_info(manifest, table.schema.metadata, "regions_manifest")
        self._take(info, table["image_id"].to_pylist(), *(table[name] for name in ("shard", "row", "num_regions")))
        self._mapped: dict[str, MappedShard] = {}

    @classmethod
    def of(
        cls, path: Path, info: StoreInfo, rows: Sequence[tuple[str, str, int, int]], mapped: Mapping[str, MappedShard]
    ) -> "RegionStore":
        """Make a store of some images of a folder's shards without a manifest, for this process alone.

        The seals of its shards are not checked.

        Args:
            rows: (image_id, shard's file name, row in it, num_regions), as for `write_manifest`.
            mapped: the shards, by file name; one that is missing is mapped on its first use.
        """
        store = cls.__new__(cls)
        store.path, store.check = Path(path), False
        ids = [row[0] for row in rows]
        columns = ([row[i] for row in rows] for i in (1, 2, 3))
        kinds = (pa.string(), pa.int32(), pa.int32())
        store._take(
            info,
            ids,
            *(pa.chunked_array([pa.array(column, kind)]) for column, kind in zip(columns, kinds, strict=True)),
        )
        store._mapped = {name: mapped[name] for name in store._shard_names if name in mapped}
        return store

    @property
    def shard_paths(self) -> list[Path]:
        """The files of the shards."""
        return [self.path / name for name in self._shard_names]

    def _take(
        self, info: StoreInfo, ids: list[str], shard: pa.ChunkedArray, row: pa.ChunkedArray, count: pa.ChunkedArray
    ) -> None:
        self.info = info
        self.region_dim, self.max_regions = info.region_dim, info.max_regions
        self.detector = info.detector
        self.categories, self.attribute_names = info.categories, info.attributes
        self.image_ids: list[str] = ids
        self.num_regions: npt.NDArray[np.int32] = count.to_numpy()
        shards = shard.combine_chunks().dictionary_encode()
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shard_of: Array = shards.indices.to_numpy()
        self._row_in_shard: Array = row.to_numpy()
        self._row_of: dict[str, int] | None = None

    def __reduce__(self) -> tuple[type["RegionStore"], tuple[Path, bool]]:
        # A worker process opens the store itself instead of receiving its arrays.
        return RegionStore, (self.path, self.check)

    def __len__(self) -> int:
        return len(self.image_ids)

    def row_of(self, image_id: str) -> int:
        """The row of an image; raises ValueError if the store does not hold it."""
        if self._row_of is None:
            self._row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        try:
            return self._row_of[image_id]
        except KeyError:
            raise ValueError(f"{self.path}: holds no image {image_id!r}") from None

    def rows_of_shards(self) -> dict[str, npt.NDArray[np.int64]]:
        """File name of each shard -> rows of its images, in the order of the first of them."""
        order = np.argsort(self._shard_of, kind="stable")
        counts = np.bincount(self._shard_of, minlength=len(self._shard_names))
        groups = np.split(order, np.cumsum(counts)[:-1])
        return dict(zip(self._shard_names, groups, strict=True)) if len(self) else {}

    def map_all(self) -> None:
        """Map every shard now, so that the store stays readable even if its files are removed.

        Raises:
            ValueError: a shard is missing, torn or of another store.
        """
        for index in range(len(self._shard_names)):
            self._shard(index)

    def release(self) -> None:
        """Give the pages of the mapped shards back to the system; reading them again brings them again."""
        for shard in list(self._mapped.values()):
            shard.release()

    def mapped_rows(self, rows: Sequence[int] | Array) -> list[tuple[object, int]]:
        """The mapped shard of each image, and the image's row in it; equal ones are the same regions in any store."""
        chosen = np.asarray(rows, dtype=np.int64)
        shards = self._shard_of[chosen]
        identities = {index: self._shard(index).identity for index in np.unique(shards).tolist()}
        numbers = zip(shards.tolist(), self._row_in_shard[chosen].tolist(), strict=True)
        return [(identities[index], row) for index, row in numbers]

    def _shard(self, index: int) -> MappedShard:
        name = self._shard_names[index]
        shard = self._mapped.get(name)
        if shard is None:
            shard = map_shard(self.path / name, self.check)
            if shard.info != self.info:
                raise ValueError(f"{self.path / name}: is of another store than {self.path / 'manifest.parquet'}")
            self._mapped[name] = shard
        return shard

    def features(self, rows: Sequence[int] | Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Features [n, R, D] in the stored dtype, 0 at padding, and the mask bool [n, R], True at real regions."""
        rows = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(rows), self.max_regions, self.region_dim), dtype=self.info.dtype)
        for i, row in enumerate(rows):
            count = self.num_regions[row]
            out[i, :count] = self._real("features", row)
            out[i, count:] = 0
        return out, np.arange(self.max_regions) < self.num_regions[rows][:, None]

    def _real(self, name: str, row: int) -> Array:
        columns = self._shard(int(self._shard_of[row])).columns
        start = columns["starts"][self._row_in_shard[row]]
        values: Array = columns[name][start : start + self.num_regions[row]]
        return values

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
        columns, i = self._shard(int(self._shard_of[row])).columns, self._row_in_shard[row]
        return int(columns["width"][i]), int(columns["height"][i])
