"""Reads what the report shows, and prepares it for the page's template."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from camp_model.captions import CaptionTable
from camp_model.checkpoint import load_checkpoint
from camp_model.encoding import captions_as_read
from camp_model.files import sha256_of
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.contracts import check_results, check_trained_on, input_errors, read_fingerprint, read_object, read_table
from stages.errors import InputError
from stages.evaluation.recall_table import HEADINGS, coarseness_note, eccv_lines
from stages.evaluation.tables import FOIL_SCHEMA, METRICS, PAIR_SCHEMA, QUERY_SCHEMA, evaluated_files
from stages.params.dataset import SPLITS, DatasetParams
from stages.reporting import page
from stages.reporting.explorer import explorer_data
from stages.reporting.foils import foil_rows, gallery
from stages.reporting.inputs import Inputs, ReportSections
from stages.reporting.pictures import ReportedPicture
from stages.reporting.queries import Inspector

EVALUATED = "what the stage evaluate writes"
CURVES = ("train_loss", "val_recall", "val_gates")
"""Files of plots, in the order in which `contents` reads them."""
MARGIN = 300_000
"""Bytes reserved for everything on the page except the data of the interactive part."""


@dataclass(frozen=True)
class Loaded:
    """Results of the earlier stages."""

    retrieval: dict[str, dict[str, float]]
    gates: dict[str, dict[str, Any]]
    training: dict[str, Any]
    evaluations: dict[str, pa.Table]
    gate_pairs: dict[str, list[Any]]
    foils: dict[str, dict[str, Any]]
    foil_scores: list[dict[str, Any]]
    split: str
    """The split whose queries are shown: test if it was evaluated."""
    images: pa.Table
    caption_splits: list[str]
    store: RegionStore
    captions: CaptionTable
    vocabulary: Vocabulary
    model: CAMP


def _load(inputs: Inputs) -> Loaded:
    retrieval = read_object(inputs.metrics / "retrieval.json", EVALUATED)
    if not retrieval:
        raise InputError(f"{inputs.metrics / 'retrieval.json'}: holds no split; expected at least one")
    split = "test" if "test" in retrieval else next(iter(retrieval))
    with input_errors():
        vocabulary = Vocabulary.load(inputs.captions / "vocabulary.json")
        model = load_checkpoint(inputs.model, "cpu", vocabulary)[0]
        loaded = Loaded(
            retrieval=retrieval,
            gates=read_object(inputs.metrics / "gates.json", EVALUATED),
            training=read_object(inputs.metrics / "train.json", "the metrics of the stage train"),
            evaluations={
                # Further protocols of a split have rows of recalls but no tables.
                name: _read_evaluated(inputs.evaluation / f"{name}.parquet", QUERY_SCHEMA)
                for name in retrieval
                if not name.endswith("_coco_1k")
            },
            gate_pairs=_read_evaluated(inputs.evaluation / f"gates_{split}.parquet", PAIR_SCHEMA).to_pydict(),
            foils=read_object(inputs.metrics / "foils.json", EVALUATED),
            foil_scores=_read_evaluated(inputs.evaluation / f"foils_{split}.parquet", FOIL_SCHEMA).to_pylist(),
            split=split,
            images=read_table(inputs.dataset / "images.parquet", ("image_id", "path", "split", "sha256")),
            caption_splits=read_table(inputs.dataset / "captions.parquet", ("split",))["split"].to_pylist(),
            store=RegionStore(inputs.regions),
            captions=captions_as_read([model], vocabulary, CaptionTable.load(inputs.captions / f"{split}.parquet")),
            vocabulary=vocabulary,
            model=model,
        )
    check_trained_on(inputs.model, model.config, loaded.store)
    of = evaluated_files(inputs.model, inputs.regions, inputs.captions, [split])
    results = [inputs.metrics / f"{name}.json" for name in METRICS]
    check_results(inputs.evaluation / "results.json", [*of, *results])
    curves = [inputs.plots / f"{name}.csv" for name in CURVES]
    check_results(inputs.model / "fingerprint.json", [inputs.metrics / "train.json", *curves])
    return loaded


def _read_evaluated(path: Path, schema: pa.Schema) -> pa.Table:
    return read_table(path, schema.names, EVALUATED, form=schema.metadata[b"camp.format"].decode())


def contents(params: ReportSections, inputs: Inputs, limit: int) -> dict[str, Any]:
    """Return everything that page.html.jinja reads.

    Args:
        limit: most bytes that the page may have.

    Raises:
        InputError: an input is missing, damaged or from another run than the others; or the page would exceed `limit`.
    """
    loaded = _load(inputs)
    split, root = loaded.split, params.dataset.image_root(inputs.dataset)
    pictures = {
        row["image_id"]: ReportedPicture(root / row["path"], row["sha256"]) for row in loaded.images.to_pylist()
    }
    inspector = Inspector(loaded.model, loaded.store, loaded.captions, loaded.vocabulary)
    data = explorer_data(
        loaded.evaluations[split],
        loaded.foil_scores,
        inspector,
        params.report,
        pictures=pictures,
        limit=limit - MARGIN,
        max_pixels=params.regions.max_pixels,
    )
    alts = {key: image["alt"] for key, image in data["images"].items()}
    notes = {name: page.protocol_note(table.schema.metadata) for name, table in loaded.evaluations.items()}
    gates = loaded.gates.get(split, {})
    loss, recall, by_epoch = (page.read_curve(inputs.plots / f"{name}.csv") for name in CURVES)
    dataset = dataset_name(params.dataset)
    return {
        "title": f"CAMP on {dataset}: text-image retrieval",
        "dataset_name": dataset,
        "lead": f"Every image of the {split} split is ranked against every caption, and every caption against every "
        f"image: {notes[split]}." + coarseness_note(page.image_count(loaded.evaluations[split].schema.metadata)),
        "split": split,
        "as_trained": page.is_as_trained(loaded.evaluations[split].schema.metadata),
        "headline": page.headline(loaded.retrieval[split], gates),
        "headings": HEADINGS[:-1],
        "recall_rows": page.recall_rows(loaded.retrieval, notes),
        "more_matches": [line for item in loaded.retrieval.items() for line in eccv_lines(*item)],
        "context_note": page.context_note(params.dataset.source),
        "explore_text": f"{min(params.report.queries, len(data['queries']['t2i']))} queries each way, drawn at random, "
        "and the worst failures. m is the matching score, in brackets its logit. Pick a query, one of its results, "
        "then a word: the boxes show where it looks, the bar under it how far its gate is open."
        + (" Foils, captions with one word changed, are shown the same way." if data["foils"] else ""),
        "failures": page.failures(data["queries"], alts),
        "foil_rows": foil_rows(loaded.foils.get(split, {})),
        "foil_cards": gallery(data["foils"], alts),
        "foils_by_gate": any(entry["byGate"] is not None for entry in data["foils"]),
        **page.gate_context(gates, loaded.gate_pairs, by_epoch),
        "charts": page.charts(loss, recall, loaded.training.get("best_epoch")),
        "facts": _facts(params, loaded, inputs.model),
        "data": data,
    }


def dataset_name(dataset: DatasetParams) -> str:
    """The data set's name for readers: its folder's name, unless that is the default."""
    if dataset.source == "scenes":
        return "drawn scenes"
    if (folder := Path(dataset.root).name) != "raw":
        return folder
    split_file = Path(dataset.karpathy.annotations).stem.removeprefix("dataset_")
    return {"karpathy": split_file, "coco": "COCO"}.get(dataset.source, "own pictures")


def _facts(params: ReportSections, loaded: Loaded, model_folder: Path) -> list[dict[str, Any]]:
    """Facts about the run: titled lists of (label, value)."""
    images, captions = Counter(loaded.images["split"].to_pylist()), Counter(loaded.caption_splits)
    config = loaded.model.config
    store = loaded.store
    rejected = len(loaded.images) - len(store)
    size = sum(value.numel() for value in loaded.model.parameters())
    data: list[tuple[str, str]] = [("source", params.dataset.source)]
    data += [(split, f"{images[split]:,} images, {captions[split]:,} captions") for split in SPLITS]
    data += [
        ("unreadable images", f"{rejected:,}"),
        ("regions", f"at most {store.max_regions} an image, {store.region_dim:,} features each"),
        ("detector", store.detector[:12]),
        ("vocabulary", f"{len(loaded.vocabulary):,} words ({loaded.vocabulary.sha256[:12]})"),
    ]
    switches = {key: value for key, value in config.to_dict().items() if key not in ("vocab_size", "region_dim")}
    if config.pooling != "mlp":
        switches.pop("pooling_heads")
    model = [(key.replace("_", " "), {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value)
             for key, value in switches.items()]  # fmt: skip
    trained = [
        (key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value)
        for key, value in loaded.training.items()
        # The curves show recalls and gates by epoch.
        if isinstance(value, int | float | str) and not key.startswith(("val_i2t", "val_t2i", "val_gate"))
    ]
    # `python -m stages.tracking restore` finds the run and its commit by this hash. Neither is shown here, so that
    # equal results give equal pages.
    weights = sha256_of(model_folder / "model.safetensors")[:12]
    origin = [("model (its sha256)", weights), ("report seed", params.report.seed)]
    if start := read_fingerprint(model_folder).get("start_from"):
        origin.append(("training started from", start))
    return [
        {"title": "Data", "rows": data},
        {"title": "Model", "rows": [*model, ("parameters", f"{size:,}")]},
        {"title": "Training", "rows": trained},
        {"title": "Origin", "rows": origin},
    ]
