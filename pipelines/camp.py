"""The console command `camp`: the project's other commands by name, from any folder.

camp --repository ~/camp reproduce
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from stages.workspace import STARTED_IN

COMMANDS = {
    "unpack": (
        "pipelines.unpack",
        "write out the pictures and captions in Parquet (Hugging Face) or tar (webdataset)",
    ),
    "params": ("stages.params", "write params.yaml from presets, or check it"),
    "reproduce": ("pipelines.reproduce", "run the stages that are out of date, each as a task of a Prefect flow"),
    "refresh": ("pipelines.refresh", "the same, if DVC reports that something is out of date"),
    "extract": ("pipelines.extract", "extract missing region shards on many workers"),
    "sweep": ("pipelines.experiments", "train every combination of a grid side by side"),
    "ablation": ("pipelines.ablation", "the study: ablations and baselines with several seeds"),
    "photographs": ("pipelines.photographs", "the same on photographs, starting from a joint embedding"),
    "deploy": ("pipelines.deploy", "deploy the flows on a Prefect server"),
    "search": ("search", "find pictures by a sentence: printed, or on a page"),
    "tracking": (
        "stages.tracking",
        "MLflow: open it, deliver waiting events, compare and restore runs, promote",
    ),
    "report": ("stages.report", "draw the report; --summary prints its numbers"),
    "import": ("camp_model.import_released", "turn checkpoints of the authors' code into this project's"),
}
REPOSITORY = "CAMP_REPOSITORY"


def main() -> None:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="camp",
        description="Commands of the CAMP pipeline; `camp COMMAND --help` explains one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:{width}}{what}" for name, (_, what) in COMMANDS.items()),
    )
    parser.add_argument(
        "--repository", type=Path, default=os.environ.get(REPOSITORY), metavar="DIR",
        help=f"repository to run in (default: ${REPOSITORY}, or the repository that contains the current folder)",
    )  # fmt: skip
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    arguments = parser.parse_args()
    if arguments.command is None:
        parser.print_help()
        return
    here = Path.cwd()
    candidates = [arguments.repository.resolve()] if arguments.repository else [here, *here.parents]
    repository = next((folder for folder in candidates if (folder / "dvc.yaml").is_file()), None)
    if repository is None:
        parser.error(f"{candidates[0]}: is not a repository of the pipeline (no dvc.yaml); name one with --repository")
    if arguments.command != "import" and not all(map(find_spec, ("pydantic", "prefect", "mlflow", "dvc"))):
        parser.error(f"{arguments.command} needs the pipeline's packages: pip install 'camp-retrieval[pipeline]'")
    os.environ[STARTED_IN] = str(here)
    if arguments.command != "import":  # it reads and writes nothing of the repository
        os.chdir(repository)
    os.execv(sys.executable, [sys.executable, "-m", COMMANDS[arguments.command][0], *arguments.arguments])


if __name__ == "__main__":
    main()
