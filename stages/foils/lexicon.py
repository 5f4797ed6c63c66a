"""The words that foils change: those for an object, a colour, a size, a texture, a count or a relation.

A lexicon file is JSON: `{kind: {canonical: [surface words]}}`, the usual word first, with plurals and synonyms. To make
foils, two more keys are read: `groups`, `{name: [canonical objects]}` (an object is replaced by one of its own group if
possible), and `opposites`, pairs of canonical relations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from camp_model.vocabulary import TOKENIZERS, Vocabulary
from stages.contracts import read_object
from stages.errors import InputError, shown
from stages.foils.words import FORM, Words, check_words, is_texts, words_of
from stages.sources.lexicon import COLOURS, COUNTS, PLURALS, RELATIONS, SHAPES, SIZES, TEXTURE_PHRASES, TEXTURES
from stages.workspace import named_path

PHOTOGRAPHS = Path(__file__).with_name("photographs.json")

_IRREGULAR = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse", "knives": "knife",
    "geese": "goose", "calves": "calf", "loaves": "loaf",
}  # fmt: skip
_PLURAL_ONLY = {"scissors", "cattle", "trousers", "jeans", "shorts", "sunglasses"}
_COUNT_NOUNS = {"pair", "couple", "trio", "dozen"}


@dataclass(frozen=True)
class Tag:
    """A word of a caption that can be changed."""

    position: int
    kind: str
    canonical: str


@dataclass(frozen=True)
class Lexicon:
    """Words, and which of them may replace which."""

    words: Words
    """Each surface as its words, joined by spaces."""
    forms: Mapping[str, str] = field(default_factory=dict)
    """The grammatical form of a surface if it is not the usual one ("plural", or "of" for "a pair of"). A word is
    replaced only by one of the same form."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Canonical object -> name of its group."""
    opposites: Mapping[str, str] = field(default_factory=dict)
    """Canonical relation -> its opposite."""

    @cached_property
    def _tags(self) -> dict[tuple[str, ...], tuple[str, str] | None]:
        """Words of each surface -> (kind, canonical); None if several entries have it."""
        tags: dict[tuple[str, ...], tuple[str, str] | None] = {}
        for kind, entries in self.words.items():
            for canonical, surfaces in entries.items():
                for surface in surfaces:
                    key = tuple(surface.split())
                    tags[key] = (kind, canonical) if tags.get(key, (kind, canonical)) == (kind, canonical) else None
        return tags

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._tags), default=0)

    def tag(self, words: Sequence[str]) -> list[Tag]:
        """The words of a caption that only one entry has, except inside a longer surface ("dog" in "hot dog")."""
        tags, at = [], 0
        while at < len(words):
            size = next((n for n in range(self._longest, 0, -1) if tuple(words[at : at + n]) in self._tags), 0)
            if size == 1 and (entry := self._tags[(words[at],)]):
                tags.append(Tag(at, *entry))
            at += max(size, 1)
        return tags

    def alternatives(self, tag: Tag) -> list[list[str]]:
        """Canonicals that could replace the tagged one: lists to draw from, in order of preference."""
        if tag.kind == "relation":
            return [[self.opposites[tag.canonical]]] if tag.canonical in self.opposites else []
        others = [canonical for canonical in self.words[tag.kind] if canonical != tag.canonical]
        group = self.groups.get(tag.canonical) if tag.kind == "object" else None
        alike = [canonical for canonical in others if group and self.groups.get(canonical) == group]
        return [alike, [canonical for canonical in others if canonical not in alike]]

    def replacement(self, kind: str, canonical: str, word: str, before: str, vocabulary: Vocabulary) -> str | None:
        """The first single word of `canonical` in the vocabulary that can replace `word`, or None.

        Args:
            before: the preceding word; if it is an article (a, an), it must fit the replacement too.
        """
        form = self.forms.get(word, "")
        for surface in self.words[kind][canonical]:
            if surface not in vocabulary or self._tags.get((surface,)) is None or self.forms.get(surface, "") != form:
                continue
            if before not in ("a", "an") or (surface[0] in "aeiou") == (before == "an"):
                return surface
        return None


def scenes_lexicon() -> Lexicon:
    """The words of the embedded scenes' captions, without "one" and nouns that leave the shape open."""
    nouns = {
        canonical: tuple(phrase.split()[-1] for phrase in phrases) for canonical, phrases in TEXTURE_PHRASES.items()
    }
    nouns["plain"] = ()  # "without a pattern" is not a single word
    nouns["checkered"] = nouns["checkered"][:1]
    counts: dict[str, Sequence[str]] = {
        COUNTS[n][0]: [phrase.removeprefix("a ").removesuffix(" of") for phrase in COUNTS[n]] for n in COUNTS if n > 1
    }
    relations: dict[str, Sequence[str]] = {
        name: list(dict.fromkeys(phrase.split()[-2] if " " in phrase else phrase for phrase in phrases))
        for name, phrases in RELATIONS.items()
    }
    words: dict[str, dict[str, Sequence[str]]] = {
        "object": {name: [*shapes, *(PLURALS[shape] for shape in shapes)] for name, shapes in SHAPES.items()},
        # "medium-sized" is tokenized into two words; the first one, "medium", suffices.
        "colour": dict(COLOURS),
        "size": {name: [size for size in sizes if "-" not in size] for name, sizes in SIZES.items()},
        "texture": {name: [*textures, *nouns[name]] for name, textures in TEXTURES.items()},
        "count": counts,
        "relation": relations,
    }
    forms = {plural: "plural" for plural in PLURALS.values()}
    forms |= {noun: "noun" for canonical in nouns.values() for noun in canonical}
    forms |= dict.fromkeys(_COUNT_NOUNS, "of") | {"higher": "than"}
    opposites = {"left of": "right of", "above": "below"}
    return Lexicon(words, forms, opposites=opposites | {b: a for a, b in opposites.items()})


def choose_lexicon(name: str, tokenize: Callable[[str], list[str]] = TOKENIZERS["unicode"]) -> Lexicon:
    """Load the lexicon that captions.lexicon names, with its words tokenized as the captions are.

    Raises:
        InputError: a file cannot be read or is in another form.
    """
    if name == "scenes":
        return scenes_lexicon()
    if name == "photographs":
        return _from_file(PHOTOGRAPHS, "", tokenize)
    return _from_file(named_path(name), "captions.lexicon: ", tokenize)


def _from_file(path: Path, where: str, tokenize: Callable[[str], list[str]]) -> Lexicon:
    content = read_object(path, FORM, where)
    groups, opposites = content.pop("groups", {}), content.pop("opposites", [])
    words = check_words(content, f"{where}{path}", tokenize)
    surfaces = {surface for entries in words.values() for entry in entries.values() for surface in entry}
    if not isinstance(groups, dict) or not all(is_texts(members) for members in groups.values()):
        raise InputError(f"{where}{path}: groups: expected {{name: [canonical objects]}}")
    if not isinstance(opposites, list) or not all(is_texts(pair) and len(pair) == 2 for pair in opposites):
        raise InputError(f"{where}{path}: opposites: expected pairs of canonical relations")
    known = {"groups": (words.get("object", {}), [name for members in groups.values() for name in members]),
             "opposites": (words.get("relation", {}), [name for pair in opposites for name in pair])}  # fmt: skip
    for key, (entries, names) in known.items():
        if unknown := [name for name in names if name not in entries]:
            raise InputError(f"{where}{path}: {key}: {shown(unknown[0])} is not a canonical word of the file")
    forms = dict.fromkeys(_COUNT_NOUNS, "of")
    forms |= {word: form for word in words_of(words, ("object",)) if (form := _form_of_noun(word, surfaces))}
    return Lexicon(
        words,
        forms,
        {name: group for group, members in groups.items() for name in members},
        {a: b for first, second in opposites for a, b in ((first, second), (second, first))},
    )


def _form_of_noun(word: str, others: set[str]) -> str:
    """plural (of one of `others`), ing (skiing), or empty for any other word."""
    if word.endswith("ing"):
        return "ing"
    endings = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"))
    singulars = {word.removesuffix(end) + instead for end, instead in endings if word.endswith(end)}
    if word in _IRREGULAR:
        singulars = {_IRREGULAR[word]}
    return "plural" if word in _PLURAL_ONLY or singulars & others else ""
