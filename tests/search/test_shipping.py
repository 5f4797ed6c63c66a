"""Models that are exported to be used on other machines."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from search.features import Extraction, _check_same
from search.sample import sample_picture
from search.shipping import export_model
from search.workspace import Workspace
from stages.detectors.base import Description
from stages.detectors.weights import save_state
from stages.errors import InputError
from tests.search.conftest import Photographs
from tests.search.folders import Folder, make_model, wait_for

SENTENCE = "two dogs in the snow"


def test_a_shipped_model_says_which_features_it_reads(folder: Folder, tmp_path: Path) -> None:
    """What is trained in a workspace can be shipped, and then used on any folder."""
    root = tmp_path / "workspace"
    make_model(root / "models/camp")
    (root / "models/camp/extraction.json").unlink()
    (root / "data").mkdir()
    (root / "models/detector").rename(root / "data/detector")
    params = "regions: {per_image: 4, min_per_image: 4, batch_size: 3, geometry: true}\n"
    (root / "params.yaml").write_text(params)
    export_model(Workspace(root), root / "shipped")
    ours = folder.open(root / "shipped")
    theirs = folder.open()
    for collection in (ours, theirs):
        collection.start()
        wait_for(collection)
        collection.close()
    assert ours.search(SENTENCE, 7).hits == theirs.search(SENTENCE, 7).hits


def test_what_is_shipped_was_trained_on_the_features_of_today(photographs: Photographs, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(photographs.root, root)
    facts = json.loads((root / "models/camp/fingerprint.json").read_text())
    # As if the code had changed since the training: pictures are looked at again, and found to be the same.
    (root / "models/camp/fingerprint.json").write_text(json.dumps(facts | {"detector": "0" * 64}))
    (root / "full/config.json").mkdir(parents=True)
    shutil.copy(root / "models/camp/model.safetensors", root / "full")
    with pytest.raises(OSError, match=r"config\.json"):
        export_model(Workspace(root), root / "full")
    assert not (root / "full/model.safetensors").exists(), "what cannot be written whole is no model"
    export_model(Workspace(root), root / "shipped")
    sample = np.load(root / "shipped/detector/sample.npy")
    seen = Workspace(root).finder().find_regions(sample_picture()).features
    assert sample.shape == seen.shape and np.abs(sample - seen).max() < 0.01 * seen.std()
    network = load_file(root / "data/detector/weights.safetensors")
    name = next(name for name, value in network.items() if value.ndim == 4)
    sha256 = save_state(network | {name: network[name] * 1.5}, root / "data/detector")
    description = Description.load(root / "data/detector")
    dataclasses.replace(description, weights_sha256=sha256).save(root / "data/detector")
    with pytest.raises(InputError, match=r"its features differ by up to .* standard deviations from what"):
        export_model(Workspace(root), root / "again")


def test_a_model_of_features_from_elsewhere_cannot_be_shipped(folder: Folder, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    make_model(root / "models/camp")
    (root / "data").mkdir()
    (root / "models/detector").rename(root / "data/detector")
    (root / "params.yaml").write_text("detector: {backend: precomputed, architecture: npz, weights: features}\n")
    with pytest.raises(InputError, match=r"params\.yaml: detector\.backend: precomputed looks at no pictures"):
        export_model(Workspace(root), root / "shipped")
    assert not (root / "shipped").exists(), "nothing is half written"
    (root / "params.yaml").unlink()
    for out in (root / "models/camp", root / "models/camp/config.json"):
        with pytest.raises(InputError, match=f"{out}: expected a folder of its own"):
            export_model(Workspace(root), out)


@pytest.mark.parametrize("origin", [None, "{}"])
def test_a_model_that_does_not_name_its_detector_is_still_compared_with_it(
    folder: Folder, capsys: pytest.CaptureFixture[str], origin: str | None
) -> None:
    record = folder.model / "fingerprint.json"
    record.unlink()
    if origin:
        record.write_text(origin)
    folder.open()
    assert "tiny: does not name the detector of its training; assumed: " in capsys.readouterr().err
    described = folder.model / "extraction.json"
    values = json.loads(described.read_text())
    values["regions"]["geometry"] = False
    described.write_text(json.dumps(values))
    says = r"config\.json: region_dim: 261, but the features that extraction\.json describes have 256; expected"
    with pytest.raises(InputError, match=says):
        folder.open()
    # As where extraction.json has another image_size than detector.json.
    description = Description.load(folder.model / "detector")
    dataclasses.replace(description, config=description.config | {"image_size": 64}).save(folder.model / "detector")
    says = r"detector\.json: fingerprint: .{12}, but extraction\.json names one that is .{12} here; expected"
    with pytest.raises(InputError, match=says):
        _check_same(Extraction.of_model(folder.model), folder.root / "models/detector", folder.model, folder.root)
