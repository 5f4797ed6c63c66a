"""Converts a source's boxes from the frames that they were annotated in to pixels of the upright pictures."""

from collections import defaultdict

import numpy as np

from stages.sources.base import Source
from stages.sources.frames import QUARTER_TURNS, Frame, WrongFrame, fits, upright_boxes


def _unclear_is_stored(source: Source) -> bool | None:
    """Whether frames that a source states for mirrored or half-turned pictures are those of the stored files.

    Width and height do not show it for these pictures, but they do for pictures turned by a quarter, and all frames of
    one source are assumed to be of one kind. If there are no such pictures, the answer is yes, as COCO's own tools read
    pictures; if they contradict one another, it is None.
    """
    quarter = [
        fits(source.stated[image.image_id], image.frame)
        for image in source.images
        if image.image_id in source.stated and image.frame and image.frame.orientation in QUARTER_TURNS
    ]
    seen = any(as_seen and not as_stored for as_seen, as_stored in quarter)
    stored = any(as_stored and not as_seen for as_seen, as_stored in quarter)
    return None if seen and stored else not seen


def _check_pixels(boxes: np.ndarray, frame: Frame) -> None:
    """Raise WrongFrame if boxes are shares of the picture; a box of exactly the first pixel is none."""
    if boxes.max() <= 1 and (boxes % 1).any() and min(frame.width, frame.height) > 2:
        raise WrongFrame("the boxes lie within one pixel; expected pixels, not shares of the picture")


def _check_within(boxes: np.ndarray, frame: Frame, stated: bool) -> None:
    """Raise WrongFrame if boxes reach beyond a picture by more than rounding and careless annotation explain."""
    slack = max(2.0, 0.01 * max(frame.width, frame.height))
    if (boxes < -slack).any() or (boxes > np.array(frame[:2] * 2) + slack).any():
        raise WrongFrame(
            f"the boxes reach beyond the picture of {frame.width} x {frame.height} pixels"
            + ("" if stated else ", and no width and height say what frame they are in")
        )


def turn_boxes_upright(source: Source) -> None:
    """Turn and scale the boxes of `source`, by the sizes that it states for images and by the files' headers.

    All boxes of an image are set aside if its stated frame does not fit the picture, or if one of them reaches beyond
    it. If there is no file, or none whose size can be read, boxes stay in the stated frame.
    """
    frames = {image.image_id: image for image in source.images}
    of_image: defaultdict[str, list[int]] = defaultdict(list)
    for number, box in enumerate(source.boxes):
        of_image[box.image_id].append(number)
    unclear_is_stored, unclear = _unclear_is_stored(source), 0
    gone: set[int] = set()
    for image_id, numbers in of_image.items():
        image = frames[image_id]
        frame, stated = image.frame, source.stated.get(image_id)
        if frame is None or not frame.width:
            continue
        unclear += frame.orientation != 1 and stated is not None and all(fits(stated, frame))
        boxes = np.array([source.boxes[number].box for number in numbers], dtype=np.float64)
        try:
            _check_pixels(boxes, frame)
            turned = upright_boxes(boxes, stated, frame, unclear_is_stored)
            _check_within(turned, frame, stated is not None)
        except WrongFrame as error:
            source.reject("boxes", image.where, str(error))
            gone |= set(numbers)
            continue
        for number, (x0, y0, x1, y1) in zip(numbers, turned.tolist(), strict=True):
            source.boxes[number] = source.boxes[number]._replace(box=(x0, y0, x1, y1))
    source.boxes = [box for number, box in enumerate(source.boxes) if number not in gone]
    if unclear and unclear_is_stored is not None:
        kind = "the file as it is stored" if unclear_is_stored else "the picture as it is seen"
        print(f"{unclear} images are mirrored or turned by half: their boxes are taken as those of {kind}")
