"""The model that is shipped, on photographs that it was not trained on."""

import json
import statistics
from pathlib import Path

import pytest

from camp_model.checkpoint import load_checkpoint
from search.collection import open_folder
from search.features import Extraction
from stages.contracts import read_fingerprint
from tests.search.folders import wait_for


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "pretrained" / "flickr8k"


def test_the_shipped_model_is_whole_small_and_says_what_it_reads(shipped: Path) -> None:
    model, vocabulary, _ = load_checkpoint(shipped)
    extraction = Extraction.of_model(shipped)
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) <= 16_000_000
    assert (extraction.detector.backend, extraction.regions.boxes) == ("timm", "grid")
    assert model.config.region_dim == 1752 and model.config.why_no_gates() is None
    assert read_fingerprint(shipped)["joint_weight"] > 0, "it has a shortlist"
    assert vocabulary.encode(["dog", "snow"]) != vocabulary.encode(["unheard", "unheard"])
    assert (shipped / "README.md").is_file()


@pytest.mark.timeout(600)
def test_captions_of_photographs_find_them(shipped: Path, coco_mini: Path, tmp_path: Path) -> None:
    """79 photographs: by chance half of the captions would find theirs among the first 40."""
    annotated = json.loads((coco_mini / "annotations/captions_val2017.json").read_text())
    files = {image["id"]: image["file_name"] for image in annotated["images"]}
    first = {caption["image_id"]: caption["caption"] for caption in annotated["annotations"]}
    collection = open_folder(coco_mini / "val2017", model=shipped, cache=tmp_path)
    collection.start()
    try:
        assert wait_for(collection, 500).ready >= 79
        ranks = []
        for image_id, caption in first.items():
            names = [collection.picture(hit.picture_id).name for hit in collection.search(caption, top=1000).hits]
            ranks.append(names.index(files[image_id]) + 1)
        print(sorted(ranks))
        assert statistics.median(ranks) <= 8
        sentence = next(iter(first.values()))
        view = collection.pair(collection.search(sentence, top=1).hits[0].picture_id, sentence)
        assert len(view.boxes) == 36 and len(view.effects) == len(view.details["words"])
    finally:
        collection.close()
