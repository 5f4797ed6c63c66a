"""The project's own folder of shards, which the store and DVC's cache hold by other names of the same bytes.

DVC removes an output before it runs the stage, or copies all of it where the output persists. So shards are written
into `.work/shards` of the main workspace and linked into the store at the end: a killed run, an experiment and a worker
of a cluster find there what others have extracted, and the bytes are on the disk once.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from camp_model.files import replacing
from camp_model.regions import ShardHeader, read_header
from stages.detectors.images import PASSING_REASONS
from stages.extraction.plan import Shard
from stages.workspace import main_root

SHARDS = Path(".work/shards")


def shard_folder() -> Path:
    """The folder of shards that all workspaces of this project share."""
    return main_root() / SHARDS


def whole_header(path: Path, shard: Shard) -> ShardHeader | None:
    """What a file says of itself; None where it is not `shard`, whole."""
    if not path.exists():
        return None
    try:
        header = read_header(path)
    except ValueError:
        return None
    return header if header.key == shard.key else None


def is_whole(shard: Shard, folder: Path) -> bool:
    """Whether the shard is there, complete, and need not be tried again."""
    header = whole_header(folder / shard.file_name, shard)
    return header is not None and not any(reason in PASSING_REASONS for _, reason in header.rejected)


def missing_shards(shards: Iterable[Shard], folder: Path) -> list[Shard]:
    """The shards that are still to be extracted: those that are not there, and those with images to try again."""
    return [shard for shard in shards if not is_whole(shard, folder)]


def absent_shards(shards: Iterable[Shard], folder: Path) -> list[Shard]:
    """The shards that are not there; one whose unreadable images are set aside is there."""
    return [shard for shard in shards if whole_header(folder / shard.file_name, shard) is None]


def link(source: Path, target: Path) -> None:
    """Make `target` another name of the bytes of `source`; a copy where the file system has no such names."""
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def adopt(shards: Sequence[Shard], store: Path, folder: Path) -> None:
    """Link into `folder` those of the shards that only the store or DVC's cache holds, as after `dvc pull`."""
    absent = absent_shards(shards, folder)
    committed = _committed(store) if absent else {}
    for shard in absent:
        for path in (store / shard.file_name, committed.get(shard.file_name)):
            if path is not None and whole_header(path, shard):
                link(path, folder / shard.file_name)
                break


def _committed(store: Path) -> dict[str, Path]:
    """Where DVC's cache holds the files of the store that dvc.lock knows, by name; DVC has removed the store itself."""
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
