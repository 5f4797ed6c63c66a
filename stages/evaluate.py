"""Measure retrieval in both directions, what the gates do on pairs that match and pairs that do not, and whether a
caption with one word changed scores lower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from camp_model.captions import CaptionTable
from camp_model.checkpoint import load_checkpoint
from camp_model.files import write_json, write_table, write_text
from camp_model.metrics import coco_folds, mean_metrics, ranks_to_metrics
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.contracts import input_errors, read_fingerprint
from stages.device import Precision, choose_device
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.evaluation.foils import choose_foils, foil_metrics, measure_foils
from stages.evaluation.gates import measure_gates
from stages.evaluation.recall_table import recall_text
from stages.evaluation.scores import Ranking, Split, rank_fold, score_fold
from stages.evaluation.tables import FOIL_SCHEMA, QUERY_SCHEMA
from stages.foils.table import Foils, read_foils
from stages.foils.words import CONTENT_KINDS, load_words, word_ids
from stages.params.evaluate import EvaluateParams
from stages.params.section import StageSections
from stages.reporting.charts import histogram_page
from stages.tracking import track
from stages.workspace import named_path


class EvaluateSections(StageSections):
    """What the stage reads of params.yaml."""

    evaluate: EvaluateParams = EvaluateParams()


def read_split(name: str, captions: Path, store: RegionStore) -> Split:
    """Read a split's captions and find their images in the store.

    Raises:
        InputError: the captions cannot be read, name an image without regions, or belong to fewer than two images.
    """
    with input_errors():
        table = CaptionTable.load(captions / f"{name}.parquet")
        index = table.image_index(store.image_ids)
    used, caption_image = np.unique(index, return_inverse=True)
    if len(used) < 2:
        raise InputError(
            f"{captions / f'{name}.parquet'}: image_id: has captions of {len(used)} images; expected 2 or more"
        )
    return Split(name, [store.image_ids[i] for i in used], table, np.arange(len(table)), caption_image)


def folds_of(split: Split, protocol: str) -> list[Split]:
    """The parts of a split that are ranked on their own under `protocol` (see EvaluateParams).

    Raises:
        InputError: the split has too few images for the protocol.
    """
    size, count = {"full": (len(split.images), 1), "coco_1k": (1000, 5), "coco_5k": (5000, 1)}[protocol]
    try:
        folds = coco_folds(split.caption_image, len(split.images), size, count)
    except ValueError as error:
        raise InputError(f"evaluate.protocol: {protocol}, split {split.name}: {error}; expected full") from None
    return [
        Split(split.name, split.images[images], split.captions, split.rows[captions], caption_image)
        for images, captions, caption_image in folds
    ]


def load_models(folders: Sequence[Path], store: RegionStore, captions: Path, device: torch.device) -> list[CAMP]:
    """Load checkpoints and make sure that they read these regions and these captions.

    Raises:
        InputError: a checkpoint is broken, or of another vocabulary, feature width or detector.
    """
    with input_errors():
        vocabulary = Vocabulary.load(captions / "vocabulary.json")
        models = [load_checkpoint(folder, device, vocabulary)[0] for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        if model.config.region_dim != store.region_dim:
            raise InputError(
                f"{folder / 'config.json'}: region_dim: {model.config.region_dim}, but the features of "
                f"{store.path} have {store.region_dim}"
            )
        detector = read_fingerprint(folder).get("detector")
        if detector not in (None, store.detector):
            raise InputError(
                f"{folder / 'fingerprint.json'}: detector: {detector!r}, but the regions of {store.path} come from "
                f"{store.detector!r}; expected a checkpoint trained on the regions of that detector"
            )
    return models


def query_rows(fold: Split, by_image: Ranking, by_caption: Ranking) -> list[dict[str, Any]]:
    """A row of QUERY_SCHEMA for each query of a fold."""
    caption_ids = [str(i) for i in fold.captions.caption_ids[fold.rows]]
    sides = (("i2t", fold.images, caption_ids, by_image), ("t2i", caption_ids, fold.images, by_caption))
    return [
        {
            "direction": direction,
            "query_id": query_id,
            "rank": int(ranking.ranks[i]),
            "top_ids": [candidates[at] for at in ranking.top[i]],
            "top_scores": ranking.top_scores[i],
        }
        for direction, queries, candidates, ranking in sides
        for i, query_id in enumerate(queries)
    ]


@dataclass(frozen=True)
class Measured:
    """What evaluation finds out about one split."""

    recall: dict[str, float]
    """Mean over the protocol's folds."""
    gates: dict[str, Any]
    foils: dict[str, dict[str, float | int | None]]
    queries: pa.Table
    """A row of QUERY_SCHEMA for each query."""
    pairs: pa.Table
    """The pairs whose gates were looked at."""
    foil_scores: pa.Table
    """A row of FOIL_SCHEMA for each foil scored."""

    def numbers(self) -> dict[str, float]:
        """All of it that is a number, for the tracking server."""
        foils = {f"foils_{kind}_{name}": value for kind, values in self.foils.items() for name, value in values.items()}
        return {k: v for k, v in {**self.recall, **self.gates, **foils}.items() if isinstance(v, int | float)}


@dataclass(frozen=True)
class Lexicon:
    """Ids of the words that the lexicon and the vocabulary have, and the foils made with it."""

    words: list[int]
    content: list[int]
    foils: dict[str, Foils]
    """By split."""


def read_lexicon(params: EvaluateParams, captions: Path) -> Lexicon:
    """What tokenize_captions wrote beside the captions; captions that were trained on have no foils.

    Raises:
        InputError: a file cannot be read or is of another format.
    """
    with input_errors():
        vocabulary = Vocabulary.load(captions / "vocabulary.json")
    words = load_words(captions / "lexicon.json")
    names = [name for name in params.splits if params.foils and name != "train"]
    foils: dict[str, Foils] = {name: read_foils(captions / f"foils_{name}.parquet") for name in names}
    return Lexicon(word_ids(words, vocabulary), word_ids(words, vocabulary, CONTENT_KINDS), foils)


def measure_split(
    params: EvaluateParams,
    models: Sequence[CAMP],
    store: RegionStore,
    split: Split,
    lexicon: Lexicon,
    device: torch.device,
) -> Measured:
    """Rank a split, look at gates and score foils."""
    recalls, rows, hardest = [], [], []
    folds = folds_of(split, params.protocol)
    for fold in folds:
        by_image, by_caption = rank_fold(score_fold(models, store, fold, device), fold.caption_image)
        recalls.append(ranks_to_metrics(by_image.ranks, by_caption.ranks))
        rows += query_rows(fold, by_image, by_caption)
        # The wrong image that scores highest with each caption.
        hardest.append(np.where(by_caption.top[:, 0] == fold.caption_image, by_caption.top[:, 1], by_caption.top[:, 0]))
    gates, pairs = measure_gates(
        models[0], store, folds, hardest, pairs=params.gate_pairs, content=lexicon.content, device=device
    )  # fmt: skip
    foil_scores = FOIL_SCHEMA.empty_table()
    if (foils := lexicon.foils.get(split.name)) is not None:
        chosen = choose_foils(foils, split, np.concatenate([fold.rows for fold in folds]), params.foils)
        foil_scores = measure_foils(models, store, split, foils, chosen, lexicon=lexicon.words, device=device)
    metadata = {
        **(QUERY_SCHEMA.metadata or {}),
        "camp.protocol": params.protocol,
        "camp.models": str(len(models)),
        "camp.images": str(sum(len(fold.images) for fold in folds)),
        "camp.captions": str(sum(len(fold.rows) for fold in folds)),
    }
    queries = pa.Table.from_pylist(rows, QUERY_SCHEMA).replace_schema_metadata(metadata)
    return Measured(mean_metrics(recalls), gates, foil_metrics(foil_scores), queries, pairs, foil_scores)


def evaluate(params: EvaluateParams, *, regions: Path, captions: Path, model: Path, out: Path, metrics: Path) -> None:
    """Evaluate a checkpoint, or an ensemble with it, on the splits of `params`.

    Args:
        regions, captions, model: folders of the region store, the caption tables and the checkpoint.
        out: folder for `{split}.parquet`, a row per query, `gates_{split}.parquet`, a row per inspected pair, with
            its histograms, `gates_{split}.html`, and `foils_{split}.parquet`, a row per foil.
        metrics: folder for retrieval.json, gates.json and foils.json.

    Raises:
        InputError: a checkpoint of another vocabulary, detector or feature width; a split that is too small for the
            protocol; a file that cannot be read.
    """
    with input_errors():
        store = RegionStore(regions)
    device = choose_device(params.device, "evaluate.device")
    trained = read_fingerprint(model).get("precision", "fp32")
    precision = Precision(trained if params.precision == "trained" else params.precision, device, "evaluate.precision")
    splits = {name: read_split(name, captions, store) for name in params.splits}
    models = load_models([model, *map(named_path, params.ensemble)], store, captions, device)
    lexicon = read_lexicon(params, captions)
    with track("evaluate", {"evaluate": params}, parent=read_fingerprint(model).get("mlflow_run_id")) as run:
        try:
            with precision.autocast():
                found = {
                    name: measure_split(params, models, store, split, lexicon, device) for name, split in splits.items()
                }
        except ValueError as error:  # a torn shard
            raise InputError(str(error)) from None
        for name, measured in found.items():
            tables = {name: measured.queries, f"gates_{name}": measured.pairs, f"foils_{name}": measured.foil_scores}
            for table, content in tables.items():
                write_table(out / f"{table}.parquet", content)
            write_text(out / f"gates_{name}.html", histogram_page(f"Gates, {name} split", measured.pairs.to_pydict()))
            run.log_metrics({f"{name}/{key}": value for key, value in measured.numbers().items()})
            run.log_artifact(out / f"gates_{name}.html", "gates")
        retrieval: dict[str, dict[str, float]] = {name: measured.recall for name, measured in found.items()}
        of_each = {"retrieval": retrieval, "gates": {name: measured.gates for name, measured in found.items()},
                   "foils": {name: measured.foils for name, measured in found.items()}}  # fmt: skip
        for file, values in of_each.items():
            write_json(metrics / f"{file}.json", values)
            run.log_artifact(metrics / f"{file}.json", "metrics")
    print(recall_text(retrieval))


def main() -> None:
    evaluate(
        read_params(EvaluateSections).evaluate,
        regions=Path("data/regions"),
        captions=Path("data/captions"),
        model=Path("models/camp"),
        out=Path("data/evaluation"),
        metrics=Path("metrics"),
    )


if __name__ == "__main__":
    stage_main(main)
