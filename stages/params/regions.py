"""The section `regions`: which regions are kept of an image, and how they are extracted."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Device, Section, Share


class RegionsParams(Section):
    """Which regions are kept of an image, and how they are extracted."""

    per_image: int = Field(default=36, ge=1)
    """Largest number of regions kept per image."""
    min_per_image: int = Field(default=36, ge=1)
    """Smallest number of detected regions kept per image. If it is below per_image, min_score decides on the others."""
    min_score: Share = 0.2
    """Confidence from which a region beyond min_per_image is kept."""
    boxes: Literal["detected", "given", "grid"] = "detected"
    """detected, given (the dataset's boxes; sources scenes and coco), or grid (the cells of `grids`; backend timm)."""
    grids: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(default=(6,), min_length=1)
    """For boxes grid, number of cells on a side of each grid: (6) gives 36 regions, (1, 2, 6) gives 41, in this order,
    each grid row by row."""
    geometry: bool = False
    """Append the box (corners and area as shares of the image) to each feature. Captions speak of locations, which
    pooled features do not contain."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type in which features are stored: float16 or float32."""
    batch_size: int = Field(default=8, ge=1)
    """Images in one forward pass."""
    shard_size: int = Field(default=256, ge=1)
    """Largest number of images in one shard, the unit of resuming and of distribution over workers."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Number of pixels above which an image is rejected before it is decoded."""
    max_rejected_share: Share = 0.01
    """Share of rejected images above which the stage stops."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
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
    """Raise ValueError if the backend cannot give the boxes that `regions.boxes` asks for."""
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
    if regions.boxes == "given" and backend == "precomputed":
        raise ValueError("regions.boxes: given needs a detector that runs, not detector.backend precomputed")
