"""The answers of a collection."""

from dataclasses import dataclass, field

from search.pictures import PictureFile
from stages.errors import InputError


class UnknownPicture(InputError):
    """There is no picture with this id in the collection, or no longer."""


@dataclass(frozen=True)
class Hit:
    """One picture of an answer."""

    picture_id: str
    score: float
    """CAMP's logit for a sentence; the cosine for a picture; 0 if nothing was sought."""
    file: PictureFile = field(compare=False)
    """As it was when the answer was given: by now the collection may have changed."""


@dataclass(frozen=True)
class Answer:
    """The answer to a sentence."""

    hits: list[Hit]
    """Best first, starting at `offset`."""
    words: list[str]
    """The words of the sentence as the model reads them."""
    unknown: list[str]
    """Words that it does not know."""
    by_spelling: list[str]
    """Words that it knows only by their spelling, because they are not in the training vocabulary."""
    dropped: int
    """Number of words at the end that it does not read."""
    scored: int
    """Number of pictures that CAMP ranked: all, or those of the shortlist."""
    total: int
    """Number of pictures that could be searched at that moment."""
    version: str = field(compare=False)
    """Of these pictures (`Pictures.version`)."""
