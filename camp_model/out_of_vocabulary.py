"""Ids of out-of-vocabulary (OOV) words, for text encoders that read a word by its spelling.

Such an id is valid only in this process and is never written to a file. In files, and for encoders that know only the
words of the vocabulary, the word is <unk>.
"""

import threading
from collections.abc import Iterable

FIRST_OOV_ID = 2**30
"""The smallest of these ids, above those of any vocabulary."""
MAX_OOV_WORDS = 2**18
"""Largest number of words kept (about 50 MB); beyond it, the least recently used word is removed."""


class OutOfVocabularyWords:
    """Words and their ids. No id is used twice, so that a cache with ids as keys never returns another word."""

    def __init__(self, max_words: int = MAX_OOV_WORDS) -> None:
        self.max_words = max_words
        self._ids: dict[str, int] = {}
        self._words: dict[int, str] = {}
        self._next = FIRST_OOV_ID
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
        self._ids[word] = number  # now the most recently used
        if len(self._ids) > self.max_words:
            oldest = next(iter(self._ids))
            del self._words[self._ids.pop(oldest)]
        return number

    def words(self, ids: Iterable[int]) -> list[str]:
        """The word of each id.

        Raises:
            ValueError: no word has this id, or the word was removed.
        """
        with self._lock:
            try:
                return [self._words[number] for number in ids]
            except KeyError as error:
                raise ValueError(
                    f"tokens: {error.args[0]} is not a word's id; expected ids of the last {self.max_words:,} "
                    "out-of-vocabulary words"
                ) from None


OOV_WORDS = OutOfVocabularyWords()
"""The words of this process, shared by all models: the meaning of an id does not depend on the model."""
