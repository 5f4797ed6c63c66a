"""CAMP: Cross-Modal Adaptive Message Passing for text-image retrieval (Wang et al., ICCV 2019).

Notation used for shapes everywhere: `I` images, `C` captions, `P` aligned pairs, `R` regions per image, `N` words per
caption, `d` joint dimension.
"""

from typing import TYPE_CHECKING, Any

from camp_model.config import CampConfig

if TYPE_CHECKING:
    from camp_model.model import CAMP

__all__ = ["CAMP", "CampConfig"]


def __getattr__(name: str) -> Any:
    # Reading params needs CampConfig but not the seconds that importing torch takes.
    if name == "CAMP":
        from camp_model.model import CAMP

        return CAMP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
