"""Where images and captions come from. Adding a source is one module and one line here."""

# Name in dataset.source -> module, imported when chosen.
SOURCES = {
    "scenes": "stages.sources.scenes",
    "karpathy": "stages.sources.karpathy",
    "coco": "stages.sources.coco",
    "table": "stages.sources.table",
}
