"""Words by what they name, as the stage tokenize_captions writes them for all others to read: lexicon.json.

`{kind: {canonical: [surface words]}}`, the usual word first, plurals and synonyms among them.
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
"""Kinds of content words: what a region alone can show."""
FORM = "{kind: {canonical: [surface words]}}"
Words = Mapping[str, Mapping[str, Sequence[str]]]


def is_texts(value: object) -> bool:
    """Whether `value` is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def check_words(content: Mapping[str, Any], where: str, tokenize: Callable[[str], list[str]] = str.split) -> Words:
    """`content` as words, each surface cut by `tokenize` and joined by spaces, as captions are when they are searched.

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
    """Every surface of some kinds, each once."""
    return list(dict.fromkeys(s for kind in kinds for surfaces in words.get(kind, {}).values() for s in surfaces))


def save_words(words: Words, path: Path) -> None:
    """Write lexicon.json whole or not at all."""
    write_sealed(path, words, indent=1)


def load_words(path: Path) -> Words:
    """Read lexicon.json, which the stage tokenize_captions writes: its words are cut already.

    Raises:
        InputError: the file cannot be read or is in another form.
    """
    return check_words(read_object(path, FORM), str(path))


def ids_of_kinds(words: Words, vocabulary: Vocabulary, kinds: Iterable[str] = KINDS) -> list[int]:
    """Ids of the single words of some kinds that the vocabulary knows, ascending."""
    return sorted(i for i in set(vocabulary.encode(words_of(words, kinds))) if i != UNK)
