"""The section `captions`: how captions become word ids."""

from typing import Literal

from pydantic import Field

from stages.params.section import Section


class CaptionsParams(Section):
    """How captions become word ids."""

    min_count: int = Field(default=1, ge=1)
    """Times a word must occur in the train split to be in the vocabulary."""
    max_words: int = Field(default=60, ge=1)
    """Number of words after which a caption is cut."""
    vocabulary: str | None = None
    """A SCAN vocabulary JSON to use instead of building a vocabulary from the train split."""
    tokenizer: Literal["unicode", "treebank"] | None = None
    """How captions are cut into words. unicode: at Unicode's word boundaries, without punctuation; treebank: as nltk's
    word_tokenize, which SCAN and the released code use; null: as captions.vocabulary, or unicode without one."""
    start_end: bool = False
    """Put <start> and <end> around every caption, as the released code does."""
    lexicon: str = "scenes"
    """The words that foils change and that count as content words: scenes (only for dataset.source scenes), photographs
    (COCO's objects, common colours and more) or a JSON file (stages/foils/lexicon.py describes its form)."""
    train_foils: bool = False
    """Also make foils of the training captions, which train.foil_weight needs."""
