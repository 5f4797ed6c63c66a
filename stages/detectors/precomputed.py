"""Regions that others extracted and published, read from their files into the region store image by image.

train_detector finds out once where each image's regions are (index.parquet). extract_regions then maps the file or
seeks in it, so that 20 GB are never in memory at once. `detector.architecture` names the format (see
`precomputed_forms`), `detector.weights` the folder or file.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from camp_model.files import sha256_of, write_table
from camp_model.regions import ImageRegions
from stages.contracts import read_table
from stages.detectors.base import Description
from stages.detectors.images import RejectedImage
from stages.detectors.precomputed_forms import (
    PATTERNS,
    StoredRecord,
    files_of,
    folder_of,
    names_in,
    places,
    read_place,
    width_of,
)
from stages.detectors.precomputed_records import BrokenRecord, without_padding
from stages.errors import InputError, shown
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.sources.frames import QUARTER_TURNS, Frame, WrongFrame, fits, upright_boxes
from stages.workspace import named_path

LOOKED_AT = 100
"""Turned pictures that are checked to find out whether the extraction turned them upright."""


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second.get(name, ())) for name in ("features", "boxes") if name in first)


def _index(form: str, folder: Path, candidates: Sequence[StoredRecord]) -> dict[str, StoredRecord]:
    """Choose one record for each image: of several, the first that is not damaged.

    Raises:
        InputError: two undamaged records of one image differ.
    """
    records: dict[str, list[StoredRecord]] = {}
    for place in candidates:
        records.setdefault(place.image_id, []).append(place)
    index, broken = {}, 0
    for image_id, alternatives in records.items():
        chosen, content = alternatives[0], None
        for place in alternatives if len(alternatives) > 1 else ():
            try:
                values = read_place(form, folder, place)
            except BrokenRecord:
                broken += 1
                continue
            if content is None:
                chosen, content = place, values
            elif not _same(content, values):
                raise InputError(
                    f"{folder}: {shown(image_id)} has different regions in {chosen.file} at {chosen.position} and in "
                    f"{place.file} at {place.position}; expected them once"
                )
        index[image_id] = chosen
    if broken:
        print(f"{broken} damaged records are passed over: whole ones of the same images are there")
    return index


def resolve(params: DetectorParams, out: Path, dataset: Path) -> Description:
    """Write the index of the precomputed regions to `out`, and describe them.

    Raises:
        InputError: an unknown form, no file of it, none of the dataset's images in it, or records of one that differ.
    """
    form = params.architecture
    if form not in PATTERNS:
        raise InputError(
            f"params.yaml: detector.architecture: {shown(form)} is not one of {', '.join(PATTERNS)}, the "
            "forms of detector.backend precomputed"
        )
    source = named_path(params.weights)
    files = files_of(source, form)
    index = _index(form, folder_of(source), places(form, source, dataset))
    if not index:
        raise InputError(f"params.yaml: detector.weights: {params.weights[:300]!r} holds none of the dataset's images")
    columns: dict[str, list[Any]] = {
        name: [getattr(place, name) for place in index.values()] for name in StoredRecord._fields
    }
    turned = _turned_frames(dataset)
    columns["orientation"] = [turned[image_id].orientation if image_id in turned else 1 for image_id in index]
    write_table(out / "index.parquet", pa.table(columns))
    digest = hashlib.sha256(sha256_of(out / "index.parquet").encode())
    for file in tqdm(files, desc="hash", mininterval=2):
        digest.update(sha256_of(file).encode())
    print(f"{len(index)} images found in {len(files)} files")
    return Description(
        backend="precomputed",
        architecture=form,
        weights_source=params.weights,
        weights_sha256=digest.hexdigest(),
        region_dim=width_of(form, folder_of(source), index),
        categories=names_in(folder_of(source) / "objects_vocab.txt"),
        attributes=names_in(folder_of(source) / "attributes_vocab.txt"),
        config={
            "bytes": sum(file.stat().st_size for file in files),
            "reads_stored": _reads_stored(form, folder_of(source), index, turned),
        },
    )


def _turned_frames(dataset: Path) -> dict[str, Frame]:
    """The frames, by image id, of pictures that are not stored upright."""
    table = read_table(dataset / "images.parquet", ())
    if "orientation" not in table.column_names:
        return {}
    rows = table.select(["image_id", "width", "height", "orientation"]).to_pylist()
    return {
        row["image_id"]: Frame(row["width"], row["height"], row["orientation"])
        for row in rows
        if (row["orientation"] or 1) != 1
    }


def _reads_stored(form: str, folder: Path, index: dict[str, StoredRecord], turned: dict[str, Frame]) -> bool | None:
    """Whether the extraction read pictures as they are stored, without turning them upright; None if that is unclear.

    It is seen from pictures turned by a quarter: their records state either the upright or the stored frame. The answer
    is needed for frames that are the same both ways, as after half a turn.
    """
    said: set[bool] = set()
    quarter = [name for name, frame in turned.items() if name in index and frame.orientation in QUARTER_TURNS]
    for image_id in quarter[:LOOKED_AT]:
        try:
            stated = read_place(form, folder, index[image_id]).get("frame")
        except BrokenRecord:
            continue
        as_seen, as_stored = fits(stated, turned[image_id]) if stated else (False, False)
        if as_seen != as_stored:
            said.add(as_stored)
    return said.pop() if len(said) == 1 else None


def placed_boxes(
    boxes: np.ndarray, stated: tuple[float, float] | None, frame: Frame, reads_stored: bool | None = None
) -> np.ndarray:
    """Convert published boxes [k, 4] to pixels of our upright picture; for the other arguments see `upright_boxes`.

    Raises:
        RejectedImage: the boxes are not in pixels, or their frame is not the picture's.
    """
    boxes = boxes.astype(np.float64)
    width, height = stated or frame[:2]
    slack = max(2.0, 0.01 * max(width, height))
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise RejectedImage("its boxes are not x0, y0, x1, y1 with finite numbers")
    if (boxes < -slack).any() or (boxes > np.array([width, height] * 2) + slack).any():
        raise RejectedImage(f"its boxes reach beyond their frame of {width:g} x {height:g} pixels")
    # Shares exceed 1 by rounding; all zeros are what a failed extraction leaves.
    if boxes.max() <= 1.5 and min(width, height) > 2:
        raise RejectedImage("its boxes lie within one pixel; expected pixels, not shares of the picture")
    try:
        placed = upright_boxes(boxes, stated, frame, reads_stored)
    except WrongFrame as error:
        raise RejectedImage(str(error)) from None
    clipped: np.ndarray = np.clip(placed, 0, np.array(frame[:2] * 2)).astype(np.float32)
    return clipped


class PrecomputedExtractor:
    """Looks up an image's regions in files that others published."""

    def __init__(
        self,
        source: Path,
        index: dict[str, tuple[StoredRecord, int]],
        description: Description,
        params: RegionsParams,
    ) -> None:
        self.folder = folder_of(source)
        self.form = description.architecture
        self.index = index
        """Image id -> its record, and the EXIF orientation of its picture."""
        self.reads_stored: bool | None = description.config.get("reads_stored")
        self.params = params
        self.padded: set[str] = set()
        """Images whose record had rows of zeros at its end, which were cut."""
        self.fingerprint = description.fingerprint
        self.region_dim = description.region_dim
        self.categories = description.categories
        self.attributes = description.attributes

    def read(self, image_id: str, path: str, width: int, height: int) -> ImageRegions:
        """Return the regions of one image; width and height are those of its upright picture, 0 if unknown.

        Raises:
            RejectedImage: there are none, the record is damaged, or its boxes do not fit the picture.
            InputError: a file cannot be read, or there are more regions than regions.per_image.
        """
        if image_id not in self.index:
            raise RejectedImage("has no precomputed regions")
        place, orientation = self.index[image_id]
        try:
            values = read_place(self.form, self.folder, place)
        except BrokenRecord as error:
            raise RejectedImage(str(error)) from None
        stored, values = len(values["features"]), without_padding(values)
        features, where = values["features"].astype(np.float32), f"{place.file}: {image_id[:100]}"
        count = len(features)
        if count == 0:
            raise RejectedImage("has no precomputed regions")
        if not np.isfinite(features).all():
            raise RejectedImage(f"{where}: a feature is not finite")
        if not features.any():  # as failed extractions leave them
            raise RejectedImage(f"{where}: every feature is 0")
        if features.shape[1] != self.region_dim:
            raise RejectedImage(f"{where}: features are {list(features.shape)}; expected [regions, {self.region_dim}]")
        if count > self.params.per_image:
            raise InputError(
                f"{self.folder / where}: has {count} regions; regions.per_image: {self.params.per_image} would lose "
                "some"
            )
        if count < stored:
            self.padded.add(image_id)
        boxes, frame = self._boxes(values, Frame(width, height, orientation), where)
        return ImageRegions(
            features=features,
            boxes=boxes,
            scores=np.asarray(values.get("scores", np.zeros(count)), dtype=np.float32),
            classes=np.asarray(values.get("classes", np.full(count, -1)), dtype=np.int32),
            attributes=np.asarray(values.get("attributes", np.full(count, -1)), dtype=np.int32),
            attribute_scores=np.asarray(values.get("attribute_scores", np.zeros(count)), dtype=np.float32),
            width=frame.width,
            height=frame.height,
        )

    def _boxes(self, values: dict[str, Any], frame: Frame, where: str) -> tuple[np.ndarray, Frame]:
        """Return the boxes [k, 4] in our frame (0 if unknown), and this frame, from the record if we do not know it.

        Raises:
            RejectedImage: they do not fit the features or the picture, or are unknown but needed for regions.geometry.
        """
        stated, boxes, count = values.get("frame"), values.get("boxes"), len(values["features"])
        if not (frame.width and frame.height) and stated is not None and all(0 < side < 2**31 for side in stated):
            frame = Frame(round(stated[0]), round(stated[1]), 1)
        if self.params.geometry and (boxes is None or not frame.width):
            raise RejectedImage("its boxes or its size are not known; regions.geometry: true needs both")
        if boxes is None:
            return np.zeros((count, 4), np.float32), frame
        if boxes.shape != (count, 4):
            raise RejectedImage(f"{where}: boxes are {list(boxes.shape)}; expected [{count}, 4]")
        boxes = placed_boxes(boxes, stated, frame, self.reads_stored) if frame.width else boxes.astype(np.float32)
        return boxes, frame


def load(
    folder: Path, description: Description, params: RegionsParams, device: str, options: DetectorParams
) -> PrecomputedExtractor:
    """Open the regions that `description` describes, with the index in `folder`.

    Raises:
        InputError: the index or the files are missing or changed, or the params need something that the files lack.
    """
    if params.boxes == "given":
        raise InputError(
            "params.yaml: regions.boxes: given needs a detector that runs, not detector.backend precomputed"
        )
    if params.geometry and description.architecture == "scan":
        raise InputError("params.yaml: regions.geometry: true needs boxes; SCAN's files hold none")
    source = named_path(description.weights_source)
    if sum(file.stat().st_size for file in files_of(source, description.architecture)) != description.config["bytes"]:
        raise InputError(f"{source}: changed since train_detector read it; run that stage again")
    table = read_table(folder / "index.parquet", (*StoredRecord._fields, "orientation"))
    orientations = table["orientation"].to_pylist()
    rows = zip(table.drop_columns(["orientation"]).to_pylist(), orientations, strict=True)
    index = {row["image_id"]: (StoredRecord(**row), orientation) for row, orientation in rows}
    return PrecomputedExtractor(source, index, description, params)
