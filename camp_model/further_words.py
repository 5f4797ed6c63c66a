"""Ids of words that are in no vocabulary, for text encoders that read a word by its spelling.

Such an id holds within this process and is never written to a file: there, and for an encoder that knows the words of
its vocabulary alone, the word is <unk>.
"""

import threading
from collections.abc import Iterable

FIRST = 2**30
"""The least of these ids: above those of any vocabulary."""
HELD = 2**18
"""Words remembered; of more, the one that was asked for longest ago is forgotten. Whoever sends words to a server
without end takes some 50 MB."""


class FurtherWords:
    """Words and their ids. No id is given twice, so that what is remembered by ids never means another word."""

    def __init__(self, held: int = HELD) -> None:
        self.held = held
        self._ids: dict[str, int] = {}
        self._words: dict[int, str] = {}
        self._next = FIRST
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, words: Iterable[str]) -> list[int]:
        """The id of each word, a new one for a new word."""
        with self._lock:
            return [self._id(word) for word in words]

    def _id(self, word: str) -> int:
        number = self._ids.pop(word, None)
        if number is None:
            number, self._next = self._next, self._next + 1
            self._words[number] = word
        self._ids[word] = number  # behind all others
        if len(self._ids) > self.held:
            oldest = next(iter(self._ids))
            del self._words[self._ids.pop(oldest)]
        return number

    def words(self, ids: Iterable[int]) -> list[str]:
        """The word of each id.

        Raises:
            ValueError: an id that no word has, or whose word is forgotten.
        """
        with self._lock:
            try:
                return [self._words[number] for number in ids]
            except KeyError as error:
                raise ValueError(
                    f"tokens: {error.args[0]} is not a word's id; expected ids of the {self.held:,} words outside the "
                    "vocabulary that were read last"
                ) from None


FURTHER_WORDS = FurtherWords()
"""Those of this process, for every model in it: what one id means does not depend on the model."""
