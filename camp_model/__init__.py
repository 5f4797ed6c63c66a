"""CAMP: Cross-Modal Adaptive Message Passing for text-image retrieval (Wang et al., ICCV 2019).

Notation used for tensor shapes everywhere:

    I, C    images, captions
    P       aligned pairs: image p with caption p
    B       items of one kind (images or captions), or the pairs of a training batch
    R, N    regions per image, words per caption
    L, M    vectors per item of the side in question, and of the other side: R and N, or N and R
    d       joint dimension; region_dim and word_dim are those of the inputs
    ...     leading dimensions: [P] for aligned pairs, [I, C] for all pairs (`camp_model.matchers.prepared.Layout`)
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
