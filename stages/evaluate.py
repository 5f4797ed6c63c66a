"""Stage evaluate: measure retrieval in both directions, gates on matching and mismatched pairs, and whether a caption
with one word changed scores lower."""

from collections.abc import Mapping
from pathlib import Path

from camp_model.files import write_json, write_sealed, write_table, write_text
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.charts.gates import histogram_page
from stages.contracts import hashes_of, input_errors, read_fingerprint
from stages.device import Precision, choose_device
from stages.entry import read_params, stage_main
from stages.evaluation.folds import folds_of, read_split
from stages.evaluation.loading import check_start_end, load_models, read_lexicon, read_with_oov_words
from stages.evaluation.measuring import SplitMeasures, measure_split
from stages.evaluation.other_gates import with_gates
from stages.evaluation.recall_table import coarseness_note, recall_text
from stages.evaluation.tables import METRICS, evaluated_files
from stages.params.evaluate import EvaluateParams
from stages.params.section import StageSections
from stages.tracking import Run, track, training_run_of
from stages.workspace import named_path


class EvaluateSections(StageSections):
    """The sections of params.yaml that the stage reads."""

    evaluate: EvaluateParams = EvaluateParams()


def evaluate(params: EvaluateParams, *, regions: Path, captions: Path, model: Path, out: Path, metrics: Path) -> None:
    """Evaluate a checkpoint, or an ensemble that includes it, on the splits of `params`.

    Args:
        regions, captions, model: folders of the region store, the caption tables and the checkpoint.
        out: folder for `{split}.parquet`, a row per query; `gates_{split}.parquet`, a row per measured pair, with
            histograms in `gates_{split}.html`; `foils_{split}.parquet`, a row per foil; and results.json, the hashes of
            the metrics and of the files that were evaluated.
        metrics: folder for retrieval.json, gates.json and foils.json.

    Raises:
        InputError: a checkpoint has another vocabulary, detector, feature width or `start_end`; a split is too small
            for the protocol; or a file cannot be read.
    """
    with input_errors():
        store = RegionStore(regions)
        vocabulary = Vocabulary.load(captions / "vocabulary.json")
    device = choose_device(params.device, "evaluate.device")
    trained = read_fingerprint(model).get("precision", "fp32")
    precision = Precision(trained if params.precision == "trained" else params.precision, device, "evaluate.precision")
    splits = {name: read_split(name, captions, store) for name in params.splits}
    folders = [model, *map(named_path, params.ensemble)]
    models = load_models(folders, store, vocabulary, device)
    check_start_end(folders, captions, splits[params.splits[0]].captions.has_start_end)
    splits, lexicon = read_with_oov_words(models, vocabulary, splits, read_lexicon(params, captions, vocabulary))
    first = splits[params.splits[0]]
    models = [with_gates(params, *loaded, store, first) for loaded in zip(folders, models, strict=True)]
    as_trained = params.gates == "trained" and not params.ensemble
    with track("evaluate", {"evaluate": params}, parent=training_run_of(model), shared=as_trained) as run:
        with precision.autocast(), input_errors():  # a damaged shard raises a ValueError
            measured: dict[str, SplitMeasures] = {
                name: measure_split(params, models, store, split, lexicon) for name, split in splits.items()
            }
        retrieval = _write(measured, out, metrics, run)
        of = evaluated_files(model, regions, captions, params.splits)
        results = hashes_of([*of, *(metrics / f"{name}.json" for name in METRICS)])
        write_sealed(out / "results.json", {"results": results})
    print(recall_text(retrieval))
    for name, split in splits.items():
        ranked = len({image for fold in folds_of(split, params.protocol) for image in fold.images})
        if ranked < len(split.images):
            print(f"{name}: the first {ranked} of {len(split.images)} images are ranked (evaluate.protocol)")
        if remark := coarseness_note(len(split.images)):
            print(f"{name}:{remark}")


def _write(measured: Mapping[str, SplitMeasures], out: Path, metrics: Path, run: Run) -> dict[str, dict[str, float]]:
    """Write and record the tables and metrics of each split; return those of retrieval.json."""
    for name, of_split in measured.items():
        tables = {name: of_split.queries, f"gates_{name}": of_split.pairs, f"foils_{name}": of_split.foil_scores}
        for table, content in tables.items():
            write_table(out / f"{table}.parquet", content)
        write_text(out / f"gates_{name}.html", histogram_page(f"Gates, {name} split", of_split.pairs.to_pydict()))
        run.log_metrics({f"{name}/{key}": value for key, value in of_split.numbers().items()})
        run.log_artifact(out / f"gates_{name}.html", "gates")
        run.log_artifact(out / f"{name}.parquet", "queries")
    further = {f"{name}_coco_1k": of_split.recall_1k for name, of_split in measured.items() if of_split.recall_1k}
    run.log_metrics({f"{name}/{key}": value for name, recall in further.items() for key, value in recall.items()})
    retrieval = {name: of_split.recall for name, of_split in measured.items()} | further
    gates = {name: of_split.gates for name, of_split in measured.items()}
    foils = {name: of_split.foils for name, of_split in measured.items()}
    for file, values in zip(METRICS, (retrieval, gates, foils), strict=True):
        write_json(metrics / f"{file}.json", values)
        run.log_artifact(metrics / f"{file}.json", "metrics")
    return retrieval


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
