"""The tables that evaluation writes for each split (a row per query, per pair with measured gates, per foil), and the
files that they depend on."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from camp_model.gates import SIDES

QUERY_SCHEMA = pa.schema(
    [
        ("direction", pa.string()),
        ("query_id", pa.string()),
        ("rank", pa.int32()),
        ("top_ids", pa.list_(pa.string())),
        ("top_scores", pa.list_(pa.float32())),
        ("image_id", pa.string()),
        ("right_id", pa.string()),
        ("right_score", pa.float32()),
    ],
    metadata={"camp.format": "evaluation", "camp.version": "1"},
)
"""image_id: the query itself (i2t) or the image of the caption (t2i); right_id: the best right answer, which has the
rank, and its logit. The file's metadata also say how it came about: camp.queries is the sha256 of what was ranked
(`stages.evaluation.folds.queries_hash`)."""

PAIR_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("image_id", pa.string()),
        ("caption_id", pa.int64()),
        *((side, pa.float32()) for side in SIDES),
    ],
    metadata={"camp.format": "gates", "camp.version": "1"},
)
"""kind: positive, negative (a random other image) or hardest (the other image with the highest score); words, content
and regions: mean gate over the pair's real words, content words or regions, null if there are none."""

FOIL_SCHEMA = pa.schema(
    [
        ("caption_id", pa.int64()),
        ("image_id", pa.string()),
        ("kind", pa.string()),
        ("caption", pa.string()),
        ("foil", pa.string()),
        ("position", pa.int32()),  # of the changed word, in tokens
        ("word", pa.string()),
        ("foil_word", pa.string()),
        ("caption_score", pa.float32()),  # logits
        ("foil_score", pa.float32()),
        ("guilty_by_score", pa.int32()),  # positions
        ("guilty_by_gate", pa.int32()),  # null where words have no gates
        ("candidates", pa.int32()),  # words that could be held responsible
    ],
    metadata={"camp.format": "foils", "camp.version": "1"},
)


METRICS = ("retrieval", "gates", "foils")
"""Names of the files of metrics that evaluation writes."""


def evaluated_files(model: Path, regions: Path, captions: Path, splits: Iterable[str]) -> list[Path]:
    """The files that an evaluation depends on: the model's weights, the regions' manifest, the splits' captions."""
    return [
        model / "model.safetensors", regions / "manifest.parquet", *(captions / f"{split}.parquet" for split in splits)
    ]  # fmt: skip
