"""The flow `photographs`: the study on photographs, CAMP on the encoders of a joint embedding, one change at a time.

params.yaml defines the data, the features and the full model (`make photographs` uses the presets); another preset
defines the joint embedding that it starts from. Each seed's joint embedding is trained first, and is a row itself.

python -m pipelines.photographs --jobs 2
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from camp_model.files import replacing_folder
from pipelines.ablation import check_seeds, study_parser, with_seeds
from pipelines.commands import allow_commands, prefect_command, run_command
from pipelines.dag import check_experiments
from pipelines.experiments import run_in_parallel
from pipelines.pairs import by_name
from pipelines.photograph_rows import ADDITIONS, FIRST, JOINT, WORDS, rows_of, starts_from_joint
from pipelines.reproduce import DVC
from pipelines.study import SPLIT, Outcomes, commit_of, difference_of, read_study
from pipelines.study_answers import interval
from pipelines.study_document import Page, check_document, write_document
from pipelines.summary import costs_markdown, table
from pipelines.variants import check_evaluated, params_of, warn_of_kept_params, warn_of_left_out
from stages.errors import InputError
from stages.params.document import rewrite
from stages.params.pipeline import Params
from stages.params.section import PARAMS
from stages.workspace import main_root

STARTS = Path("models/photographs")
"""Folder, in the main workspace, of the joint embeddings that other rows start from."""
SHARED = ("prepare_dataset", "extract_regions", "tokenize_captions")
"""Stages whose results all rows share."""


@flow(name="photographs")
def photographs(
    rows: list[str] = [],  # noqa: B006
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    base: dict[str, Any] = {},  # noqa: B006
    first: str = str(FIRST),
    jobs: int = 1,
    document: str = "docs/photographs.md",
) -> list[dict[str, Any]]:
    """The study on photographs: train every row with several seeds and write the comparison.

    Args:
        rows: names of rows; the full model and the joint embedding are always added. Empty: all rows.
        seeds: training seeds of every row.
        base: params set for all rows that do not set them themselves.
        first: the preset of the joint embedding that the others start from.
        jobs: experiments that run at the same time.
        document: file to write the comparison to.
    """
    check_seeds(seeds)
    check_document(document)
    _reset_start()
    (full,) = params_of({f"full-s{seeds[0]}": base}).values()
    known, obstacles = rows_of(full, Path(first), base)
    for name in sorted({*rows, "full", JOINT} - known.keys()):
        reason = f"cannot be trained: {obstacles[name]}" if name in obstacles else f"is not one of {', '.join(known)}"
        raise InputError(f"rows: {name!r:.80} {reason}")
    chosen = {name: row for name, row in known.items() if not rows or name in (*rows, "full", JOINT)}
    overrides = {name: row.overrides for name, row in chosen.items()}
    check_evaluated(params_of(with_seeds(overrides, seeds[:1], base)), SPLIT)
    warn_of_kept_params(overrides, base)
    check_experiments(jobs)
    # Rows differ in train.start_from, which a stage upstream of these two reads: update them here, once for all rows.
    allow_commands()
    left_out = {} if rows else obstacles
    warn_of_left_out(left_out)
    run_command([*DVC, "repro", "extract_regions", "tokenize_captions"], get_run_logger().info)
    joint = with_seeds({JOINT: overrides.pop(JOINT)}, seeds, base)
    first_results, names, _ = run_in_parallel("photographs", joint, jobs, False, "evaluate")
    later_rows: dict[str, Any] = {}
    for seed in seeds:
        start = {"train.start_from": str(_copy_start(names[f"{JOINT}-s{seed}"]))}
        starting = {name: start | row if starts_from_joint(chosen[name]) else row for name, row in overrides.items()}
        later_rows |= with_seeds(starting, [seed], base)
    later_results, more, parent = run_in_parallel("photographs", later_rows, jobs, False, "evaluate")
    names |= more
    labels = {name: row.label for name, row in chosen.items()}
    experiments = {name: [names[f"{name}-s{seed}"] for seed in seeds] for name in chosen}
    study = read_study(experiments, labels, seeds, base, parent)
    costs = costs_markdown(SHARED, {labels[name]: of_row for name, of_row in experiments.items()}, jobs)
    page = replace(PAGE, remarks=_remarks(study.outcomes, full) + costs, left_out=left_out)
    write_document(Path(document), study, page)
    get_run_logger().info("written: %s", document)
    return first_results + later_results


PAGE = Page(title="Photographs", command="python -m pipelines.photographs")
FLICKR8K = [
    {"model": "DVSA (2015)", "its features had seen": "ImageNet's classes and boxes", "rsum": 199.9},
    {"model": "MFM", "its features had seen": "ImageNet's classes", "rsum": 340.4},
    {"model": "NAA", "its features had seen": "ImageNet's classes", "rsum": 343.5},
    {"model": "SCAN, two models", "its features had seen": "1,600 classes and 400 attributes of Visual Genome's boxes",
     "rsum": 407.4},
    {"model": "IMRAM, two models", "its features had seen": "the same", "rsum": 420.0},
]  # fmt: skip
"""Results on Flickr8k's official test split after training on Flickr8k alone, from papers since IMRAM (CVPR 2020)."""


def _remarks(outcomes: Outcomes, params: Params) -> str:
    """Markdown below the page's table of recalls: the gain of each addition, and published results of other models on
    the data of `params`."""
    sections = [
        "The full model, and every change to it, starts from the joint embedding of the same seed. Rows trained with "
        "the transformer start from the pretrained transformer only.\n"
    ]
    if rows := effects(outcomes):
        sections += ["rsum with each addition minus without it, with its 95 % interval:\n", table(rows)]
    for other, label in ((JOINT, "the joint embedding"), ("no-gates", "the same without gates"),
                         ("no-messages", "the same without messages")):  # fmt: skip
        if gain := _gain(outcomes, f"full-{WORDS}", f"{other}-{WORDS}"):
            sections += [f"Both trained with the transformer, the full model minus {label}: {gain} rsum.\n"]
    if gain := _gain(outcomes, "tuned", "tuned-without-term"):
        sections += [f"Worth of the joint term if the encoders continue to be trained: {gain} rsum.\n"]
    if Path(params.dataset.karpathy.annotations).name == "dataset_flickr8k.json":
        sections += ["Published results on the same test split, trained on Flickr8k alone:\n", table(FLICKR8K)]
    return "\n".join(sections)


def effects(outcomes: Outcomes) -> list[dict[str, Any]]:
    """A row per addition: its gain on the joint embedding and on the full model."""
    labels = {name: row.label for name, row in ADDITIONS.items()} | {
        "all-of-these": "all of these", WORDS: "transformer trained",
    }  # fmt: skip
    rows = []
    for name, label in labels.items():
        cells = {head: _gain(outcomes, f"{base}-{name}", base)
                 for base, head in ((JOINT, "joint embedding"), ("full", "full model"))}  # fmt: skip
        if any(cells.values()):
            rows.append({"addition": label, **cells})
    return rows


def _gain(outcomes: Outcomes, row: str, other: str) -> str:
    """The rsum of a row minus that of another, with its interval; empty if either was not trained."""
    return interval(difference_of(outcomes[row], outcomes[other])) if {row, other} <= outcomes.keys() else ""


def _reset_start() -> None:
    """Set train.start_from to null in params.yaml, because each seed starts from its own joint embedding."""
    params = Params.load()
    if (start := params.train.start_from) is not None:
        print(f"params.yaml: train.start_from: set to null (was {start}), because each row sets its own", flush=True)
        rewrite(PARAMS, params.replace(train=params.train.replace(start_from=None)).to_dict())


def _copy_start(experiment: str) -> Path:
    """Copy a finished experiment's model to a folder to start from; return it, relative to the main workspace."""
    from dvc.api import DVCFileSystem

    folder = STARTS / experiment
    target = main_root() / folder
    if not target.is_dir():
        files = DVCFileSystem(rev=commit_of(experiment))
        with replacing_folder(target) as building:
            for name in files.find("models/camp"):
                files.get_file(name, str(building / Path(name).name))
    return folder


def main() -> None:
    study = "The study on photographs: CAMP on the encoders of a joint embedding."
    parser = study_parser(study, "docs/photographs.md")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows besides full and joint-embedding")
    parser.add_argument("--first", default=str(FIRST), help="preset of the joint embedding (default: %(default)s)")
    arguments = parser.parse_args()
    with prefect_command():
        photographs(arguments.only, arguments.seeds, by_name(arguments.set), arguments.first, arguments.jobs,
                    arguments.document)  # fmt: skip


if __name__ == "__main__":
    main()
