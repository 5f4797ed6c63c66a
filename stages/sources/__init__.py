"""Sources of images and captions. A new one is one module and its name in stages.params.dataset."""

from typing import get_args

from stages.params.dataset import SourceName

# Value of dataset.source -> module, imported only if it is chosen.
SOURCES: dict[str, str] = {name: f"stages.sources.{name}" for name in get_args(SourceName)}
