"""The section `regions`: which regions are kept of an image, and how they are extracted."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Device, Section, Share


class RegionsParams(Section):
    """Which regions are kept of an image, and how they are extracted."""

    per_image: int = Field(default=36, ge=1)
    """At most this many regions are kept of an image."""
    min_per_image: int = Field(default=36, ge=1)
    """At least this many; below per_image the number adapts to how many score min_score."""
    min_score: Share = 0.2
    """Confidence from which a region beyond min_per_image is kept."""
    boxes: Literal["detected", "given", "grid"] = "detected"
    """detected, given (the boxes that the dataset brings), or grid (the cells of `grids`)."""
    grids: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(6,), min_length=1)
    """Cells on a side of each grid that is laid over an image where boxes is grid: (6) is 36 regions, (1, 2, 6) is 41;
    in the order given, each row by row."""
    geometry: bool = False
    """Put the box (its corners and area as shares of the image) at the end of each feature: what a caption says of
    places is not in the pooled features."""
    dtype: Literal["float16", "float32"] = "float16"
    """float16 or float32: how features are stored."""
    batch_size: int = Field(default=8, ge=1)
    """Images in one forward pass."""
    shard_size: int = Field(default=256, ge=1)
    """Images in one shard, the unit of resuming and of fan-out."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """An image that claims more pixels than this is rejected before it is decoded."""
    max_rejected_share: Share = 0.01
    """Share of rejected images above which the stage stops."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_per_image > self.per_image:
            raise ValueError(
                f"regions.min_per_image: {self.min_per_image} is above regions.per_image, {self.per_image}"
            )
        if self.boxes == "grid" and not self.min_per_image <= self.cells <= self.per_image:
            key = "per_image" if self.cells > self.per_image else "min_per_image"
            raise ValueError(
                f"regions.{key}: {getattr(self, key)} does not fit the {self.cells} cells of regions.grids; expected "
                f"regions.min_per_image: {self.cells} and regions.per_image: {self.cells}"
            )
        return self

    @property
    def cells(self) -> int:
        """Regions of an image where boxes is grid."""
        return sum(side * side for side in self.grids)


def check_backend(regions: RegionsParams, backend: str) -> None:
    """ValueError where boxes are asked for that the backend cannot give."""
    if regions.boxes == "detected" and backend == "timm":
        raise ValueError(
            "regions.boxes: detected needs a detector that finds boxes, not detector.backend timm; expected grid or "
            "given"
        )
    if regions.boxes == "grid" and backend != "timm":
        raise ValueError(
            f"regions.boxes: grid needs a network that gives a map, detector.backend timm, not {backend}; expected "
            "detected or given"
        )
