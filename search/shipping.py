"""Put a workspace's model into a folder that says itself which features it reads, to be used on any pictures.

python -m search.shipping pretrained/flickr8k
"""

import argparse
import shutil
import sys
from pathlib import Path

from camp_model.checkpoint import load_checkpoint
from search.features import Extraction, copy_detector
from search.workspace import Workspace
from stages.contracts import input_errors
from stages.errors import InputError

FILES = ("model.safetensors", "config.json", "vocabulary.json", "fingerprint.json")


def ship(workspace: Workspace, out: Path) -> None:
    """Copy a workspace's model, and write what it was trained on beside it; other files in `out` stay.

    Raises:
        InputError: the model is damaged, or its features cannot be computed for other pictures.
    """
    with input_errors():
        load_checkpoint(workspace.model)
    params = workspace.params
    extraction = Extraction(detector=params.detector, regions=params.regions, captions=params.captions)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(workspace.model / name, out / name)
    extraction.write(out)
    copy_detector(workspace.root / "data/detector", params.detector, out)
    Extraction.of_model(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    try:
        ship(Workspace(Path()), parser.parse_args().out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
