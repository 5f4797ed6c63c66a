"""The foils of a split's captions, as rows of the table of foils."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from camp_model.vocabulary import Vocabulary
from stages.foils.facts import photograph_facts, scene_facts
from stages.foils.lexicon import Lexicon
from stages.foils.making import foils_of
from stages.params.captions import CaptionsParams
from stages.tokens.vocabulary import encode


def foils_of_split(
    params: CaptionsParams,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    dataset: Path,
    table: pa.Table,
    words: Sequence[list[str]],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split's table of foils, made one by one.

    Args:
        dataset: the folder that prepare_dataset writes, for facts about the pictures.
        table: the split's captions, as in captions.parquet.
        words: of each caption.

    Raises:
        InputError: the ground truth or the table of boxes cannot be read.
    """
    ids, images, texts = (table[name].to_pylist() for name in ("caption_id", "image_id", "text"))
    if params.lexicon == "scenes":
        facts = scene_facts(dataset / "scenes.parquet", images, texts)
    else:
        facts = photograph_facts(lexicon, images, words, dataset / "boxes.parquet")
    captions = zip(ids, images, texts, words, facts, strict=True)
    shown = tqdm(captions, "foils", len(ids), unit="caption", delay=5)
    for caption_id, image_id, text, caption, known in shown:
        for foil in foils_of(caption_id, text, caption[: params.max_words], known, lexicon, vocabulary):
            tokens = encode(vocabulary, foil.words, params)
            yield {
                "caption_id": caption_id, "image_id": image_id, "text": foil.text, "tokens": tokens,
                "length": len(tokens), "kind": foil.kind, "position": foil.position + params.start_end,
                "word": foil.word, "foil_word": foil.foil_word,
            }  # fmt: skip
