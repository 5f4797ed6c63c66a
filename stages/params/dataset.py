"""The section `dataset`: where images and captions come from."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from stages.params.section import Section, Seed, Share, Split
from stages.workspace import named_path

SPLITS: tuple[str, ...] = get_args(Split)
SourceName = Literal["scenes", "karpathy", "coco", "table"]
"""Each is a module of stages/sources; options of one source alone are a section of its name below."""


def _below(name: str) -> str:
    """A path below dataset.root: only what lies there is watched for changes."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise PydanticCustomError("below", "leaves dataset.root; expected a path below it")
    return name


Below = Annotated[str, AfterValidator(_below)]


class ScenesParams(Section):
    """The embedded dataset: rendered scenes with captions and boxes."""

    train: int = Field(default=2400, ge=2)
    """Number of training images."""
    val: int = Field(default=320, ge=2)
    """Number of validation images."""
    test: int = Field(default=512, ge=2)
    """Number of test images."""
    image_size: int = Field(default=160, ge=96, le=4096)
    """Side of the square images, in pixels."""
    twin_share: Share = 0.4
    """Share of each split's scenes that are near twins of another scene of the split."""
    seed: Seed = 0
    """Seed of the scenes; equal seeds draw equal pictures."""


class KarpathyParams(Section):
    """A split JSON in the form of dataset_flickr8k.json, dataset_flickr30k.json and dataset_coco.json."""

    annotations: Below = "dataset.json"
    """The split JSON, below dataset.root."""
    images: Below = "images"
    """Folder of the pictures, below dataset.root."""
    restval: Literal["train", "val", "test", "skip"] = "train"
    """The split that `restval` images join: train, val, test, or skip to leave them out."""


class CocoPart(Section):
    """One COCO annotation file."""

    split: Split
    """train, val or test."""
    images: Below
    """Folder of the pictures, below dataset.root."""
    captions: Below
    """The caption annotations, below dataset.root."""
    instances: Below | None = None
    """The instance annotations that bring the boxes, below dataset.root."""


class CocoParams(Section):
    """COCO caption annotations and image folders."""

    parts: tuple[CocoPart, ...] = ()
    """One entry per annotation file: split, images, captions and, for boxes, instances (presets/coco.yaml)."""
    test_share: Share = 0.5
    """If no part has the split test, share of the val images that becomes it, chosen by a hash of the image id."""


class TableParams(Section):
    """Your own pictures: a CSV, Parquet or JSONL with the columns image and caption, optionally split or group."""

    file: Below = "captions.csv"
    """The table, below dataset.root."""
    images: Below = "."
    """Folder that the column `image` starts from, below dataset.root."""
    val_share: Share = 0.1
    """If the table has no column `split`, share of the images that becomes the val split, chosen by a hash."""
    test_share: Share = 0.1
    """If the table has no column `split`, share of the images that becomes the test split, chosen by a hash."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.val_share + self.test_share >= 1:
            raise ValueError(
                "dataset.table: val_share and test_share leave nothing to train; expected less than 1 in all"
            )
        return self


class DatasetParams(Section):
    """Where images and captions come from."""

    source: SourceName = "scenes"
    """scenes, karpathy, coco or table."""
    root: str = "data/raw"
    """Folder that a source other than `scenes` reads, relative to the repository or absolute."""
    linked_folders: tuple[str, ...] = ()
    """Folders outside dataset.root that links below it may lead to, relative to the repository or absolute. Links that
    params name, and links into DVC's cache, are always allowed."""
    max_rejected_share: Share = 0.01
    """Largest share of the images, of the captions and of the boxes that may be set aside; above it the stage stops."""
    max_shared_share: Share = 0.05
    """Largest share of the images whose file may also be an image of another split; above it the stage stops."""
    scenes: ScenesParams = ScenesParams()
    karpathy: KarpathyParams = KarpathyParams()
    coco: CocoParams = CocoParams()
    table: TableParams = TableParams()

    def image_root(self, dataset: Path) -> Path:
        """The folder that `path` in images.parquet starts from; `dataset` is the folder of images.parquet."""
        return dataset / "images" if self.source == "scenes" else named_path(self.root)
