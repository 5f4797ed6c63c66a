"""What can be searched at one moment, and where it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from camp_model.regions import ImageRegions, RegionStore
from stages.indexing.engines import Engine, Vectors, vector_ids


class PictureFile(NamedTuple):
    """Where a picture lies."""

    folder: Path
    """Of the pictures."""
    sha256: str
    """Of the bytes that were indexed; empty where nobody knows."""
    name: str
    """Where it lies below the folder, as people read it."""

    @property
    def path(self) -> Path:
        """Where it lies; made when it is asked for, which is of few pictures."""
        return self.folder / self.name


@dataclass(frozen=True)
class Pictures:
    """The n pictures that can be searched; never changed, a later state is another object."""

    store: RegionStore
    ids: Sequence[str]
    """[n]"""
    rows: npt.NDArray[np.int64]
    """[n], rows of the store."""
    files: dict[str, PictureFile]
    """By id."""
    engine: Engine
    """Holds a vector for each, by `vector_ids`."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def position(self) -> dict[str, int]:
        """Id -> position."""
        return {name: at for at, name in enumerate(self.ids)}

    @cached_property
    def alphabetical(self) -> npt.NDArray[np.int64]:
        """[n], the place of each picture in the order of ids, by which equal scores are ordered."""
        places = np.empty(len(self.ids), np.int64)
        places[sorted(range(len(self.ids)), key=self.ids.__getitem__)] = np.arange(len(self.ids))
        return places

    @cached_property
    def position_of_vector(self) -> dict[int, int]:
        """The engine's number of a picture -> position."""
        return {number: at for at, number in enumerate(vector_ids(self.ids).tolist())}

    def nearest(self, vector: Vectors, count: int) -> tuple[list[int], list[float]]:
        """Positions of the pictures whose vectors are nearest to a vector [1, d], and the cosines, best first.

        As many as there are, at most `count`, also while the engine holds vectors of pictures that are not among these.
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
    """How far a collection is."""

    total: int
    """Pictures that there are, as far as is known; those set aside are not among them."""
    ready: int
    """Pictures that can be searched."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of pictures that cannot be used, at most REJECTED_SHOWN of them."""
    rejected_count: int = 0
    scanning: bool = False
    """Whether more may become ready."""
    model: str = ""
    """Name of the model."""
    problem: str | None = None
    """Why indexing has stopped."""
    copies: int = 0
    """Files that are copies of a picture, which is found under the first of their names alone."""


REJECTED_SHOWN = 1000


class PictureSource(Protocol):
    """Where pictures come from: a workspace, or a folder that is indexed meanwhile."""

    def start(self) -> None:
        """Begin to index, where that is to be done."""
        ...

    def close(self) -> None:
        """Stop; what is written is whole."""
        ...

    def rescan(self) -> None:
        """Look for pictures that came, went or changed."""
        ...

    def pictures(self) -> Pictures:
        """What can be searched now."""
        ...

    def status(self) -> Status:
        """How far it is."""
        ...

    def look(self, image: npt.NDArray[np.uint8]) -> ImageRegions:
        """The regions of a picture, uint8 RGB [H, W, 3], that need not be one of the collection.

        Raises:
            InputError: the regions came from elsewhere, so nothing here can look at pictures.
        """
        ...
