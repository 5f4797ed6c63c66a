"""The section `dataset`: where images and captions come from."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from stages.params.section import Section, Seed, Share, Split
from stages.workspace import named_path

SPLITS: tuple[str, ...] = get_args(Split)
SourceName = Literal["scenes", "karpathy", "coco", "table"]
"""A module of stages/sources each, and what it alone needs to know a section of the same name below."""


def _below(name: str) -> str:
    """A path below dataset.root: of what lies elsewhere nobody would see that it has changed."""
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
    image_size: int = Field(default=160, ge=96)
    """Side of the square images, in pixels."""
    twin_share: Share = 0.4
    """Share of each split's scenes that are near twins of another scene of the split."""
    seed: Seed = 0
    """Which scenes are drawn: the same seed, the same pictures."""


class KarpathyParams(Section):
    """A split JSON in the form of dataset_flickr8k.json, dataset_flickr30k.json and dataset_coco.json."""

    annotations: Below = "dataset.json"
    """The split JSON, below dataset.root."""
    images: Below = "images"
    """Folder of the pictures, below dataset.root."""
    restval: Literal["train", "val", "test", "skip"] = "train"
    """Where the split `restval` goes: train, val, test or skip."""


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
    """The annotation files: split, images, captions and, where boxes are wanted, instances of each."""
    test_share: Share = 0.5
    """Share of the val images that becomes the test split where no part is test; chosen by a hash of the id."""


class TableParams(Section):
    """A CSV, Parquet or JSONL with the columns image and caption, and maybe split or group: a person's own pictures."""

    file: Below = "captions.csv"
    """The table, below dataset.root."""
    images: Below = "."
    """Folder that the column `image` starts from, below dataset.root."""
    val_share: Share = 0.1
    """Share of the images that becomes the val split where the table has no column `split`; chosen by a hash."""
    test_share: Share = 0.1
    """Share of the images that becomes the test split where the table has no column `split`; chosen by a hash."""

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
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
    """Folders elsewhere that links below dataset.root may lead to, relative to the repository or absolute; a link that
    the params themselves name, and one into the cache of DVC, need none."""
    max_rejected_share: Share = 0.01
    """Share of the images, of the captions and of the boxes that may be set aside before the stage stops."""
    max_shared_share: Share = 0.05
    """Share of the images whose file may also be an image of another split before the stage stops."""
    scenes: ScenesParams = ScenesParams()
    karpathy: KarpathyParams = KarpathyParams()
    coco: CocoParams = CocoParams()
    table: TableParams = TableParams()

    def image_root(self, dataset: Path) -> Path:
        """The folder that `path` in images.parquet starts from; `dataset` is the folder of images.parquet."""
        return dataset / "images" if self.source == "scenes" else named_path(self.root)
