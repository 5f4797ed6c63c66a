"""The section `captions`: how captions become word ids."""

from typing import Literal

from pydantic import Field

from stages.params.section import Section


class CaptionsParams(Section):
    """How captions become word ids."""

    min_count: int = Field(default=1, ge=1)
    """Times a word must occur in the train split to be in the vocabulary."""
    max_words: int = Field(default=60, ge=1)
    """Words of a caption beyond this are dropped."""
    vocabulary: str | None = None
    """A SCAN vocabulary JSON to use instead of building one."""
    tokenizer: Literal["unicode", "treebank"] | None = None
    """What cuts a caption into words: unicode (word boundaries of Unicode, without punctuation) or treebank (as nltk's
    word_tokenize, which SCAN and the released code use); null: that of captions.vocabulary, or else unicode."""
    start_end: bool = False
    """Put <start> and <end> around every caption, as the released code does."""
    lexicon: str = "scenes"
    """Words that foils change and that count as content: scenes (with dataset.source scenes), photographs (COCO's
    objects, common colours and more) or a lexicon's JSON file (its form: stages/foils/lexicon.py)."""
    train_foils: bool = False
    """Make foils of the captions that are trained on, too, for train.foil_weight."""
