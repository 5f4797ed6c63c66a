"""What looks at pictures: a detector of the pipeline, made ready when the first picture comes."""

import threading
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from camp_model.regions import ImageRegions
from stages.detectors.base import Description, RegionExtractor, extract, load_detector
from stages.detectors.boxes import append_geometry
from stages.errors import InputError
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams


class Looker:
    """A detector and how regions are taken from it.

    Args:
        folder: of detector.json.
        detector: what its backend alone needs to know.
        regions: which regions are kept of a picture.
    """

    def __init__(self, folder: Path, detector: DetectorParams, regions: RegionsParams) -> None:
        self.folder, self.detector, self.regions = folder, detector, regions
        self._lock = threading.Lock()
        self._ready: RegionExtractor | None = None

    def extractor(self) -> RegionExtractor:
        """The detector, ready to run on the CPU.

        Raises:
            InputError: it cannot be loaded, or its regions came from elsewhere.
        """
        with self._lock:
            if self._ready is None:
                if Description.load(self.folder).backend == "precomputed":
                    raise InputError(
                        f"{self.folder / 'detector.json'}: the regions came from elsewhere (precomputed); to look at "
                        "a picture needs a detector that runs here"
                    )
                loaded = load_detector(self.folder, self.regions, "cpu", self.detector)
                self._ready = cast("RegionExtractor", loaded)
            return self._ready

    def look(self, image: npt.NDArray[np.uint8]) -> ImageRegions:
        """The regions of a picture, uint8 RGB [H, W, 3]."""
        (regions,) = extract(self.extractor(), [image])
        return append_geometry(regions) if self.regions.geometry else regions
