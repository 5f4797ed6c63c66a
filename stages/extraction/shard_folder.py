"""The project's own folder of shards, hard-linked with the store and DVC's cache, so that the bytes are on disk once.

DVC removes an output before it runs the stage, or copies all of it if the output persists. So shards are written to
`.work/shards` of the main workspace and linked into the store at the end. A killed run, an experiment or a cluster
worker finds there what others have extracted.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from camp_model.files import replacing
from camp_model.regions import ShardHeader, read_header
from stages.detectors.images import PASSING_REASONS
from stages.extraction.plan import Shard
from stages.workspace import main_root

SHARDS = Path(".work/shards")
NO_MEMORY = ("cannot be decoded: MemoryError", "cannot be decoded: Unable to allocate")
"""What `decode` says, in Python's and numpy's words, if the machine has too little memory."""


def shard_folder() -> Path:
    """The folder of shards that all workspaces of this project share."""
    return main_root() / SHARDS


def complete_header(path: Path, shard: Shard) -> ShardHeader | None:
    """The header of a file; None unless the file is the complete `shard`."""
    if not path.exists():
        return None
    try:
        header = read_header(path)
    except ValueError:
        return None
    return header if header.key == shard.key else None


def may_pass(reason: str) -> bool:
    """Whether an image that was rejected for this reason should be tried again, because its bytes may be fine."""
    return reason in PASSING_REASONS or reason.startswith(NO_MEMORY)


def is_complete(shard: Shard, folder: Path) -> bool:
    """Whether the shard is there and complete, with no image that should be tried again."""
    header = complete_header(folder / shard.file_name, shard)
    return header is not None and not any(may_pass(reason) for _, reason in header.rejected)


def missing_shards(shards: Iterable[Shard], folder: Path) -> list[Shard]:
    """The shards still to be extracted: those that are absent, and those with images to try again."""
    return [shard for shard in shards if not is_complete(shard, folder)]


def absent_shards(shards: Iterable[Shard], folder: Path) -> list[Shard]:
    """The shards that are absent; a shard counts as present even if it has images to try again."""
    return [shard for shard in shards if complete_header(folder / shard.file_name, shard) is None]


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy if the file system has no hard links."""
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def link_existing_shards(shards: Sequence[Shard], store: Path, folder: Path) -> None:
    """Link into `folder` the shards that only the store or DVC's cache has, as after `dvc pull`."""
    absent = absent_shards(shards, folder)
    committed = _committed(store) if absent else {}
    for shard in absent:
        for path in (store / shard.file_name, committed.get(shard.file_name)):
            if path is not None and complete_header(path, shard):
                link(path, folder / shard.file_name)
                break


def _committed(store: Path) -> dict[str, Path]:
    """The store's files in DVC's cache by dvc.lock, name -> path: DVC has removed the store itself."""
    if not Path(".dvc").is_dir() or not store.resolve().is_relative_to(Path.cwd()):
        return {}
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            (output,) = repo.find_outs_by_path(str(store))
            files = output.get_obj() or ()
            return {"/".join(name): Path(output.cache.oid_to_path(item.value)) for name, _, item in files}
    except DvcException:
        return {}
    except (sqlite3.Error, OSError) as error:  # DVC's own database: its disk is full, or another process holds it
        print(f"shards in DVC's cache are not looked for: {type(error).__name__}: {str(error)[:200]}")
        return {}
