"""Tokenizers, which split captions into words, and vocabularies, which give words their ids."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import regex

from camp_model.files import is_unicode, read_json, write_sealed
from camp_model.treebank import treebank_words

PAD, START, END, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")

_BOUNDARY = regex.compile(r"\b", regex.VERSION1 | regex.WORD)  # Unicode's word boundaries (UAX 29), not Python's
_MARKS = regex.compile(r"(?<=.)[\p{M}\u200c\u200d]+", regex.VERSION1 | regex.DOTALL)
"""Marks and joiners behind another character: to UAX 29 a part of it (WB4)."""
_CHARACTER = regex.compile(r".[\p{M}\u200c\u200d]*", regex.VERSION1 | regex.DOTALL)
_HAS_LETTER_OR_DIGIT = regex.compile(r"[\p{L}\p{N}]", regex.VERSION1)
# Soft hyphens, direction marks and the like. Zero-width joiners, which spell words, and spaces, which end them, stay.
_INVISIBLE = regex.compile(r"[\p{Cf}--[\u200b-\u200d]]", regex.VERSION1)
_FURTHER_MARKS = regex.compile(r"(?<=\p{M}{30})\p{M}+", regex.VERSION1)
"""Marks beyond 30 on one letter (the limit of UAX 15): the time to sort them grows with the square of their number."""
# All apostrophes become one; U+202F, French's space before "!" and in "10 000", is a part of words to UAX 29.
_PLAIN = str.maketrans("\u2019\u02bc\uff07\u202f", "''' ")


def without_further_marks(text: str) -> str:
    """Remove combining marks beyond 30 on one letter, so that the time to normalise a text grows with its length."""
    return str(_FURTHER_MARKS.sub("", text))


def tokenize(text: str) -> list[str]:
    """The lower-cased words of `text`, split at the word boundaries of Unicode (UAX 29).

    "The dog's 2.5 m red-and-white T-shirt!" gives the, dog's, 2.5, m, red, and, white, t, shirt. Punctuation and
    emoji are no words. Accents are composed (NFC), so both spellings of an accented letter are one word; scripts
    without spaces are split as UAX 29 does without a dictionary (Chinese: one word per character). Splitting the
    joined result again gives the same words.
    """
    text = without_further_marks(_INVISIBLE.sub("", text.translate(_PLAIN)))
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return [part for part in _parts(text) if _HAS_LETTER_OR_DIGIT.search(part)]


def _parts(text: str) -> list[str]:
    """What is between the word boundaries of `text`."""
    if not _MARKS.search(text):
        return list(_BOUNDARY.split(text))
    # Searched without marks: behind one, `_BOUNDARY` takes the apostrophe of "की's" for the end of a word.
    characters, parts = iter(_CHARACTER.findall(text)), _BOUNDARY.split(_MARKS.sub("", text))
    return ["".join(islice(characters, len(part))) for part in parts]


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"unicode": tokenize, "treebank": treebank_words}
"""Name that a vocabulary records -> function that splits a text into words."""


class Vocabulary:
    """Words, their ids, and the tokenizer that makes them; the ids 0 to 3 are <pad>, <start>, <end> and <unk>.

    Args:
        words: in the order of their ids.
        tokenizer: name in TOKENIZERS of the function that splits texts into such words.

    Raises:
        ValueError: `words` does not begin with the four special ones or holds a word twice; an unknown tokenizer.
    """

    def __init__(self, words: Sequence[str], tokenizer: str = "unicode") -> None:
        if not isinstance(tokenizer, str) or tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer: {tokenizer!r:.80} is not one of {', '.join(TOKENIZERS)}")
        self.tokenizer = tokenizer
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        if tuple(self.words[:4]) != SPECIALS:
            first = ", ".join(f"{word!r:.40}" for word in self.words[:4])
            raise ValueError(f"the first four words are {first or 'none'}; expected {', '.join(SPECIALS)}")
        if len(self._ids) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"the word {twice!r} occurs twice")

    @classmethod
    def build(cls, captions: Iterable[Iterable[str]], min_count: int = 1, tokenizer: str = "unicode") -> "Vocabulary":
        """Make a vocabulary of the words that occur at least `min_count` times, the most frequent first."""
        counts = Counter(word for words in captions for word in words)
        frequent = (word for word, count in counts.items() if count >= min_count)
        return cls([*SPECIALS, *sorted(frequent, key=lambda word: (-counts[word], word))], tokenizer)

    @classmethod
    def load(cls, path: Path, tokenizer: str | None = None) -> "Vocabulary":
        """Read a vocabulary JSON in the form of SCAN: {"word2idx": {...}, "idx2word": {"0": ...}, "idx": n}.

        This project's files are sealed and record their tokenizer. For other files, `tokenizer` names it. If that is
        None, the tokenizer is `treebank` if there are words that `unicode` never makes (".", "'s", "t-shirt"), as in
        SCAN's vocabularies, otherwise `unicode`.

        Raises:
            ValueError: the file cannot be read or is in another form; the message names the file and the key.
        """
        content = read_json(path, "a vocabulary JSON")
        try:
            words = _words_by_id(content)
            return cls(words, content.get("tokenizer") or tokenizer or _tokenizer_of(words))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the vocabulary in the form of SCAN."""
        content = {
            "word2idx": self._ids,
            "idx2word": {str(i): word for i, word in enumerate(self.words)},
            "idx": len(self.words),
            "tokenizer": self.tokenizer,
        }
        write_sealed(path, content, indent=0)

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and (self.words, self.tokenizer) == (other.words, other.tokenizer)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    @property
    def sha256(self) -> str:
        """Hex sha256 of the words in order, the identity of the vocabulary."""
        return hashlib.sha256(json.dumps(self.words).encode()).hexdigest()

    def tokenize(self, text: str) -> list[str]:
        """Split a text as the vocabulary's captions were; white space is collapsed first, as in data sets."""
        return TOKENIZERS[self.tokenizer](" ".join(text.split()))

    def encode(self, words: Iterable[str]) -> list[int]:
        """The id of each word; a word that is not in the vocabulary becomes <unk>."""
        return [self._ids.get(word, UNK) for word in words]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The word of each id."""
        return [self.words[i] for i in ids]


def _tokenizer_of(words: Sequence[str]) -> str:
    """The tokenizer that a vocabulary's words came from, as far as they show it."""
    return "unicode" if all(tokenize(word) == [word] for word in words[len(SPECIALS) :]) else "treebank"


def _words_by_id(content: Any) -> list[str]:
    """The words of a parsed vocabulary JSON, in the order of their ids."""
    if not isinstance(content, dict) or not isinstance(content.get("word2idx"), dict):
        raise ValueError('word2idx: is missing; expected {"word2idx": {...}, "idx2word": {...}, "idx": n}')
    by_id = {i: word for word, i in content["word2idx"].items() if type(i) is int}
    if set(by_id) != set(range(len(content["word2idx"]))):
        raise ValueError("word2idx: the ids are not 0, 1, 2, ... with each once")
    words = [by_id[i] for i in range(len(by_id))]
    if (half := next((word for word in words if not is_unicode(word)), None)) is not None:
        raise ValueError(f"word2idx: {half!r:.80} holds half a character (a lone surrogate); expected words")
    reverse = content.get("idx2word")
    if reverse is not None and reverse != {str(i): word for i, word in enumerate(words)}:
        raise ValueError("idx2word: does not match word2idx")
    return words
