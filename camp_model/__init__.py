"""CAMP: Cross-Modal Adaptive Message Passing for text-image retrieval (Wang et al., ICCV 2019).

Notation used for shapes everywhere: `I` images, `C` captions, `P` aligned pairs, `R` regions per image, `N` words per
caption, `d` joint dimension.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camp_model.config import CampConfig
    from camp_model.model import CAMP

__all__ = ["CAMP", "CampConfig"]


def __getattr__(name: str) -> Any:
    # A stage that needs one module of this package neither waits for torch nor depends on the model.
    if name in __all__:
        return getattr(importlib.import_module(f"camp_model.{'model' if name == 'CAMP' else 'config'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
