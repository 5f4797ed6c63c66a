"""`python -m stages.params presets/coco.yaml presets/faster_rcnn.yaml` writes params.yaml; alone checks it."""

import argparse
import sys
from pathlib import Path

from stages.entry import stage_main
from stages.params.pipeline import Params, check_dvc_keys
from stages.params.presets import apply_presets
from stages.workspace import argument_path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.params",
        description="Write the defaults and then the presets to params.yaml (comments stay), or only check it.",
    )
    parser.add_argument("presets", type=Path, nargs="*", help="files such as those of presets/; later ones override")
    # A file where `camp` was started, or else one of the repository.
    given = parser.parse_args().presets
    presets = [own if (own := argument_path(path)).is_file() else path for path in given]
    if presets:
        for note in apply_presets(presets):
            print(note, file=sys.stderr)
    Params.load()
    check_dvc_keys()
    print("params.yaml is valid" + (f": the defaults with {', '.join(map(str, given))}" if presets else ""))


if __name__ == "__main__":
    stage_main(main, arguments=True)
