"""The same regions in another store."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from camp_model.captions import CaptionTable, write_captions
from camp_model.regions import ImageRegions, RegionStore, write_manifest, write_shard


def rewrite_store(folder: Path, order: Sequence[int], shard_size: int, name: Callable[[str], str] = str) -> None:
    """Write a store again with its images in another order, in shards of another size and by other ids."""
    store = RegionStore(folder)
    rows = []
    for row in order:
        features, mask = store.features([row])
        found = ImageRegions(
            np.float32(features[0][mask[0]]), store.boxes(row), store.scores(row), store.classes(row),
            store.attributes(row), store.attribute_scores(row), *store.size(row),
        )  # fmt: skip
        rows.append((name(store.image_ids[row]), found))
    rejected = folder / "rejected.parquet"
    kept = rejected.read_bytes() if rejected.exists() else None
    again = folder.with_name("again")
    manifest = []
    for start in range(0, len(rows), shard_size):
        part, shard = rows[start : start + shard_size], f"{start}.arrow"
        write_shard(again / shard, store.info, shard, part)
        manifest += [(image_id, shard, at, len(found.features)) for at, (image_id, found) in enumerate(part)]
    write_manifest(again, store.info, manifest)
    if kept is not None:
        (again / rejected.name).write_bytes(kept)
    shutil.rmtree(folder)
    again.rename(folder)


def rewrite_captions(path: Path, order: Sequence[int], name: Callable[[str], str] = str) -> None:
    """Write a caption table again with its rows in another order and images by other ids."""
    table = CaptionTable.load(path)
    tokens, lengths = table.batch(np.array(order))
    ids = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    images, texts = ([column[row] for row in order] for column in (table.image_ids, table.texts))
    write_captions(path, table.caption_ids[np.array(order)].tolist(), [name(image) for image in images], texts, ids)
