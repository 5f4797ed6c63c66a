"""Stage tokenize_captions: captions become word ids, with a vocabulary from the train split alone; foils of the others.

A foil is a caption with one word changed so that it is false of its picture (stages/foils).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from camp_model.captions import write_captions
from camp_model.vocabulary import END, START, TOKENIZERS, UNK, Vocabulary
from stages.contracts import read_table
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.foils.facts import photograph_facts, scene_facts
from stages.foils.lexicon import Lexicon, choose_lexicon
from stages.foils.making import foils_of
from stages.foils.table import write_foils
from stages.foils.words import KINDS, save_words
from stages.params.captions import CaptionsParams, check_lexicon
from stages.params.dataset import SPLITS, DatasetParams
from stages.params.section import StageSections
from stages.workspace import named_path

FOILED = ("val", "test")
"""Splits whose captions get foils."""


class TokenizeSections(StageSections):
    """What the stage reads of params.yaml."""

    captions: CaptionsParams = CaptionsParams()
    dataset: DatasetParams = DatasetParams()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        check_lexicon(self.captions, self.dataset)
        return self


def tokenize_captions(params: CaptionsParams, dataset: Path, rejected: Path, out: Path) -> None:
    """Write {train,val,test}.parquet, vocabulary.json, lexicon.json and foils_{val,test}.parquet into `out`.

    `dataset` is the folder that prepare_dataset writes: captions.parquet, and what else is known of the pictures.

    Captions of rejected images are left out. A caption without any word (an emoji) is a single <unk>, so that it can
    still be asked for and counts in the metrics. Captions whose tokens are those of another picture's are counted.

    Raises:
        InputError: a file that cannot be read or lacks a column, a split that is empty, a vocabulary that is not
            in SCAN's form, a lexicon in another form, or one that needs a ground truth that is not there.
    """
    captions = dataset / "captions.parquet"
    columns = {"caption_id": pa.int64(), "image_id": pa.string(), "split": pa.string(), "text": None}
    table = read_table(captions, columns)
    gone = read_table(rejected, {"image_id": pa.string()})["image_id"]
    kept = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=gone.combine_chunks())))
    if len(kept) < len(table):
        print(f"{len(table) - len(kept)} captions of {len(gone)} rejected images are left out")
    splits = {split: kept.filter(pc.equal(kept["split"], split)) for split in SPLITS}
    for split, part in splits.items():
        if not len(part):
            why = "" if len(kept) == len(table) else " once the rejected images are left out"
            raise InputError(f"{captions}: split: no caption is in {split}{why}; expected at least one")
    vocabulary = _read_vocabulary(params)
    tokenize = TOKENIZERS[vocabulary.tokenizer if vocabulary else params.tokenizer or "unicode"]
    words = {split: [tokenize(text) for text in part["text"].to_pylist()] for split, part in splits.items()}
    vocabulary = vocabulary or _build_vocabulary(params, words["train"])
    lexicon = choose_lexicon(params.lexicon, tokenize)
    foils = {split: _foils(params, lexicon, vocabulary, dataset, splits[split], words[split]) for split in FOILED}
    out.mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        tokens = [_encode(vocabulary, caption, params) for caption in words[split]]
        ids, images, texts = (part[name].to_pylist() for name in ("caption_id", "image_id", "text"))
        equal = count_equal(images, tokens)
        write_captions(out / f"{split}.parquet", ids, images, texts, tokens, equal)
        _print_summary(split, vocabulary, words[split], params, equal)
    vocabulary.save(out / "vocabulary.json")
    save_words(lexicon.words, out / "lexicon.json")
    for split, rows in foils.items():
        write_foils(out / f"foils_{split}.parquet", rows)
        count = Counter(row["kind"] for row in rows)
        print(f"{split}: {len(rows)} foils ({', '.join(f'{kind} {count[kind]}' for kind in KINDS)})")


def _foils(
    params: CaptionsParams,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    dataset: Path,
    part: pa.Table,
    words: Sequence[list[str]],
) -> list[dict[str, Any]]:
    """The rows of a split's table of foils."""
    ids, images, texts = (part[name].to_pylist() for name in ("caption_id", "image_id", "text"))
    if params.lexicon == "scenes":
        facts = scene_facts(dataset / "scenes.parquet", images, texts)
    else:
        facts = photograph_facts(lexicon, images, words, dataset / "boxes.parquet")
    rows = []
    for caption_id, image_id, text, caption, known in zip(ids, images, texts, words, facts, strict=True):
        for foil in foils_of(caption_id, text, caption[: params.max_words], known, lexicon, vocabulary):
            tokens = _encode(vocabulary, foil.words, params)
            rows.append(
                {"caption_id": caption_id, "image_id": image_id, "text": foil.text, "tokens": tokens,
                 "length": len(tokens), "kind": foil.kind, "position": foil.position + params.start_end,
                 "word": foil.word, "foil_word": foil.foil_word}
            )  # fmt: skip
    return rows


def count_equal(image_ids: Sequence[str], tokens: Sequence[Sequence[int]]) -> int:
    """Number of captions whose tokens are also those of a caption of another image."""
    images_of: defaultdict[tuple[int, ...], set[str]] = defaultdict(set)
    keys = [tuple(ids) for ids in tokens]
    for image_id, key in zip(image_ids, keys, strict=True):
        images_of[key].add(image_id)
    return sum(len(images_of[key]) > 1 for key in keys)


def _read_vocabulary(params: CaptionsParams) -> Vocabulary | None:
    """The vocabulary that captions.vocabulary names, if it names one."""
    if params.vocabulary is None:
        return None
    try:
        vocabulary = Vocabulary.load(named_path(params.vocabulary), params.tokenizer)
    except ValueError as error:
        raise InputError(f"captions.vocabulary: {error}") from None
    if params.tokenizer not in (None, vocabulary.tokenizer):
        raise InputError(
            f"captions.tokenizer: {params.tokenizer}, but {params.vocabulary} was made with {vocabulary.tokenizer}; "
            "expected that, or null"
        )
    return vocabulary


def _build_vocabulary(params: CaptionsParams, train_words: list[list[str]]) -> Vocabulary:
    vocabulary = Vocabulary.build(train_words, params.min_count, params.tokenizer or "unicode")
    if len(vocabulary) == UNK + 1:
        raise InputError(f"captions.min_count: no word of the train split occurs {params.min_count} times")
    return vocabulary


def _encode(vocabulary: Vocabulary, words: list[str], params: CaptionsParams) -> list[int]:
    ids = vocabulary.encode(words[: params.max_words]) or [UNK]
    return [START, *ids, END] if params.start_end else ids


def _print_summary(
    split: str, vocabulary: Vocabulary, captions: list[list[str]], params: CaptionsParams, equal: int
) -> None:
    total = sum(map(len, captions))
    unknown = sum(word not in vocabulary for words in captions for word in words)
    long = sum(len(words) > params.max_words for words in captions)
    wordless = sum(not words for words in captions)
    print(
        f"{split}: {len(captions)} captions, {total} words, {unknown} of them unknown; vocabulary {len(vocabulary)}; "
        f"{long} captions cut to {params.max_words} words, {wordless} without a word"
    )
    if equal:
        print(f"{split}: {equal} captions are, as the model reads them, those of another image")


def main() -> None:
    tokenize_captions(
        read_params(TokenizeSections).captions,
        dataset=Path("data/dataset"),
        rejected=Path("data/regions/rejected.parquet"),
        out=Path("data/captions"),
    )


if __name__ == "__main__":
    stage_main(main)
