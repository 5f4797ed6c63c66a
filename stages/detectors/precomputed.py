"""Regions that others extracted and published: read where they lie, image by image, into the region store.

train_detector finds out once which image lies where (index.parquet); extract_regions then maps or seeks, so a file of
20 GB is never in memory. `detector.architecture` is the form (see `precomputed_forms`) and `detector.weights` the
folder or file.
"""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from camp_model.files import write_table
from camp_model.regions import ImageRegions
from stages.detectors.base import Description, read_table
from stages.detectors.images import RejectedImage
from stages.detectors.precomputed_forms import PATTERNS, Place, files_of, folder_of, places, read_place
from stages.detectors.weights import sha256_of
from stages.errors import InputError
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.workspace import named_path


def resolve(params: DetectorParams, out: Path, dataset: Path) -> Description:
    """Write the index of the precomputed regions into `out`.

    Raises:
        InputError: no such form, nothing of that form there, or none of the dataset's images in it.
    """
    if params.architecture not in PATTERNS:
        raise InputError(
            f"params.yaml: detector.architecture: {params.architecture!r} is not one of {', '.join(PATTERNS)}, the "
            "forms of detector.backend precomputed"
        )
    source = named_path(params.weights)
    files = files_of(source, params.architecture)
    index: dict[str, Place] = {}
    for place in places(params.architecture, source, dataset):
        index.setdefault(place.image_id, place)
    if not index:
        raise InputError(f"params.yaml: detector.weights: {params.weights!r} holds none of the dataset's images")
    columns = {name: [getattr(place, name) for place in index.values()] for name in Place._fields}
    write_table(out / "index.parquet", pa.table(columns))
    digest = hashlib.sha256(sha256_of(out / "index.parquet").encode())
    for file in tqdm(files, desc="hash", mininterval=2):
        digest.update(sha256_of(file).encode())
    first = read_place(params.architecture, folder_of(source), next(iter(index.values())))
    print(f"{len(index)} images found in {len(files)} files")
    return Description(
        backend="precomputed",
        architecture=params.architecture,
        weights_source=params.weights,
        weights_sha256=digest.hexdigest(),
        region_dim=first["features"].shape[1],
        config={"bytes": sum(file.stat().st_size for file in files)},
    )


class PrecomputedExtractor:
    """Looks an image's regions up in what others extracted."""

    def __init__(self, source: Path, index: dict[str, Place], description: Description, params: RegionsParams) -> None:
        self.folder = folder_of(source)
        self.form = description.architecture
        self.index = index
        self.params = params
        self.fingerprint = description.fingerprint
        self.region_dim = description.region_dim
        self.categories = description.categories
        self.attributes = description.attributes

    def read(self, image_id: str, path: str, width: int, height: int) -> ImageRegions:
        """The regions of one image.

        Raises:
            RejectedImage: there are none.
            InputError: the file is damaged, or there are more than regions.per_image.
        """
        place = self.index.get(image_id)
        if place is None:
            raise RejectedImage("has no precomputed regions")
        values = read_place(self.form, self.folder, place)
        features = values["features"].astype(np.float32)
        where = f"{self.folder / place.file}: {image_id}"
        if features.ndim != 2 or features.shape[1] != self.region_dim:
            raise InputError(f"{where}: features are {list(features.shape)}; expected [regions, {self.region_dim}]")
        count = len(features)
        if count == 0:
            raise RejectedImage("has no precomputed regions")
        if count > self.params.per_image:
            raise InputError(
                f"{where}: has {count} regions; regions.per_image: {self.params.per_image} would lose some"
            )
        own = np.array([values.get("width", width), values.get("height", height)] * 2, dtype=np.float32)
        size = np.array([width or own[0], height or own[1]] * 2, dtype=np.float32)
        boxes = np.asarray(values.get("boxes", np.zeros((count, 4))), dtype=np.float32)
        if boxes.shape != (count, 4):
            raise InputError(f"{where}: boxes are {list(boxes.shape)}; expected [{count}, 4]")
        # A published extraction may have seen the picture at another size than ours.
        boxes = np.clip(boxes * (size / own), 0, size) if own.all() else boxes
        return ImageRegions(
            features=features,
            boxes=boxes,
            scores=np.asarray(values.get("scores", np.zeros(count)), dtype=np.float32),
            classes=np.asarray(values.get("classes", np.full(count, -1)), dtype=np.int32),
            attributes=np.asarray(values.get("attributes", np.full(count, -1)), dtype=np.int32),
            attribute_scores=np.asarray(values.get("attribute_scores", np.zeros(count)), dtype=np.float32),
            width=int(size[0]),
            height=int(size[1]),
        )


def load(folder: Path, description: Description, params: RegionsParams, device: str) -> PrecomputedExtractor:
    """What `description` describes, with the index in `folder`.

    Raises:
        InputError: the index or the files are missing or changed, or the params ask for what they cannot give.
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
    table = read_table(folder / "index.parquet", Place._fields)
    index = {row["image_id"]: Place(**row) for row in table.to_pylist()}
    return PrecomputedExtractor(source, index, description, params)
