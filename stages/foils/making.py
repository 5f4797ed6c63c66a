"""Makes foils of captions: one word is replaced by another of the vocabulary that is false of the picture."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from camp_model.vocabulary import Vocabulary
from stages.foils.facts import Facts
from stages.foils.lexicon import Lexicon, Tag
from stages.foils.words import KINDS


@dataclass(frozen=True)
class Foil:
    """A caption with one word changed."""

    kind: str
    text: str
    words: list[str]
    position: int
    """Position of the changed word in `words`."""
    word: str
    """The caption's own word at this position."""

    @property
    def foil_word(self) -> str:
        return self.words[self.position]


def foils_of(
    caption_id: int, text: str, words: Sequence[str], facts: Facts, lexicon: Lexicon, vocabulary: Vocabulary
) -> Iterator[Foil]:
    """Yield one foil of each kind that is possible. Random choices depend only on the caption's id and the kind.

    Args:
        words: the caption's words, as far as the model reads them.
    """
    tags = [tag for tag in lexicon.tag(words) if words[tag.position] in vocabulary]
    for kind in KINDS:
        of_kind = [tag for tag in tags if tag.kind == kind]
        if not of_kind:
            continue
        digest = hashlib.sha256(f"{caption_id} {kind}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
        for number in rng.permutation(len(of_kind)).tolist():
            tag = of_kind[number]
            foil_word = _draw(rng, tag, words, facts, lexicon, vocabulary)
            if foil_word is not None:
                changed = [*words[: tag.position], foil_word, *words[tag.position + 1 :]]
                written = _rewrite(text, words, tag.position, foil_word, vocabulary)
                yield Foil(kind, written, changed, tag.position, words[tag.position])
                break


def _draw(
    rng: np.random.Generator, tag: Tag, words: Sequence[str], facts: Facts, lexicon: Lexicon, vocabulary: Vocabulary
) -> str | None:
    """Draw a word to replace the tagged one, or None."""
    before = words[tag.position - 1] if tag.position else ""
    for canonicals in lexicon.alternatives(tag):
        usable = [
            word
            for canonical in canonicals
            if (word := lexicon.replacement(tag.kind, canonical, words[tag.position], before, vocabulary))
            and facts.refutes(tag, canonical)
        ]
        if usable:
            return usable[int(rng.integers(len(usable)))]
    return None


def _rewrite(text: str, words: Sequence[str], position: int, foil_word: str, vocabulary: Vocabulary) -> str:
    """The caption as written, with the word at `position` replaced; only its words if that is not possible."""
    word = words[position]
    # The model may not read the whole text; the words after its limit are kept.
    rest = vocabulary.tokenize(text)[len(words) :]
    for match in re.finditer(re.escape(word), text, re.IGNORECASE):
        new = foil_word.capitalize() if match[0][0].isupper() else foil_word
        changed = text[: match.start()] + new + text[match.end() :]
        if vocabulary.tokenize(changed) == [*words[:position], foil_word, *words[position + 1 :], *rest]:
            return changed
    return " ".join([*words[:position], foil_word, *words[position + 1 :], *rest])
