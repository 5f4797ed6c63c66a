"""What a collection answers."""

from dataclasses import dataclass

from stages.errors import InputError


class UnknownPicture(InputError):
    """A picture id that is not, or no longer, one of the collection."""


@dataclass(frozen=True)
class Hit:
    """A picture of an answer."""

    picture_id: str
    score: float
    """CAMP's logit for a sentence; the cosine for a picture."""


@dataclass(frozen=True)
class Answer:
    """What a sentence found."""

    hits: list[Hit]
    """Best first, from `offset` on."""
    words: list[str]
    """As the model reads the sentence."""
    unknown: list[str]
    """Those that it does not know."""
    by_spelling: list[str]
    """Those that it knows by their spelling alone: the vocabulary that was trained on lacks them."""
    dropped: int
    """Words at the end that it does not read."""
    scored: int
    """Pictures that CAMP has ranked: all, or those of the shortlist."""
    total: int
    """Pictures that could be searched at that moment."""
