"""The vocabulary of a dataset's captions, and captions as word ids."""

from collections import defaultdict
from collections.abc import Sequence

from camp_model.vocabulary import END, START, UNK, Vocabulary
from stages.contracts import input_errors
from stages.errors import InputError
from stages.params.captions import CaptionsParams
from stages.workspace import named_path


def named_vocabulary(params: CaptionsParams) -> Vocabulary | None:
    """Read the vocabulary that captions.vocabulary names, if any.

    Raises:
        InputError: it cannot be read, or was made with another tokenizer than that of the params.
    """
    if params.vocabulary is None:
        return None
    with input_errors("captions.vocabulary: "):
        vocabulary = Vocabulary.load(named_path(params.vocabulary), params.tokenizer)
    if params.tokenizer not in (None, vocabulary.tokenizer):
        raise InputError(
            f"captions.tokenizer: {params.tokenizer}, but {params.vocabulary} was made with {vocabulary.tokenizer}; "
            "expected that, or null"
        )
    if params.min_count > 1:
        print(f"captions.min_count: {params.min_count} has no effect: the words are those of {params.vocabulary}")
    if params.tokenizer is None and vocabulary.tokenizer != "unicode":
        print(f"captions.tokenizer: {vocabulary.tokenizer}, which the words of {params.vocabulary} come from")
    return vocabulary


def check_used(vocabulary: Vocabulary, train_words: list[list[str]], params: CaptionsParams) -> None:
    """Raise an InputError if the vocabulary that captions.vocabulary names has no word of the train split."""
    if not any(word in vocabulary for words in train_words for word in words):
        raise InputError(
            f"captions.vocabulary: {params.vocabulary}: holds no word of the train split; expected its captions' "
            f"words as the tokenizer {vocabulary.tokenizer} cuts them, in lower case"
        )


def build_vocabulary(params: CaptionsParams, train_words: list[list[str]]) -> Vocabulary:
    """Build the vocabulary of the train split.

    Raises:
        InputError: no word occurs often enough.
    """
    vocabulary = Vocabulary.build(train_words, params.min_count, params.tokenizer or "unicode")
    if len(vocabulary) == UNK + 1:
        raise InputError(f"captions.min_count: no word of the train split occurs {params.min_count} times")
    return vocabulary


def encode(vocabulary: Vocabulary, words: list[str], params: CaptionsParams) -> list[int]:
    """The ids of the words that the model reads of a caption; at least one."""
    ids = vocabulary.encode(words[: params.max_words]) or [UNK]
    return [START, *ids, END] if params.start_end else ids


def count_equal(image_ids: Sequence[str], tokens: Sequence[Sequence[int]]) -> int:
    """Number of captions with the same tokens as a caption of another image."""
    images_of: defaultdict[tuple[int, ...], set[str]] = defaultdict(set)
    keys = [tuple(ids) for ids in tokens]
    for image_id, key in zip(image_ids, keys, strict=True):
        images_of[key].add(image_id)
    return sum(len(images_of[key]) > 1 for key in keys)


def print_words(
    split: str, vocabulary: Vocabulary, captions: list[list[str]], params: CaptionsParams, equal: int
) -> None:
    """Print the number of captions of a split, and how much of them the model does not read."""
    total = sum(map(len, captions))
    unknown = sum(word not in vocabulary for words in captions for word in words)
    long = sum(len(words) > params.max_words for words in captions)
    wordless = sum(not words for words in captions)
    print(
        f"{split}: {len(captions)} captions, {total} words, {unknown} of them unknown; vocabulary {len(vocabulary)}; "
        f"{long} captions cut to {params.max_words} words, {wordless} without a word"
    )
    if equal:
        print(f"{split}: {equal} captions have the same tokens as a caption of another image")
