"""The region store: features, boxes and classes of every image's regions, in memory-mapped Arrow shards.

A store is a folder: shards `<content key>.arrow`, `manifest.parquet` (a row per image) and `rejected.parquet` (images
that could not be read). Shards never change once written, so several processes may read one while others are added.

Shapes: n images, R regions of an image at most (`max_regions`), D the width of a region's feature (`region_dim`),
k regions of one image. Boxes are (x0, y0, x1, y1) in pixels of the original image, turned upright.
"""

from camp_model.regions.contents import ImageRegions, StoreInfo
from camp_model.regions.shards import (
    MappedShard,
    ShardHeader,
    map_shard,
    read_header,
    read_shard,
    storage_problem,
    write_shard,
)
from camp_model.regions.store import RegionStore, write_manifest, write_rejected

__all__ = [
    "ImageRegions",
    "MappedShard",
    "RegionStore",
    "ShardHeader",
    "StoreInfo",
    "map_shard",
    "read_header",
    "read_shard",
    "storage_problem",
    "write_manifest",
    "write_rejected",
    "write_shard",
]
