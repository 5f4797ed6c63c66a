"""Stage report: write one self-contained HTML page with the results.

`python -m stages.report --summary` prints the recall table and where to look further.
"""

import argparse
from pathlib import Path

from stages.contracts import check_results, read_object
from stages.entry import read_params, stage_main
from stages.errors import InputError
from stages.evaluation.recall_table import recall_text
from stages.reporting.inputs import Inputs, ReportSections

PAGE_LIMIT = 15_000_000
"""Most bytes that the page may have."""
RESULTS = Path("data/evaluation/results.json")
METRICS = "the metrics of the stage evaluate"
PAGE = Path("report/index.html")


def write_report(params: ReportSections, inputs: Inputs, out: Path) -> None:
    """Write the page of `inputs` to the file `out`, and log it to MLflow.

    Raises:
        InputError: an input is missing, damaged or from another run than the others; or the page exceeds PAGE_LIMIT.
    """
    from camp_model.files import write_text
    from stages.reporting.contents import contents
    from stages.reporting.page import render
    from stages.tracking import track, training_run_of

    with track("report", {"report": params.report}, parent=training_run_of(inputs.model)) as run:
        context = contents(params, inputs, PAGE_LIMIT)
        page = render(context)
        if (size := len(page.encode())) > PAGE_LIMIT:
            raise InputError(f"report.queries, report.top_k: the page has {size:,} bytes; expected fewer queries")
        write_text(out, page)
        run.log_artifact(out, "report", shared=context["as_trained"])
    print(f"{out}: {size / 1e6:.1f} MB")


def print_summary(metrics: Path, page: Path) -> None:
    """Print the recall table, the gates, the foils, and where to look further. It imports nothing slow.

    Raises:
        InputError: metrics/retrieval.json is missing, or a file of metrics is damaged.
    """
    retrieval = read_object(metrics / "retrieval.json", METRICS)
    check_results(metrics.parent / RESULTS, [metrics / f"{name}.json" for name in ("retrieval", "gates", "foils")])
    print(recall_text(retrieval, paper=True))
    if (metrics / "gates.json").is_file():
        for split, gates in read_object(metrics / "gates.json", METRICS).items():
            if gates.get("gate_auc") is not None:
                print(
                    f"\nMean word gate, {split}: {gates['gate_positive_mean']:.3f} on matching pairs, "
                    f"{gates['gate_negative_mean']:.3f} on random ones (AUC {gates['gate_auc']:.3f})"
                )
    if (metrics / "foils.json").is_file():
        for split, kinds in read_object(metrics / "foils.json", METRICS).items():
            if overall := kinds.get("all"):
                print(
                    f"\nOne word changed, {split}: {overall['true_first']:.1f} % of {overall['foils']:,} foils score "
                    "below their true caption"
                )
    print(f"\nReport: {page.resolve()}" if page.is_file() else f"\nReport: {page} is not drawn yet")
    print("MLflow: make ui")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the report page, or print a summary of the last run.")
    parser.add_argument("--summary", action="store_true", help="print the recall table and the report's path")
    if parser.parse_args().summary:
        print_summary(Path("metrics"), PAGE)
    else:
        write_report(read_params(ReportSections), Inputs(), PAGE)


if __name__ == "__main__":
    stage_main(main, arguments=True)
