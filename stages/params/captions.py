"""The section `captions`: how captions become word ids."""

from dataclasses import dataclass

from stages.params.checks import at_least, choose

TOKENIZERS = ("unicode", "treebank")
"""Those of camp_model.vocabulary, named here so that reading params loads no model."""


@dataclass(frozen=True)
class CaptionsParams:
    """How captions become word ids."""

    min_count: int = 1
    """Times a word must occur in the train split to be in the vocabulary."""
    max_words: int = 60
    """Words of a caption beyond this are dropped."""
    vocabulary: str | None = None
    """A SCAN vocabulary JSON to use instead of building one."""
    tokenizer: str | None = None
    """What cuts a caption into words: unicode (word boundaries of Unicode, without punctuation) or treebank (as nltk's
    word_tokenize, which SCAN and the released code use); null: that of captions.vocabulary, or else unicode."""
    start_end: bool = False
    """Put <start> and <end> around every caption, as the released code does."""
    lexicon: str = "scenes"
    """Words that foils change and that count as content: scenes (with dataset.source scenes), photographs (COCO's
    objects, common colours and more) or a lexicon's JSON file (its form: stages/foils/lexicon.py)."""

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            choose("captions", "tokenizer", self.tokenizer, tuple(TOKENIZERS))
        at_least("captions", self, min_count=1, max_words=1)
