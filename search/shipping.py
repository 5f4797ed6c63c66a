"""Export a workspace's model to a folder that also describes its features, so that it can search any pictures.

python -m search.shipping pretrained/flickr8k
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from camp_model.checkpoint import load_checkpoint
from camp_model.files import replacing
from camp_model.regions import RegionStore
from search.features import Extraction, RegionFinder, copy_detector
from search.sample import TOLERANCE, difference, sample_picture, write_sample
from search.workspace import Workspace
from stages.contracts import input_errors, read_fingerprint
from stages.detectors.base import Description
from stages.detectors.images import RejectedImage, read_image
from stages.entry import stage_main
from stages.errors import InputError, shown
from stages.params.section import PARAMS

COMPARED = 8
"""Number of the workspace's pictures whose features are computed again, to compare them."""
FILES = ("model.safetensors", "config.json", "vocabulary.json", "fingerprint.json")


def export_model(workspace: Workspace, out: Path) -> None:
    """Copy a workspace's model with a description of its features; other files in `out` stay.

    Raises:
        InputError: the model is damaged, its features cannot be computed for other pictures or have changed, or `out`
            is a file. Nothing is written then.
        OSError: `out` cannot be written; no new weights are in it then.
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
    if fingerprint.get("detector") != Description.load(finder.folder).fingerprint:
        check_features(workspace, finder)  # its code or a library has changed since
    sample = finder.find_regions(sample_picture()).features
    if out.resolve() == workspace.model.resolve() or not (out.is_dir() or not out.exists()):
        raise InputError(f"{out}: expected a folder of its own for the model, or a new name")
    out.mkdir(parents=True, exist_ok=True)
    extraction.write(out)
    copy_detector(finder.folder, params.detector, out)
    write_sample(sample, out / "detector")
    for name in reversed(FILES):  # the weights last: without them it is not a model
        with replacing(out / name) as temporary:
            shutil.copyfile(workspace.model / name, temporary)


def check_features(workspace: Workspace, finder: RegionFinder) -> None:
    """Check that pictures still have the features that the model was trained on.

    Raises:
        InputError: a picture cannot be read, or its features differ.
    """
    with input_errors():
        store = RegionStore(workspace.root / "data/regions")
        files = workspace.files()
        for row in np.unique(np.linspace(0, len(store) - 1, COMPARED).astype(np.int64)).tolist():
            file = files[store.image_ids[row]]
            try:
                image = read_image(file.path, file.sha256, workspace.params.regions.max_pixels)
            except RejectedImage as error:
                raise InputError(f"{file.path}: {error}; expected the pictures that were trained on") from None
            features, mask = store.features([row])
            size = difference(finder.find_regions(image).features, features[0][mask[0]])
            if size > TOLERANCE:
                raise InputError(
                    f"{store.path}: {shown(store.image_ids[row])}: its features differ by up to {size:.2g} standard "
                    "deviations from what the detector extracts now; expected a model trained on that (dvc repro)"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FOLDER", help="created if missing; other files in it are kept")
    export_model(Workspace(Path()), parser.parse_args().out)


if __name__ == "__main__":
    stage_main(main, arguments=True)
