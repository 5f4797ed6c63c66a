"""What finds the regions of an image. Adding a detector is one module and one line here."""

# Name in detector.backend -> module, imported when chosen.
DETECTORS = {
    "torchvision": "stages.detectors.torchvision",
    "detectron2": "stages.detectors.detectron2",
    "precomputed": "stages.detectors.precomputed",
}
