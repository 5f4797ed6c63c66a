"""Checks on every source, whatever it was read from: bad records are set aside, too many of them are an error."""

from collections import Counter
from collections.abc import Set

from camp_model.files import is_unicode
from stages.errors import InputError, shown
from stages.params.dataset import SPLITS
from stages.sources.base import Source, SourceCaption, SourceImage

SHOWN = 10
"""Rejected records that are printed."""


def _check_images(source: Source) -> None:
    first: dict[str, str] = {}
    images: list[SourceImage] = []
    for image in source.images:
        if image.split not in (*SPLITS, ""):
            source.reject("image", image.where, f"split {shown(image.split)} is not one of {', '.join(SPLITS)}")
        elif image.image_id in first:
            twice = f"image id {shown(image.image_id)} is there twice, first at {first[image.image_id]}"
            source.reject("image", image.where, twice)
        else:
            first[image.image_id] = image.where
            images.append(image)
    source.images = images


def _check_captions(source: Source, known: Set[str]) -> None:
    """Set captions aside, and drop those of images that are among the `known` ids but not in the source any more."""
    listed = {image.image_id for image in source.images}
    captions: list[SourceCaption] = []
    for caption in source.captions:
        if caption.image_id not in known:
            unlisted = f"the caption names image {shown(caption.image_id)}, which is not listed"
            source.reject("caption", caption.where, unlisted)
        elif caption.image_id not in listed:
            continue
        elif not caption.text.strip():
            source.reject("caption", caption.where, f"the caption of image {shown(caption.image_id)} is empty")
        elif not is_unicode(caption.text):
            half = f"the caption {shown(caption.text)} holds half a character (a lone surrogate)"
            source.reject("caption", caption.where, half)
        else:
            captions.append(caption)
    source.captions = captions


def check_source(source: Source, max_share: float = 0.0, rejected_ids: frozenset[str] = frozenset()) -> None:
    """Set aside what no later stage could use.

    That is a wrong split name, a repeated image id, an empty caption, a caption or box without an image, and an image
    without a caption. Captions and boxes of an image that was set aside are dropped without being listed.

    Args:
        source: changed in place.
        max_share: of the images, of the captions and of the boxes that may be set aside.
        rejected_ids: ids of images that were set aside before.

    Raises:
        InputError: more were set aside; a split has no images; or a split that a hash fills has only one.
    """
    known = rejected_ids | {image.image_id for image in source.images}
    _check_images(source)
    _check_captions(source, known)
    captioned = {caption.image_id for caption in source.captions}
    for image in source.images:
        if image.image_id not in captioned:
            missing = f"image {shown(image.image_id)} has no caption; expected at least one"
            source.reject("image", image.where, missing)
    source.images = [image for image in source.images if image.image_id in captioned]
    for box in source.boxes:
        if box.image_id not in known:
            image_id = shown(box.image_id)
            source.reject("box", f"image {image_id}", f"a box names image {image_id}, which is not listed")
    source.boxes = [box for box in source.boxes if box.image_id in captioned]
    check_rejected(source, max_share)
    check_splits(source)


def check_rejected(source: Source, max_share: float) -> None:
    """Raise an InputError that names the first records if more than `max_share` of one kind were set aside.

    For boxes in a wrong frame, which are set aside image by image, it is the share of the images with boxes.
    """
    usable = {
        "image": ("image records", len(source.images)),
        "caption": ("caption records", len(source.captions)),
        "box": ("box records", len(source.boxes)),
        "boxes": ("images' boxes", len({box.image_id for box in source.boxes})),
    }
    for what, (records, count) in usable.items():
        rejected = [row for row in source.rejected if row.what == what]
        everything = count + len(rejected)
        if len(rejected) <= max_share * everything:
            continue
        print_rejected(source)
        raise InputError(
            f"{len(rejected)} of {everything} {records} are rejected, more than dataset.max_rejected_share: "
            f"{max_share:g} allows: {'; '.join(map(str, rejected[:3]))}{'; ...' if len(rejected) > 3 else ''}"
        )


def check_splits(source: Source) -> None:
    """Raise an InputError if a split is empty, or if a hash left it a single image, with no other to compare it with.

    The records that were set aside are printed first. While a hash has still to decide, nothing is checked.
    """
    count = Counter(image.split for image in source.images)
    if "" in count:
        return
    empty = [split for split in SPLITS if not count[split]]
    for split in empty or [split for split in SPLITS if count[split] == 1 and split in source.hashed_splits]:
        print_rejected(source)
        if split in source.hashed_splits:
            share, remedy = source.hashed_splits[split]
            left = f"{share} left the split {split} {'a single image' if count[split] else 'empty'}"
            raise InputError(f"{left}, of {len(source.images)} images in all; {remedy}")
        raise InputError(f"dataset: the split {split} holds no image; expected some in each of {', '.join(SPLITS)}")


def print_rejected(source: Source) -> None:
    """Print how many records were set aside, and the first of them."""
    if not source.rejected:
        return
    counts = Counter(row.what for row in source.rejected)
    print(f"{len(source.rejected)} rejected ({', '.join(f'{what} {count}' for what, count in counts.items())}):")
    for row in source.rejected[:SHOWN]:
        print(f"  {row}")
    if len(source.rejected) > SHOWN:
        print(f"  ... and {len(source.rejected) - SHOWN} more")
