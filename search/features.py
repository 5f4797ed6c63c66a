"""Extracts features of pictures with a detector of the pipeline, which is loaded for the first picture.

A model's folder describes which features the model reads, so that it can be used outside its workspace:

extraction.json      the sections `detector`, `regions` and `captions` of the params that it was trained with
detector/            detector.json, as train_detector wrote it; its weights too where no package or address brings them;
                     sample.npy, the features that a drawn picture has (`search.sample`)
"""

import contextlib
import hashlib
import importlib
import io
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from camp_model.files import replacing_folder, sha256_of, write_json, write_text
from camp_model.regions import ImageRegions
from camp_model.seal import digest_of_values
from search.locking import locked
from search.sample import TOLERANCE, difference, read_sample, sample_picture
from stages.contracts import read_fingerprint, read_object
from stages.detectors import DETECTORS
from stages.detectors.base import Description, RegionExtractor, extract, load_detector
from stages.errors import InputError
from stages.extraction.describing import with_geometry
from stages.params.captions import CaptionsParams
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.params.section import Section

FILE = "extraction.json"
WEIGHTS = "weights.safetensors"


class Extraction(Section):
    """extraction.json: how regions were extracted and captions tokenized for a model's training."""

    detector: DetectorParams
    regions: RegionsParams
    captions: CaptionsParams = CaptionsParams()

    @classmethod
    def of_model(cls, model: Path) -> "Extraction":
        """Read it from a model's folder.

        Raises:
            InputError: the file is missing or wrong; the message names the key.
        """
        path = model / FILE
        values = read_object(path, "what `python -m search.shipping` writes beside a model")
        try:
            extraction = cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        extraction.check_can_extract(path)
        return extraction

    def check_can_extract(self, path: Path) -> None:
        """Raise InputError, which names the file `path`, if these settings cannot extract regions of new pictures."""
        if self.regions.boxes == "given":
            raise InputError(f"{path}: regions.boxes: given: a folder of pictures brings no boxes; expected detected")
        if self.detector.backend == "precomputed":
            raise InputError(f"{path}: detector.backend: precomputed looks at no pictures; expected another model")

    def write(self, model: Path) -> None:
        """Write it into a model's folder."""
        write_json(model / FILE, self.to_dict())


def ready_detector(extraction: Extraction, model: Path, cache: Path) -> Path:
    """The folder of a model's detector; its weights are fetched into `cache`, again if they are damaged or gone.

    Raises:
        InputError: the weights cannot be obtained, or the detector is not the one that the model was trained on.
    """
    own = model / "detector"
    if (own / WEIGHTS).is_file():
        folder = own
    else:
        # With the weights that the model was trained on: a file or a package of one name may hold others in time.
        recorded = Description.load(own).weights_sha256 if (own / "detector.json").is_file() else ""
        folder = cache / "detectors" / digest_of_values([extraction.detector.to_dict(), recorded])[:32]
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not _is_whole(folder):
                backend = importlib.import_module(DETECTORS[extraction.detector.backend])
                # Its messages about weights are for training, and not part of an answer.
                with replacing_folder(folder) as building, contextlib.redirect_stdout(io.StringIO()):
                    backend.resolve(extraction.detector, building, building).save(building)
    _check_same(extraction, folder, model, cache)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a detector's description and weights are there as they were written."""
    try:
        return Description.load(folder).weights_sha256 == sha256_of(folder / WEIGHTS)
    except (InputError, OSError):
        return False


def _check_same(extraction: Extraction, folder: Path, model: Path, cache: Path) -> None:
    """Raise InputError if the model was trained on another detector; warn if features differ with today's libraries.

    If fingerprint.json does not name the detector, the model's detector.json does, if it is there.
    """
    description, file = Description.load(folder), model / "detector/detector.json"
    trained_on = read_fingerprint(model).get("detector")
    if trained_on == description.fingerprint:
        return
    recorded = Description.load(file.parent) if file.is_file() else None
    if recorded and replace(recorded, weights_source="") == replace(description, weights_source=""):
        _compare_features(extraction, folder, model, cache / "detectors" / f"same-{description.fingerprint}.json")
    elif recorded or trained_on:
        where = f"{file}: fingerprint" if trained_on is None else f"{model / 'fingerprint.json'}: detector"
        stated = recorded.fingerprint if recorded and trained_on is None else str(trained_on)
        raise InputError(
            f"{where}: {stated[:12]}, but {FILE} names one that is {description.fingerprint[:12]} here; expected the "
            "detector that the model was trained on"
        )


def _compare_features(extraction: Extraction, folder: Path, model: Path, known: Path) -> None:
    """Warn if the features of the drawn picture differ from the stored ones.

    Args:
        known: a file with the hash of the sample that last agreed, so that it is not extracted again.
    """
    expected = read_sample(model / "detector")
    changed = "trained on the features of this detector as other versions of code or libraries computed them"
    if expected is None:
        print(f"{model}: {changed}; they may differ a little", file=sys.stderr)
        return
    digest = hashlib.sha256(expected.tobytes()).hexdigest()
    if known.is_file() and known.read_text(encoding="utf-8") == digest:
        return
    seen = RegionFinder(folder, extraction.detector, extraction.regions).find_regions(sample_picture()).features
    if (size := difference(seen, expected)) <= TOLERANCE:
        write_text(known, digest)
    else:
        print(f"{model}: {changed}; they differ by up to {size:.2g} standard deviations", file=sys.stderr)


def copy_detector(detector: Path, params: DetectorParams, model: Path) -> None:
    """Write the files that identify the detector to a model's folder; also the weights, if train_detector
    trained them."""
    with replacing_folder(model / "detector") as building:
        shutil.copyfile(detector / "detector.json", building / "detector.json")
        if params.weights == "train":
            shutil.copyfile(detector / WEIGHTS, building / WEIGHTS)


class RegionFinder:
    """A detector and its settings for extracting regions.

    Args:
        folder: folder of detector.json.
        detector: settings that only its backend reads.
        regions: which regions of a picture are kept.
        make_ready: called before the detector is loaded, which may be long after this.
        fingerprint: of the only detector that may be loaded then; None: any.
    """

    def __init__(
        self, folder: Path, detector: DetectorParams, regions: RegionsParams,
        make_ready: Callable[[], object] = lambda: None, fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.detector, self.regions, self._make_ready = folder, detector, regions, make_ready
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._ready: RegionExtractor | None = None

    def extractor(self) -> RegionExtractor:
        """The detector, ready to run on the CPU.

        Raises:
            InputError: it cannot be loaded, is another one by now, or its regions were precomputed.
        """
        with self._lock:
            if self._ready is None:
                self._make_ready()
                if Description.load(self.folder).backend == "precomputed":
                    raise InputError(
                        f"{self.folder / 'detector.json'}: the regions are precomputed; extracting the regions "
                        "of a new picture needs a detector that runs here"
                    )
                loaded = load_detector(self.folder, self.regions, "cpu", self.detector)
                if self._fingerprint not in (None, loaded.fingerprint):
                    raise InputError(f"{self.folder}: is another detector now; restart the search to use it")
                self._ready = cast("RegionExtractor", loaded)
            return self._ready

    def find_regions(self, image: npt.NDArray[np.uint8]) -> ImageRegions:
        """The regions of a picture, uint8 RGB [H, W, 3]."""
        (regions,) = extract(self.extractor(), [image])
        return with_geometry(regions, self.regions)
