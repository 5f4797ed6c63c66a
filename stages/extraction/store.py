"""The store that the stage writes: links to the shards, and the tables over them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from camp_model.regions import read_header, write_manifest, write_rejected
from stages.errors import InputError, printable
from stages.extraction.plan import Plan
from stages.extraction.shard_folder import link
from stages.params.regions import RegionsParams


def check_rejected_images(
    rejected: Sequence[tuple[str, str, str]], total: int, params: RegionsParams, sofar: str = ""
) -> None:
    """InputError if more than `max_rejected_share` of all images are rejected; rows are (image_id, path, reason)."""
    if len(rejected) > params.max_rejected_share * total:
        examples = "; ".join(f"{printable(path[:200])}: {reason[:200]}" for _, path, reason in rejected[:3])
        raise InputError(
            f"params.yaml: regions.max_rejected_share: {len(rejected)} of {total} images are rejected{sofar}, more "
            f"than the allowed share of {params.max_rejected_share:g} ({examples})"
        )


def finish_store(plan: Plan, folder: Path, out: Path) -> tuple[int, int]:
    """Make the store `out` of the plan's shards, which must all be in `folder`, and remove old shards from it.

    Returns:
        How many images the store holds, and how many are rejected.

    Raises:
        InputError: more images than allowed were rejected; no table is written then.
        RuntimeError: a shard is missing.
    """
    rows: list[tuple[str, str, int, int]] = []
    rejected: list[tuple[str, str, str]] = []
    for shard in plan.shards:
        try:
            header = read_header(folder / shard.file_name)
        except ValueError as error:
            raise RuntimeError(f"{error}; all shards must be extracted before the store is finished") from None
        paths = {image.image_id: image.path for image in shard.images}
        rows += [
            (image_id, shard.file_name, row, count)
            for row, (image_id, count) in enumerate(zip(header.image_ids, header.num_regions, strict=True))
        ]
        rejected += [(image_id, paths[image_id], reason) for image_id, reason in header.rejected]
    check_rejected_images(rejected, plan.total, plan.params.regions)
    for shard in plan.shards:
        _retry(link, folder / shard.file_name, out / shard.file_name)
    _retry(write_rejected, out, plan.info, rejected)
    _retry(write_manifest, out, plan.info, rows)
    _prune(out, {shard.file_name for shard in plan.shards})
    return len(rows), len(rejected)


def _retry(write: Callable[..., None], *arguments: Any) -> None:
    """Write a file, once more if another process that finishes the same store removed our temporary file as stale."""
    try:
        write(*arguments)
    except FileNotFoundError:
        write(*arguments)


def _prune(out: Path, wanted: set[str]) -> None:
    """Remove shards with other content, and temporary files of killed runs."""
    for path in out.iterdir():
        if (path.suffix == ".arrow" and path.name not in wanted) or (path.name[0] == "." and path.suffix == ".tmp"):
            path.unlink(missing_ok=True)
