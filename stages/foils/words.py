"""The words of each kind, as tokenize_captions writes them to lexicon.json for all other stages.

`{kind: {canonical: [surface words]}}`, the usual word first, with plurals and synonyms.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camp_model.files import write_sealed
from camp_model.vocabulary import UNK, Vocabulary
from stages.contracts import read_object
from stages.errors import InputError, shown

KINDS = ("object", "colour", "size", "texture", "count", "relation")
CONTENT_KINDS = ("object", "colour", "size", "texture")
"""Kinds of content words: those that a single region can show."""
FORM = "{kind: {canonical: [surface words]}}"
Words = Mapping[str, Mapping[str, Sequence[str]]]


def is_texts(value: object) -> bool:
    """Whether `value` is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def check_words(content: Mapping[str, Any], where: str, tokenize: Callable[[str], list[str]] = str.split) -> Words:
    """Check `content` and tokenize each surface, joined by spaces, as captions are when they are searched.

    Raises:
        InputError: an unknown kind, or something other than words; the message begins with `where`.
    """
    for kind, entries in content.items():
        if kind not in KINDS:
            raise InputError(f"{where}: {kind:.80}: unknown kind; expected some of {', '.join(KINDS)}")
        if not isinstance(entries, dict):
            raise InputError(f"{where}: {kind}: expected {{canonical: [surface words]}}")
        for canonical, surfaces in entries.items():
            if not is_texts(surfaces) or not all(tokenize(surface) for surface in surfaces):
                raise InputError(f"{where}: {kind}.{canonical}: {shown(surfaces)}; expected a list of words")
    return {
        kind: {
            canonical: [" ".join(tokenize(surface)) for surface in surfaces] for canonical, surfaces in entries.items()
        }
        for kind, entries in content.items()
    }


def words_of(words: Words, kinds: Iterable[str] = KINDS) -> list[str]:
    """All surfaces of some kinds, each once."""
    return list(dict.fromkeys(s for kind in kinds for surfaces in words.get(kind, {}).values() for s in surfaces))


def save_words(words: Words, path: Path) -> None:
    """Write lexicon.json, whole or not at all."""
    write_sealed(path, words, indent=1)


def load_words(path: Path) -> Words:
    """Read lexicon.json as tokenize_captions writes it, with words already tokenized.

    Raises:
        InputError: the file cannot be read or is in another form.
    """
    return check_words(read_object(path, FORM), str(path))


def ids_of_kinds(words: Words, vocabulary: Vocabulary, kinds: Iterable[str] = KINDS) -> list[int]:
    """Ids of the single words of some kinds that are in the vocabulary, ascending."""
    return sorted(i for i in set(vocabulary.encode(words_of(words, kinds))) if i != UNK)
