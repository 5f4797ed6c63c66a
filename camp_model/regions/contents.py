"""The contents of a region store, and the metadata that identifies each of its files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
VERSION = "2"
READABLE = ("1", "2")
"""Version 1 padded every image to `max_regions` in its shards."""


@dataclass(frozen=True)
class StoreInfo:
    """Facts about a whole store, written into each of its files."""

    region_dim: int
    max_regions: int
    detector: str
    """Fingerprint of the detector."""
    dtype: str = "float16"
    categories: list[str] = field(default_factory=list)
    """Names that class ids index."""
    attributes: list[str] = field(default_factory=list)
    """Names that attribute ids index."""
    geometry: float = 0.0
    """Scale of the five box numbers at the end of each feature; 0: there are none."""


@dataclass
class ImageRegions:
    """The k regions of one image, most confident first."""

    features: Array
    """[k, D]"""
    boxes: Array
    """float32 [k, 4]; all 0 where no box is known"""
    scores: Array
    """float32 [k], probability of the class"""
    classes: Array
    """int32 [k], -1 for none"""
    attributes: Array
    """int32 [k], -1 for none"""
    attribute_scores: Array
    """float32 [k]"""
    width: int
    height: int


def metadata(name: str, info: StoreInfo, **extra: Any) -> dict[bytes, bytes]:
    """Make the metadata of a file of a store: its format `name`, the version, `info` and `extra`."""
    values = {"camp.format": name, "camp.version": VERSION, "camp.info": json.dumps(asdict(info), sort_keys=True)}
    values |= {f"camp.{key}": json.dumps(value) for key, value in extra.items()}
    return {key.encode(): value.encode() for key, value in values.items()}


def read_info(path: Path, values: dict[bytes, bytes] | None, name: str) -> tuple[StoreInfo, str]:
    """Read the info and the version from a file's metadata.

    Raises:
        ValueError: the file is of another format, or of a version that cannot be read.
    """
    values = values or {}
    name_there = values.get(b"camp.format", b"")[:40].decode(errors="replace")
    version = values.get(b"camp.version", b"")[:40].decode(errors="replace")
    if name_there != name or version not in READABLE:
        raise ValueError(
            f"{path}: is of format {name_there!r} version {version!r}; expected {name!r} version "
            f"{' or '.join(READABLE)}"
        )
    return StoreInfo(**json.loads(values[b"camp.info"])), version
