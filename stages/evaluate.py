"""Measure retrieval in both directions, and what the gates do on pairs that match and pairs that do not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from camp_model.camp import CAMP
from camp_model.captions import CaptionTable
from camp_model.checkpoint import load_checkpoint
from camp_model.metrics import coco_folds, mean_metrics, ranks_to_metrics
from camp_model.regions import RegionStore, replacing
from camp_model.vocabulary import Vocabulary
from stages.evaluation.gates import measure_gates
from stages.evaluation.recall_table import recall_text
from stages.evaluation.scores import Ranking, Split, rank_fold, score_fold
from stages.fingerprint import read_fingerprint
from stages.params import EvaluateParams, InputError, load_params, stage_main
from stages.tracking import track
from stages.training.device import choose_device

ROW_SCHEMA = pa.schema(
    [
        ("direction", pa.string()),
        ("query_id", pa.string()),
        ("rank", pa.int32()),
        ("top_ids", pa.list_(pa.string())),
        ("top_scores", pa.list_(pa.float32())),
    ]
)


def read_split(name: str, captions: Path, store: RegionStore) -> Split:
    """Read a split's captions and find their images in the store.

    Raises:
        InputError: the captions cannot be read, name an image without regions, or belong to fewer than two images.
    """
    try:
        table = CaptionTable.load(captions / f"{name}.parquet")
        index = table.image_index(store.image_ids)
    except ValueError as error:
        raise InputError(str(error)) from None
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
    try:
        vocabulary = Vocabulary.load(captions / "vocabulary.json")
        models = [load_checkpoint(folder, device, vocabulary)[0] for folder in folders]
    except ValueError as error:
        raise InputError(str(error)) from None
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
    """A row of ROW_SCHEMA for each query of a fold."""
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


def measure_split(
    params: EvaluateParams, models: Sequence[CAMP], store: RegionStore, split: Split, device: torch.device
) -> tuple[dict[str, float], dict[str, Any], pa.Table, pa.Table]:
    """Recall (mean over the protocol's folds), gate means, a table of the queries and one of the gates' pairs."""
    recalls, rows, hardest = [], [], []
    folds = folds_of(split, params.protocol)
    for fold in folds:
        by_image, by_caption = rank_fold(score_fold(models, store, fold, device), fold.caption_image)
        recalls.append(ranks_to_metrics(by_image.ranks, by_caption.ranks))
        rows += query_rows(fold, by_image, by_caption)
        # The wrong image that scores highest with each caption.
        hardest.append(np.where(by_caption.top[:, 0] == fold.caption_image, by_caption.top[:, 1], by_caption.top[:, 0]))
    gates, pairs = measure_gates(models[0], store, folds, hardest, pairs=params.gate_pairs, device=device)
    metadata = {
        "camp.format": "evaluation",
        "camp.version": "1",
        "camp.protocol": params.protocol,
        "camp.models": str(len(models)),
        "camp.images": str(sum(len(fold.images) for fold in folds)),
        "camp.captions": str(sum(len(fold.rows) for fold in folds)),
    }
    return mean_metrics(recalls), gates, pa.Table.from_pylist(rows, ROW_SCHEMA).replace_schema_metadata(metadata), pairs


def evaluate(params: EvaluateParams, *, regions: Path, captions: Path, model: Path, out: Path, metrics: Path) -> None:
    """Evaluate a checkpoint, or an ensemble with it, on the splits of `params`.

    Args:
        regions, captions, model: folders of the region store, the caption tables and the checkpoint.
        out: folder for `{split}.parquet`, a row per query, and `gates_{split}.parquet`, a row per inspected pair.
        metrics: folder for retrieval.json and gates.json.

    Raises:
        InputError: a checkpoint of another vocabulary, detector or feature width; a split that is too small for the
            protocol; a file that cannot be read.
    """
    try:
        store = RegionStore(regions)
    except ValueError as error:
        raise InputError(str(error)) from None
    device = choose_device(params.device, "evaluate.device")
    splits = {name: read_split(name, captions, store) for name in params.splits}
    models = load_models([model, *map(Path, params.ensemble)], store, captions, device)
    with track("evaluate", {"evaluate": params}, parent=read_fingerprint(model).get("mlflow_run_id")) as run:
        try:
            found = {name: measure_split(params, models, store, split, device) for name, split in splits.items()}
        except ValueError as error:  # a torn shard
            raise InputError(str(error)) from None
        retrieval = {name: recall for name, (recall, _, _, _) in found.items()}
        gates = {name: values for name, (_, values, _, _) in found.items()}
        write_tables(out, {f"{name}.parquet": table for name, (_, _, table, _) in found.items()})
        write_tables(out, {f"gates_{name}.parquet": table for name, (_, _, _, table) in found.items()})
        write_json(metrics / "retrieval.json", retrieval)
        write_json(metrics / "gates.json", gates)
        for name in found:
            numbers = {**retrieval[name], **{k: v for k, v in gates[name].items() if isinstance(v, float)}}
            run.log_metrics({f"{name}/{key}": value for key, value in numbers.items()})
        for file in ("retrieval.json", "gates.json"):
            run.log_artifact(metrics / file, "metrics")
    print(recall_text(retrieval))


def write_tables(folder: Path, tables: Mapping[str, pa.Table]) -> None:
    for name, table in tables.items():
        with replacing(folder / name) as temporary:
            pq.write_table(table, temporary)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    evaluate(
        load_params().evaluate,
        regions=Path("data/regions"),
        captions=Path("data/captions"),
        model=Path("models/camp"),
        out=Path("data/evaluation"),
        metrics=Path("metrics"),
    )


if __name__ == "__main__":
    stage_main(main)
