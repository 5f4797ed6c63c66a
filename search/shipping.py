"""Export a workspace's model to a folder that also describes its features, so that it can search any pictures.

python -m search.shipping pretrained/flickr8k
"""

import argparse
import shutil
from pathlib import Path

from camp_model.checkpoint import load_checkpoint
from camp_model.files import replacing
from camp_model.regions import RegionStore
from search.features import Extraction, copy_detector
from search.sample import sample_picture, write_sample
from search.workspace import Workspace
from stages.contracts import input_errors, read_fingerprint
from stages.detectors.base import Description
from stages.entry import stage_main
from stages.errors import InputError
from stages.params.section import PARAMS

FILES = ("model.safetensors", "config.json", "vocabulary.json", "fingerprint.json")


def export_model(workspace: Workspace, out: Path) -> None:
    """Copy a workspace's model with a description of its features; other files in `out` stay.

    Raises:
        InputError: the model is damaged, its features cannot be computed for other pictures or have changed, or `out`
            is a file. Nothing is written then.
        OSError: `out` cannot be written; no weights are in it then.
    """
    with input_errors():
        load_checkpoint(workspace.model)
    fingerprint = read_fingerprint(workspace.model)
    if not fingerprint:
        raise InputError(f"{workspace.model / FILES[-1]}: is not there; expected a model of the stage train")
    params = workspace.params
    extraction = Extraction(detector=params.detector, regions=params.regions, captions=workspace.trained_captions)
    extraction.check_can_extract(workspace.root / PARAMS)
    finder = workspace.finder()
    regions = workspace.root / "data/regions"
    if regions.is_dir() or fingerprint.get("detector") != Description.load(finder.folder).fingerprint:
        with input_errors():
            workspace.check_features(finder, RegionStore(regions))
    sample = finder.find_regions(sample_picture()).features
    if out.resolve() == workspace.model.resolve() or not (out.is_dir() or not out.exists()):
        raise InputError(f"{out}: expected a folder of its own for the model, or a new name")
    out.mkdir(parents=True, exist_ok=True)
    (out / FILES[0]).unlink(missing_ok=True)  # an earlier export's, which the new files would describe wrongly
    extraction.write(out)
    copy_detector(finder.folder, params.detector, out)
    write_sample(sample, out / "detector")
    for name in reversed(FILES):  # the weights last: without them it is not a model
        with replacing(out / name) as temporary:
            shutil.copyfile(workspace.model / name, temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FOLDER", help="created if missing; other files in it are kept")
    export_model(Workspace(Path()), parser.parse_args().out)


if __name__ == "__main__":
    stage_main(main, arguments=True)
