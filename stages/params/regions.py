"""The section `regions`: which regions are kept of an image, and how they are extracted."""

from dataclasses import dataclass

from stages.errors import InputError
from stages.params.checks import at_least, choose, share


@dataclass(frozen=True)
class RegionsParams:
    """Which regions are kept of an image, and how they are extracted."""

    per_image: int = 36
    """At most this many regions are kept of an image."""
    min_per_image: int = 36
    """At least this many; below per_image the number adapts to how many score min_score."""
    min_score: float = 0.2
    """Confidence from which a region beyond min_per_image is kept."""
    nms_iou: float = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""
    boxes: str = "detected"
    """detected, or given: the boxes that the dataset brings."""
    geometry: bool = False
    """Put the box (its corners and area as shares of the image) at the end of each feature: what a caption says of
    places is not in the pooled features."""
    dtype: str = "float16"
    """float16 or float32: how features are stored."""
    batch_size: int = 8
    """Images in one forward pass."""
    shard_size: int = 256
    """Images in one shard, the unit of resuming and of fan-out."""
    max_pixels: int = 50_000_000
    """An image that claims more pixels than this is rejected before it is decoded."""
    max_rejected_share: float = 0.01
    """Share of rejected images above which the stage stops."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        choose("regions", "boxes", self.boxes, ("detected", "given"))
        choose("regions", "dtype", self.dtype, ("float16", "float32"))
        at_least("regions", self, per_image=1, min_per_image=1, batch_size=1, shard_size=1, max_pixels=1)
        share("regions", self, "min_score", "nms_iou", "max_rejected_share")
        if self.min_per_image > self.per_image:
            raise InputError(
                f"regions.min_per_image: {self.min_per_image} is above regions.per_image, {self.per_image}"
            )
