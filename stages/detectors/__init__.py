"""What finds the regions of an image. Adding a detector is one module and one line here."""

# Name in detector.backend -> module, imported when chosen. The module has two functions:
#   resolve(params: DetectorParams, out: Path, dataset: Path) -> Description     weights into `out`, ready to run
#   load(folder: Path, description: Description, regions: RegionsParams, device: str) -> RegionExtractor
DETECTORS = {
    "torchvision": "stages.detectors.torchvision",
    "detectron2": "stages.detectors.detectron2",
    "precomputed": "stages.detectors.precomputed",
}
