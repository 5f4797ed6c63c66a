"""Detectors, which find the regions of an image. A new one is one module and its name in stages.params.detector."""

from typing import get_args

from stages.params.detector import Backend

# Value of detector.backend -> module, imported only if it is chosen. The module has two functions:
#   resolve(params: DetectorParams, out: Path, dataset: Path) -> Description     writes weights to `out`
#   load(folder: Path, description: Description, regions: RegionsParams, device: str, options: DetectorParams)
#       -> RegionExtractor or PrecomputedRegions
DETECTORS: dict[str, str] = {name: f"stages.detectors.{name}" for name in get_args(Backend)}
