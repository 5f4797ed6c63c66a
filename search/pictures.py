"""The pictures that can be searched at one moment, and the sources that provide them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from camp_model.regions import ImageRegions, RegionStore
from stages.indexing.engines import Engine, Vectors, vector_ids


class PictureFile(NamedTuple):
    """The file of a picture."""

    folder: Path
    """Folder that paths are relative to."""
    sha256: str
    """sha256 of the indexed bytes; empty if unknown."""
    name: str
    """Path below the folder, for display."""

    @property
    def path(self) -> Path:
        """Path of the file; computed on request, because few are needed."""
        return self.folder / self.name


@dataclass(frozen=True)
class Pictures:
    """The n pictures that can be searched; immutable, a later state is another object."""

    store: RegionStore
    ids: Sequence[str]
    """[n]"""
    rows: npt.NDArray[np.int64]
    """[n], rows of the store."""
    files: dict[str, PictureFile]
    """By id."""
    engine: Engine
    """Has a vector of each, by `vector_ids`."""
    version: str = field(default_factory=lambda: uuid4().hex)
    """Differs from that of every other state, so that two answers of one version are of the same pictures."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def position(self) -> dict[str, int]:
        """Id -> position."""
        return {name: at for at, name in enumerate(self.ids)}

    @cached_property
    def alphabetical(self) -> npt.NDArray[np.int64]:
        """[n], the position of each picture in the order of ids, which breaks ties of scores."""
        positions = np.empty(len(self.ids), np.int64)
        positions[sorted(range(len(self.ids)), key=self.ids.__getitem__)] = np.arange(len(self.ids))
        return positions

    @cached_property
    def position_of_vector(self) -> dict[int, int]:
        """The engine's number of a picture -> position."""
        return {number: at for at, number in enumerate(vector_ids(self.ids).tolist())}

    def nearest(self, vector: Vectors, count: int) -> tuple[list[int], list[float]]:
        """Positions of the pictures whose vectors are nearest to a vector [1, d], and their cosines, best first.

        Returns `count` or, if there are fewer, all, even while the engine has vectors of other pictures.
        """
        wanted = depth = min(count, len(self))
        while True:
            numbers, cosines = self.engine.search(vector, depth)
            hits = [
                (self.position_of_vector[number], cosine)
                for number, cosine in zip(numbers[0].tolist(), cosines[0].tolist(), strict=True)
                if number in self.position_of_vector
            ][:wanted]
            if len(hits) == wanted or depth >= self.engine.count():
                return [position for position, _ in hits], [cosine for _, cosine in hits]
            depth *= 2


@dataclass(frozen=True)
class Status:
    """The progress of a collection."""

    total: int
    """Number of pictures known so far, without those set aside."""
    ready: int
    """Number of pictures that can be searched."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of each picture that cannot be used."""
    rejected_count: int = 0
    scanning: bool = False
    """Whether indexing is still going on."""
    model: str = ""
    """Name of the model."""
    problem: str | None = None
    """What is wrong, in words: why indexing has stopped, or what is damaged."""
    copies: int = 0
    """Number of files that are copies of a picture, which is listed only under the first of their names."""
    version: str = field(default="", compare=False)
    """Of the pictures that can be searched."""

    @property
    def progress(self) -> str:
        """The progress in words."""
        if not self.scanning and self.problem:
            return self.problem[0].upper() + self.problem[1:]
        if not self.scanning:
            return f"All {self.ready:,} pictures can be searched."
        if not self.total:
            return "The folder is being read."
        if self.ready == self.total:
            return f"All {self.ready:,} pictures found so far can be searched; the folder is being read."
        return f"{self.ready:,} of {self.total:,} pictures can be searched; the others are being indexed."


class PictureSource(Protocol):
    """A source of pictures: a workspace, or a folder that is indexed in the background."""

    def start(self) -> None:
        """Start indexing, if necessary."""
        ...

    def close(self) -> None:
        """Stop; all written files are complete."""
        ...

    def rescan(self) -> None:
        """Look for added, removed and changed pictures."""
        ...

    def pictures(self) -> Pictures:
        """The pictures that can be searched now."""
        ...

    def status(self) -> Status:
        """The progress."""
        ...

    def find_regions(self, image: npt.NDArray[np.uint8]) -> ImageRegions:
        """Extract the regions of any picture, uint8 RGB [H, W, 3].

        Raises:
            InputError: the regions are precomputed, so that no detector is available.
        """
        ...
