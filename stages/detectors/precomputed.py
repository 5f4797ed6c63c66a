"""Regions that others extracted and published: read where they lie, image by image, into the region store.

train_detector finds out once which image lies where (index.parquet); extract_regions then maps or seeks, so a file of
20 GB is never in memory. `detector.architecture` is the form and `detector.weights` the folder or file:

- `scan`: SCAN's `{train,dev,test}_ims.npy` [rows, R, D] beside `{train,dev,test}_caps.txt`. They name no images, so an
  image is recognised by its captions. They hold no boxes.
- `tsv`: the tab-separated base64 float32 of bottom-up attention (image_id, image_w, image_h, num_boxes, boxes,
  features) and of LXMERT (with ids and confidences of objects and attributes); a file or a folder of them.
- `npz`: a folder of one .npz per image, named like it: features as x, features or feat; boxes as bbox or boxes.
"""

import base64
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from camp_model.regions import ImageRegions, replacing
from stages.detectors.base import Description, read_table
from stages.detectors.images import RejectedImage
from stages.detectors.weights import sha256_of
from stages.params import DetectorParams, InputError, RegionsParams

FORMS = ("scan", "tsv", "npz")
BUTD_FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_FIELDS = ("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes",
                 "boxes", "features")  # fmt: skip


class Place(NamedTuple):
    """Where one image's regions lie."""

    image_id: str
    file: str
    """Below the folder that detector.weights names."""
    position: int
    """Row of a .npy, byte offset of a line of a .tsv, 0 for an .npz."""


class ImageNames:
    """Finds the dataset's image for a name that others gave it: its id, its file's stem, or the number in that."""

    def __init__(self, dataset: Path) -> None:
        table = read_table(dataset / "images.parquet", ("image_id", "path"))
        self.image_of: dict[str, str] = {}
        numbers: dict[str, set[str]] = defaultdict(set)
        for image_id, path in zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True):
            stem = PurePosixPath(path).stem
            self.image_of.setdefault(stem, image_id)
            if number := re.search(r"(\d+)$", stem):
                numbers[str(int(number[1]))].add(image_id)
        for number_text, images in numbers.items():
            if len(images) == 1:
                self.image_of.setdefault(number_text, next(iter(images)))
        self.image_of |= {image_id: image_id for image_id in table["image_id"].to_pylist()}

    def find(self, name: str) -> str | None:
        """The image id, or None."""
        stem = PurePosixPath(name).stem
        number = re.search(r"(\d+)$", stem)
        keys = (name, stem, str(int(number[1])) if number else name)
        return next((self.image_of[key] for key in keys if key in self.image_of), None)


def _plain(caption: str) -> str:
    """Letters and digits alone: tokenizers differ in spaces, case and punctuation."""
    return "".join(filter(str.isalnum, caption.lower()))


def _npy(path: Path) -> np.ndarray:
    """An array that stays on disk."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as .npy ({error})") from None
    if array.ndim != 3 or array.dtype.kind != "f":
        raise InputError(f"{path}: holds {array.dtype} {list(array.shape)}; expected floats [rows, regions, dim]")
    return array


def _scan_places(folder: Path, dataset: Path) -> Iterator[Place]:
    table = read_table(dataset / "captions.parquet", ("image_id", "text"))
    images_with = defaultdict(set)
    for image_id, text in zip(table["image_id"].to_pylist(), table["text"].to_pylist(), strict=True):
        images_with[_plain(text)].add(image_id)
    for file in _files(folder, "*_ims.npy"):
        features, texts = _npy(file), file.with_name(file.name.replace("_ims.npy", "_caps.txt"))
        if not texts.is_file():
            raise InputError(f"{texts}: is missing; its captions say which images {file.name} holds")
        captions = texts.read_text(encoding="utf-8").splitlines()
        per_row, rest = divmod(len(captions), len(features))
        if rest or not per_row:
            raise InputError(
                f"{texts}: {len(captions)} captions do not divide among the {len(features)} rows of {file.name}"
            )
        start = 0
        for stop in range(1, len(features) + 1):
            # Evaluation splits repeat an image once per caption: one row of them is enough.
            if stop < len(features) and np.array_equal(features[stop, 0], features[start, 0]):
                continue
            votes = Counter(
                image for line in captions[start * per_row : stop * per_row] for image in images_with[_plain(line)]
            )
            best = votes.most_common(2)
            if len(best) == 2 and best[0][1] == best[1][1]:
                raise InputError(f"{file}: row {start}: its captions fit {best[0][0]!r} and {best[1][0]!r} alike")
            if best:
                yield Place(best[0][0], file.name, start)
            start = stop


def _tsv_places(folder: Path, files: list[Path], names: ImageNames) -> Iterator[Place]:
    for file in files:
        with (
            file.open("rb") as lines,
            tqdm(total=file.stat().st_size, unit="B", unit_scale=True, desc=file.name, mininterval=2) as bar,
        ):
            offset = 0
            for line in lines:
                image_id = names.find(line.split(b"\t", 1)[0].decode("utf-8", "replace"))
                if image_id is not None:
                    yield Place(image_id, str(file.relative_to(folder)), offset)
                offset += len(line)
                bar.update(len(line))


def _files(source: Path, pattern: str) -> list[Path]:
    files = [source] if source.is_file() else sorted(source.glob(pattern))
    if not files:
        raise InputError(
            f"params.yaml: detector.weights: {str(source)!r} holds no {pattern}; expected a folder of them"
        )
    return files


def _locate(params: DetectorParams, dataset: Path) -> tuple[list[Path], Iterator[Place]]:
    """The files of the chosen form and the places in them."""
    source = Path(params.weights)
    folder = source.parent if source.is_file() else source
    if params.architecture == "scan":
        files = _files(source, "*_ims.npy")
        return files, _scan_places(folder, dataset)
    names = ImageNames(dataset)
    if params.architecture == "tsv":
        files = _files(source, "*.tsv")
        return files, _tsv_places(folder, files, names)
    files = _files(source, "*.npz")
    found = ((names.find(file.stem), file.name) for file in files)
    return files, (Place(image_id, name, 0) for image_id, name in found if image_id is not None)


def resolve(params: DetectorParams, out: Path, dataset: Path) -> Description:
    """Write the index of the precomputed regions into `out`.

    Raises:
        InputError: no such form, nothing of that form there, or none of the dataset's images in it.
    """
    if params.architecture not in FORMS:
        raise InputError(
            f"params.yaml: detector.architecture: {params.architecture!r} is not one of {', '.join(FORMS)}, the forms "
            "of detector.backend precomputed"
        )
    files, places = _locate(params, dataset)
    index: dict[str, Place] = {}
    for place in places:
        index.setdefault(place.image_id, place)
    if not index:
        raise InputError(f"params.yaml: detector.weights: {params.weights!r} holds none of the dataset's images")
    columns = {name: [getattr(place, name) for place in index.values()] for name in Place._fields}
    with replacing(out / "index.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)
    digest = hashlib.sha256(sha256_of(out / "index.parquet").encode())
    for file in tqdm(files, desc="hash", mininterval=2):
        digest.update(sha256_of(file).encode())
    first = _read(params.architecture, files[0].parent, next(iter(index.values())))
    print(f"{len(index)} images found in {len(files)} files")
    return Description(
        backend="precomputed",
        architecture=params.architecture,
        weights_source=params.weights,
        weights_sha256=digest.hexdigest(),
        region_dim=first["features"].shape[1],
        config={"bytes": sum(file.stat().st_size for file in files)},
    )


def _decoded(values: dict[str, bytes], name: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(values[name]), dtype=dtype)


def _read_tsv(path: Path, offset: int) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(offset)
        cells = file.readline().rstrip(b"\r\n").split(b"\t")
    fields = {len(BUTD_FIELDS): BUTD_FIELDS, len(LXMERT_FIELDS): LXMERT_FIELDS}.get(len(cells))
    if fields is None:
        raise ValueError(f"{len(cells)} columns; expected {len(BUTD_FIELDS)} or {len(LXMERT_FIELDS)}")
    values = dict(zip(fields, cells, strict=True))
    count = int(values["num_boxes"])
    regions: dict[str, Any] = {
        "features": _decoded(values, "features", "<f4").reshape(count, -1),
        "boxes": _decoded(values, "boxes", "<f4").reshape(count, 4),
        "width": int(values["image_w"]),
        "height": int(values["image_h"]),
    }
    for name, field, dtype in (
        ("classes", "objects_id", "<i8"),
        ("scores", "objects_conf", "<f4"),
        ("attributes", "attrs_id", "<i8"),
        ("attribute_scores", "attrs_conf", "<f4"),
    ):
        if field in values:
            regions[name] = _decoded(values, field, dtype)
    return regions


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:  # members that need unpickling are never opened
        names = {
            "features": ("x", "features", "feat"),
            "boxes": ("bbox", "boxes"),
            "width": ("image_w", "image_width", "width"),
            "height": ("image_h", "image_height", "height"),
        }
        found = {name: next((key for key in keys if key in arrays), None) for name, keys in names.items()}
        if found["features"] is None:
            raise ValueError(
                f"holds {', '.join(arrays)}; expected the features as one of {', '.join(names['features'])}"
            )
        regions: dict[str, Any] = {name: arrays[key] for name, key in found.items() if key is not None}
        if "num_bbox" in arrays:
            count = int(arrays["num_bbox"])
            regions |= {name: regions[name][:count] for name in ("features", "boxes") if name in regions}
    return regions | {name: int(regions[name]) for name in ("width", "height") if name in regions}


def _read(form: str, folder: Path, place: Place) -> dict[str, Any]:
    """What the file knows of one image. InputError if it is damaged."""
    path = folder / place.file
    try:
        if form == "scan":
            return {"features": np.array(_npy(path)[place.position])}
        return _read_tsv(path, place.position) if form == "tsv" else _read_npz(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path}: {place.image_id}, at {place.position}: cannot be read ({error})") from None


class PrecomputedExtractor:
    """Looks an image's regions up in what others extracted."""

    def __init__(self, source: Path, index: dict[str, Place], description: Description, params: RegionsParams) -> None:
        self.folder = source.parent if source.is_file() else source
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
        values = _read(self.form, self.folder, place)
        features = values["features"].astype(np.float32)
        count = len(features)
        where = f"{self.folder / place.file}: {image_id}"
        if count > self.params.per_image:
            raise InputError(
                f"{where}: has {count} regions; regions.per_image: {self.params.per_image} would lose some"
            )
        if features.ndim != 2 or features.shape[1] != self.region_dim:
            raise InputError(f"{where}: features are {list(features.shape)}; expected [regions, {self.region_dim}]")
        own = np.array([values.get("width", width), values.get("height", height)] * 2, dtype=np.float32)
        size = np.array([width or own[0], height or own[1]] * 2, dtype=np.float32)
        boxes = np.asarray(values.get("boxes", np.zeros((count, 4))), dtype=np.float32)
        if len(boxes) != count:
            raise InputError(f"{where}: has {count} features but {len(boxes)} boxes")
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
    source = Path(description.weights_source)
    pattern = {"scan": "*_ims.npy", "tsv": "*.tsv", "npz": "*.npz"}[description.architecture]
    if sum(file.stat().st_size for file in _files(source, pattern)) != description.config["bytes"]:
        raise InputError(f"{source}: changed since train_detector read it; run that stage again")
    table = read_table(folder / "index.parquet", Place._fields)
    places = (Place(**row) for row in table.to_pylist())
    return PrecomputedExtractor(source, {place.image_id: place for place in places}, description, params)
