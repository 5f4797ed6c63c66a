"""Sources of images and captions. A new one is one module and its name in stages.params.dataset."""

from typing import get_args

from stages.params.dataset import SourceName

# Name in dataset.source -> module, imported when chosen.
SOURCES: dict[str, str] = {name: f"stages.sources.{name}" for name in get_args(SourceName)}
