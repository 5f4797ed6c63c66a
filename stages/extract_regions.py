"""Stage extract_regions: extract the pictures' regions with the detector, into content-keyed shards.

Threads read, check and resize pictures in advance, the device runs the network, and another thread writes, so that none
waits for the others. `--shards 2/4` extracts every fourth shard, from the second on, and stops there, so that several
processes, devices or machines can share a workspace; the plain run then only finishes the store.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from camp_model.files import remove_unused
from stages.contracts import read_table
from stages.entry import read_params, stage_main
from stages.errors import InputError, printable
from stages.extraction.filling import devices, extract_missing, extract_on_devices
from stages.extraction.plan import ExtractSections, Shard, plan_shards
from stages.extraction.shard_folder import link_existing_shards, missing_shards, shard_folder
from stages.extraction.store import finish_store

SHOWN = 10
"""Rejected images that are printed."""
DATASET, DETECTOR, OUT = Path("data/dataset"), Path("data/detector"), Path("data/regions")


def extract_regions(params: ExtractSections, dataset: Path, detector: Path, out: Path, folder: Path) -> None:
    """Run the whole stage: extract what is missing in the folder of shards, then make the store `out` from them.

    Raises:
        InputError: an input is missing or damaged, or too many images are rejected.
    """
    plan = plan_shards(params, dataset, detector)
    folder.mkdir(parents=True, exist_ok=True)
    link_existing_shards(plan.shards, out, folder)
    names = devices(params.regions.device)
    extracted = extract_on_devices(plan.of(missing_shards(plan.shards, folder)), folder, names)
    images, rejected = finish_store(plan, folder, out)
    remove_unused(folder, {shard.file_name for shard in plan.shards})
    shards = f"{len(plan.shards)} shards ({len(extracted)} extracted now)"
    print(f"{images} images in {shards}, {rejected} rejected")
    bare = sum(image.boxes is not None and not len(image.boxes) for shard in plan.shards for image in shard.images)
    if bare:
        print(f"{bare} images have no boxes in {dataset / 'boxes.parquet'}; their only region is the whole picture")
    most = params.regions.per_image
    more = sum(image.boxes is not None and len(image.boxes) > most for shard in plan.shards for image in shard.images)
    if more:
        print(f"{more} images have more boxes than regions.per_image, {most}: the largest are their regions")
    if rejected:
        print(f"{out / 'rejected.parquet'}: which images were rejected, and why")
        first = read_table(out / "rejected.parquet", ("path", "reason")).slice(0, SHOWN).to_pylist()
        print("\n".join(f"  {printable(row['path'])}: {row['reason'][:200]}" for row in first))


def share_of(text: str, shards: Sequence[Shard]) -> list[Shard]:
    """The shards of a share: `2/4` is every fourth shard from the second on."""
    number, _, shares = text.partition("/")
    if not (number.isdecimal() and shares.isdecimal() and len(text) < 20 and 1 <= int(number) <= int(shares)):
        raise InputError(f"--shards: {text[:40]!r} is not a part such as 2/4")
    return list(shards[int(number) - 1 :: int(shares)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Extract the regions of all images, as params.yaml says.")
    parser.add_argument("--shards", help="only this part of the shards, such as 2/4; does not finish the store")
    parser.add_argument(
        "--device", help="auto, cpu, cuda, cuda:N or mps, for --shards: one device; auto takes the first"
    )
    arguments = parser.parse_args()
    params = read_params(ExtractSections)
    if arguments.shards is None:
        if arguments.device is not None:
            raise InputError("--device: only with --shards; regions.device of params.yaml is the whole stage's")
        extract_regions(params, DATASET, DETECTOR, OUT, shard_folder())
        return
    device = None if arguments.device is None else devices(arguments.device, "--device")[0]
    plan = plan_shards(params, DATASET, DETECTOR)
    extract_missing(plan.of(share_of(arguments.shards, plan.shards)), shard_folder(), device)


if __name__ == "__main__":
    stage_main(main, arguments=True)
