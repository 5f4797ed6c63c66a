"""A sentence as the model reads it."""

from dataclasses import dataclass

from camp_model.encoding import word_ids
from camp_model.model import CAMP
from camp_model.vocabulary import END, START, Vocabulary
from stages.errors import InputError, shown
from stages.params.captions import CaptionsParams


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence and their ids."""

    words: tuple[str, ...]
    """Without <start> and <end>."""
    known: tuple[bool, ...]
    """Whether the model knows each."""
    spelt: tuple[bool, ...]
    """Whether the model knows each only by its spelling, because it is not in the training vocabulary."""
    ids: tuple[int, ...]
    """As the model reads them, with <start> and <end> if it was trained with them."""
    dropped: int = 0
    """Number of words at the end that the model does not read."""

    @property
    def unknown(self) -> list[str]:
        """The words that the model does not know, each once."""
        return list(dict.fromkeys(w for w, known in zip(self.words, self.known, strict=True) if not known))

    @property
    def by_spelling(self) -> list[str]:
        """The words that the model knows only by their spelling, each once."""
        return list(dict.fromkeys(w for w, alone in zip(self.words, self.spelt, strict=True) if alone))


class SentenceReader:
    """Splits sentences into words as the model's captions were split."""

    def __init__(self, model: CAMP, vocabulary: Vocabulary, params: CaptionsParams) -> None:
        self.model, self.vocabulary, self.params = model, vocabulary, params

    def read(self, sentence: str) -> Sentence:
        """Raise InputError if there is no word."""
        words = self.vocabulary.tokenize(sentence)
        if not words:
            raise InputError(f"sentence: {shown(sentence)} holds no word; expected words such as `a dog in the snow`")
        ids = word_ids(self.model, self.vocabulary, words[: self.params.max_words])
        read = words[: len(ids)]
        known = tuple(not unread for unread in self.model.caption_encoder.unread(ids))
        spelt = tuple(number not in range(len(self.vocabulary)) for number in ids)
        framed = [START, *ids, END] if self.params.start_end else ids
        return Sentence(tuple(read), known, spelt, tuple(framed), len(words) - len(read))
