"""Splits by hash: an image gets the same split wherever, and with whatever else, it is read."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice

from stages.errors import InputError, shown
from stages.sources.base import Source, SourceImage


def position(key: str) -> float:
    """Map a key to a number between 0 and 1."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def hashed_split(image: SourceImage, val_share: float, test_share: float) -> str:
    """The split of an image that states none: by its group, else by the bytes of its file, else by its path.

    Using the bytes keeps two copies of one picture in one split.
    """
    share = position(f"group {image.group}" if image.group else image.sha256 or image.path)
    return "test" if share < test_share else "val" if share < test_share + val_share else "train"


def fill_splits(source: Source, val_share: float, test_share: float) -> None:
    """Give every image without a split one."""
    source.images = [
        image if image.split else image._replace(split=hashed_split(image, val_share, test_share))
        for image in source.images
    ]


def _first(names: Iterable[str]) -> str:
    """At most ten of the names, and `...` if there are more."""
    some = list(islice(names, 11))
    return ", ".join([*some[:10], *(["..."] if len(some) > 10 else [])])


def print_shared_groups(source: Source) -> None:
    """Print how many groups, and which, have images in several splits; a table that states both columns allows this."""
    splits_of: defaultdict[str, set[str]] = defaultdict(set)
    for image in source.images:
        if image.group:
            splits_of[image.group].add(image.split)
    shared = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if shared:
        names = _first(f"{shown(group)} ({', '.join(sorted(splits_of[group]))})" for group in shared)
        print(f"{len(shared)} of {len(splits_of)} groups are in several splits; stated splits go first: {names}")


def check_shared_pictures(source: Source, max_share: float) -> None:
    """Print how many images, and which, have the same file, byte for byte, as another image in the dataset.

    Raises:
        InputError: more than `max_share` of all images have the same file as an image of another split.
    """
    splits_of: defaultdict[str, set[str]] = defaultdict(set)
    first_of: dict[tuple[str, str], str] = {}
    copies = []
    for image in source.images:
        if image.sha256:
            splits_of[image.sha256].add(image.split)
            first = first_of.setdefault((image.sha256, image.split), image.image_id)
            if first != image.image_id:
                copies.append(f"{shown(image.image_id)} and {shown(first)} ({image.split})")
    if copies:
        print(
            f"{len(copies)} of {len(source.images)} images are the same picture as another of their split, but do not "
            f"count as right for its captions: {_first(copies)}"
        )
    shared = sorted(
        (image for image in source.images if len(splits_of.get(image.sha256, ())) > 1),
        key=lambda image: (image.sha256, image.split),
    )
    if not shared:
        return
    names = _first(f"{shown(image.image_id)} ({image.split})" for image in shared)
    message = f"{len(shared)} of {len(source.images)} images are the same picture in two splits: {names}"
    if len(shared) > max_share * len(source.images):
        raise InputError(f"{message}; that is more than dataset.max_shared_share: {max_share:g} allows")
    print(message)
