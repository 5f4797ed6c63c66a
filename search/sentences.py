"""A sentence as the model reads it."""

from dataclasses import dataclass

from camp_model.vocabulary import UNK, Vocabulary
from stages.errors import InputError, shown
from stages.params.captions import CaptionsParams
from stages.tokens.vocabulary import encode


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence and their ids."""

    words: tuple[str, ...]
    """Without <start> and <end>."""
    known: tuple[bool, ...]
    """Whether the model knows each."""
    ids: tuple[int, ...]
    """As the model reads them, <start> and <end> included where it was trained with them."""
    dropped: int = 0
    """Words at the end that the model does not read."""

    @property
    def unknown(self) -> list[str]:
        """The words that the model does not know, each once."""
        return list(dict.fromkeys(w for w, known in zip(self.words, self.known, strict=True) if not known))


class SentenceReader:
    """Cuts sentences into words as the model's captions were cut."""

    def __init__(self, vocabulary: Vocabulary, params: CaptionsParams) -> None:
        self.vocabulary, self.params = vocabulary, params

    def read(self, sentence: str) -> Sentence:
        """Raises InputError where there is no word."""
        words = self.vocabulary.tokenize(sentence)
        if not words:
            raise InputError(f"sentence: {shown(sentence)} holds no word; expected words such as `a dog in the snow`")
        read = words[: self.params.max_words]
        known = tuple(number != UNK for number in self.vocabulary.encode(read))
        ids = encode(self.vocabulary, words, self.params)
        return Sentence(tuple(read), known, tuple(ids), len(words) - len(read))
