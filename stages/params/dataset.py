"""The section `dataset`: where images and captions come from."""

from dataclasses import dataclass, field
from pathlib import Path

from stages.errors import InputError
from stages.params.checks import at_least, choose, share
from stages.workspace import named_path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ScenesParams:
    """The embedded dataset: rendered scenes with captions and boxes."""

    train: int = 2400
    """Number of training images."""
    val: int = 320
    """Number of validation images."""
    test: int = 512
    """Number of test images."""
    image_size: int = 160
    """Side of the square images, in pixels."""
    twin_share: float = 0.4
    """Share of each split's scenes that are near twins of another scene of the split."""
    seed: int = 0
    """Which scenes are drawn: the same seed, the same pictures."""

    def __post_init__(self) -> None:
        at_least("dataset.scenes", self, train=2, val=2, test=2, image_size=96, seed=0)
        share("dataset.scenes", self, "twin_share")


@dataclass(frozen=True)
class KarpathyParams:
    """A split JSON in the form of dataset_flickr8k.json, dataset_flickr30k.json and dataset_coco.json."""

    annotations: str = "dataset.json"
    """The split JSON, below dataset.root."""
    images: str = "images"
    """Folder of the pictures, below dataset.root."""
    restval: str = "train"
    """Where the split `restval` goes: train, val, test or skip."""

    def __post_init__(self) -> None:
        choose("dataset.karpathy", "restval", self.restval, (*SPLITS, "skip"))


@dataclass(frozen=True)
class CocoPart:
    """One COCO annotation file."""

    split: str
    """train, val or test."""
    images: str
    """Folder of the pictures, below dataset.root."""
    captions: str
    """The caption annotations, below dataset.root."""
    instances: str | None = None
    """The instance annotations that bring the boxes, below dataset.root."""

    def __post_init__(self) -> None:
        choose("dataset.coco.parts", "split", self.split, SPLITS)


@dataclass(frozen=True)
class CocoParams:
    """COCO caption annotations and image folders."""

    parts: tuple[CocoPart, ...] = ()
    """The annotation files: split, images, captions and, where boxes are wanted, instances of each."""
    test_share: float = 0.5
    """Share of the val images that becomes the test split where no part is test; chosen by a hash of the id."""

    def __post_init__(self) -> None:
        share("dataset.coco", self, "test_share")


@dataclass(frozen=True)
class TableParams:
    """A CSV or Parquet with the columns image and caption, and maybe split or group: a person's own pictures."""

    file: str = "captions.csv"
    """The table, below dataset.root."""
    images: str = "."
    """Folder that the column `image` starts from, below dataset.root."""
    val_share: float = 0.1
    """Share of the images that becomes the val split where the table has no column `split`; chosen by a hash."""
    test_share: float = 0.1
    """Share of the images that becomes the test split where the table has no column `split`; chosen by a hash."""

    def __post_init__(self) -> None:
        share("dataset.table", self, "val_share", "test_share")
        if self.val_share + self.test_share >= 1:
            raise InputError(
                "dataset.table: val_share and test_share leave nothing to train; expected less than 1 in all"
            )


@dataclass(frozen=True)
class DatasetParams:
    """Where images and captions come from."""

    source: str = "scenes"
    """scenes, karpathy, coco or table."""
    root: str = "data/raw"
    """Folder that a source other than `scenes` reads, relative to the repository or absolute."""
    linked_folders: tuple[str, ...] = ()
    """Folders elsewhere that links below dataset.root may lead to, relative to the repository or absolute; a link that
    the params themselves name, and one into the cache of DVC, need none."""
    max_rejected_share: float = 0.01
    """Share of the images, of the captions and of the boxes that may be set aside before the stage stops."""
    max_shared_share: float = 0.05
    """Share of the images whose file may also be an image of another split before the stage stops."""
    scenes: ScenesParams = field(default_factory=ScenesParams)
    karpathy: KarpathyParams = field(default_factory=KarpathyParams)
    coco: CocoParams = field(default_factory=CocoParams)
    table: TableParams = field(default_factory=TableParams)

    def __post_init__(self) -> None:
        from stages.sources import SOURCES

        choose("dataset", "source", self.source, tuple(SOURCES))
        share("dataset", self, "max_rejected_share", "max_shared_share")

    def image_root(self, dataset: Path) -> Path:
        """The folder that `path` in images.parquet starts from; `dataset` is the folder of images.parquet."""
        return dataset / "images" if self.source == "scenes" else named_path(self.root)
