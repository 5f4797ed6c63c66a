"""The registries of `model.matcher` and `model.text`: one line per choice.

Classes are named, not imported, so that reading params does not import torch, which takes seconds.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A class that can be chosen by name."""

    module: str
    name: str
    gates: bool = False
    """Whether a matcher has gates, unless `model.gate` or `model.message_passing` switches them off."""

    def load(self) -> Any:
        """The class itself."""
        return getattr(importlib.import_module(self.module), self.name)


MATCHERS: dict[str, Entry] = {
    "camp": Entry("camp_model.matchers.camp", "CampMatcher", gates=True),
    "scan": Entry("camp_model.matchers.scan", "ScanMatcher"),
    "joint": Entry("camp_model.matchers.joint", "JointMatcher"),
    "sgraf": Entry("camp_model.matchers.sgraf", "SgrafMatcher"),
}
"""Subclasses of `camp_model.matchers.base.Matcher`."""

TEXT_ENCODERS: dict[str, Entry] = {
    "gru": Entry("camp_model.encoders.gru", "GruEncoder"),
    "transformer": Entry("camp_model.encoders.transformer", "TransformerEncoder"),
}
"""Subclasses of `camp_model.encoders.base.TextEncoder`."""
