"""Stage tokenize_captions: turn captions into word ids, with the train split's vocabulary, and make foils.

A foil is a caption with one word changed so that it is false of its picture (stages/foils).
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from camp_model.captions import write_captions
from camp_model.files import write_table
from camp_model.vocabulary import TOKENIZERS
from stages.contracts import read_table
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.foils.lexicon import choose_lexicon
from stages.foils.rows import foils_of_split
from stages.foils.table import foil_table
from stages.foils.words import KINDS, ids_of_kinds, save_words
from stages.params.captions import CaptionsParams
from stages.params.dataset import SPLITS
from stages.params.section import StageSections
from stages.tokens.vocabulary import build_vocabulary, check_used, count_equal, encode, named_vocabulary, print_words


class TokenizeSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    captions: CaptionsParams = CaptionsParams()


def tokenize_captions(params: CaptionsParams, dataset: Path, rejected: Path, out: Path) -> None:
    """Write {train,val,test}.parquet, vocabulary.json, lexicon.json and foils_{val,test}.parquet into `out`, and with
    `captions.train_foils` foils_train.parquet.

    `dataset` is the folder that prepare_dataset writes. Captions of rejected images are left out. A caption without any
    word (an emoji) becomes a single <unk>, so that it remains a query and counts in the metrics. Captions whose tokens
    are those of another picture's caption are counted.

    Raises:
        InputError: a file cannot be read or lacks a column, a split is empty, the vocabulary is not in SCAN's form or
            has no word of the captions, or the lexicon is in another form or needs a ground truth that is missing.
    """
    captions = dataset / "captions.parquet"
    columns = {"caption_id": pa.int64(), "image_id": pa.string(), "split": pa.string(), "text": None}
    table = read_table(captions, columns)
    rejected_ids = read_table(rejected, {"image_id": pa.string()})["image_id"]
    kept = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=rejected_ids.combine_chunks())))
    if len(kept) < len(table):
        print(f"{len(table) - len(kept)} captions of {len(rejected_ids)} rejected images are left out")
    splits = {split: kept.filter(pc.equal(kept["split"], split)) for split in SPLITS}
    for split, rows in splits.items():
        if not len(rows):
            why = "" if len(kept) == len(table) else " once the rejected images are left out"
            raise InputError(f"{captions}: split: no caption is in {split}{why}; expected at least one")
    vocabulary = named_vocabulary(params)
    tokenize = TOKENIZERS[vocabulary.tokenizer if vocabulary else params.tokenizer or "unicode"]
    words = {split: [tokenize(text) for text in rows["text"].to_pylist()] for split, rows in splits.items()}
    if vocabulary:
        check_used(vocabulary, words["train"], params)
    vocabulary = vocabulary or build_vocabulary(params, words["train"])
    lexicon = choose_lexicon(params.lexicon, tokenize)
    if not ids_of_kinds(lexicon.words, vocabulary):
        print(
            f"captions.lexicon: {params.lexicon}: none of its words is in the vocabulary, so there are no foils and no "
            "gates of content words; expected a lexicon in the captions' language"
        )
    foiled = [split for split in SPLITS if split != "train" or params.train_foils]
    foils = {
        split: foil_table(foils_of_split(params, lexicon, vocabulary, dataset, splits[split], words[split]))
        for split in foiled
    }
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        tokens = [encode(vocabulary, caption, params) for caption in words[split]]
        ids, images, texts = (rows[name].to_pylist() for name in ("caption_id", "image_id", "text"))
        equal = count_equal(images, tokens)
        path = out / f"{split}.parquet"
        write_captions(path, ids, images, texts, tokens, equal, vocabulary, params.max_words)
        print_words(split, vocabulary, words[split], params, equal)
    vocabulary.save(out / "vocabulary.json")
    save_words(lexicon.words, out / "lexicon.json")
    for split, table in foils.items():
        write_table(out / f"foils_{split}.parquet", table)
        count = Counter(table["kind"].to_pylist())
        print(f"{split}: {len(table)} foils ({', '.join(f'{kind} {count[kind]}' for kind in KINDS)})")


def main() -> None:
    tokenize_captions(
        read_params(TokenizeSections).captions,
        dataset=Path("data/dataset"),
        rejected=Path("data/regions/rejected.parquet"),
        out=Path("data/captions"),
    )


if __name__ == "__main__":
    stage_main(main)
