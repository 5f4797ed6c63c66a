"""Stage prepare_dataset: check a source's pictures, captions and boxes, and write them as Parquet."""

import importlib
from collections import Counter
from pathlib import Path

from camp_model.files import replacing_folder, write_table
from stages.content.hashes import HASHES
from stages.entry import read_params, stage_main
from stages.params.dataset import SPLITS, DatasetParams
from stages.params.detector import DetectorParams
from stages.params.section import StageSections
from stages.sources import SOURCES
from stages.sources.base import Source, check_folder, shorten_ids
from stages.sources.boxes import turn_boxes_upright
from stages.sources.checks import check_rejected, check_source, check_splits, print_rejected
from stages.sources.pictures import ImageRoot, find_pictures, read_headers
from stages.sources.splits import check_shared_pictures, fill_splits, print_shared_groups
from stages.sources.tables import tables
from stages.workspace import main_root, named_path


class PrepareSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    dataset: DatasetParams = DatasetParams()
    detector: DetectorParams = DetectorParams()


def prepare_dataset(params: DatasetParams, out: Path, pictures: bool = True, hashes: Path | None = None) -> None:
    """Read the source and check everything; only then does the folder `out` appear.

    Args:
        params: the section `dataset`.
        out: folder of images.parquet, captions.parquet, boxes.parquet and, if records were set aside, rejected.parquet;
            for their columns see stages/sources/tables.py.
        pictures: whether the picture files are needed; False if regions are precomputed.
        hashes: file that caches the hashes of pictures (`stages.content.hashes`).

    Raises:
        InputError: the source is invalid, or has too many bad records; `out` is left as it was.
    """
    if params.source != "scenes":
        check_folder(params.image_root(out), "dataset.root")
    with replacing_folder(out) as building:
        source: Source = importlib.import_module(SOURCES[params.source]).read_source(params, building / "images")
        known = {image.image_id for image in source.images}
        for key, folder in source.folders.items():
            if pictures:
                check_folder(folder, key)
        root = ImageRoot(params.image_root(building), [named_path(name) for name in params.linked_folders])
        files = find_pictures(source, root, pictures)
        rejected_ids = known - {image.image_id for image in source.images}
        check_source(source, params.max_rejected_share, frozenset(rejected_ids))
        files = shorten_ids(source, files)
        # The scenes' pictures are drawn anew, so their files are new each time.
        read_headers(source, files, hashes if params.source != "scenes" else None)
        fill_splits(source, params.table.val_share, params.table.test_share)
        check_splits(source)
        print_shared_groups(source)
        check_shared_pictures(source, params.max_shared_share)
        turn_boxes_upright(source)
        check_rejected(source, params.max_rejected_share)
        for name, table in tables(source).items():
            metadata = {"camp.format": f"dataset.{name}", "camp.version": "1"}
            write_table(building / f"{name}.parquet", table.replace_schema_metadata(metadata))
    print_source(source)


def print_source(source: Source) -> None:
    """Print what was written and what was set aside."""
    count = Counter(image.split for image in source.images)
    print(
        f"{len(source.images)} images ({', '.join(f'{split} {count[split]}' for split in SPLITS)}), "
        f"{len(source.captions)} captions, {len(source.boxes)} boxes"
    )
    if without := sum(image.frame is None for image in source.images):
        print(f"{without} images have no file; their regions are precomputed")
    print_rejected(source)


def main() -> None:
    params = read_params(PrepareSections)
    prepare_dataset(
        params.dataset,
        Path("data/dataset"),
        pictures=params.detector.backend != "precomputed",
        hashes=main_root() / HASHES,
    )


if __name__ == "__main__":
    stage_main(main)
