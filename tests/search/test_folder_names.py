"""Odd names, folders within that cannot be read, links and pipes in a folder of pictures."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from starlette.testclient import TestClient

from search.collection import PictureCollection
from search.features import Extraction, copy_detector, ready_detector
from search.web.application import create_application
from stages.detectors import torchvision
from stages.detectors.base import Description
from stages.detectors.scenes import build_network
from stages.detectors.weights import save_state
from stages.errors import InputError
from stages.params.detector import DetectorParams
from tests.search.folders import CONFIG, REGIONS, Folder, make_model, shards, wait_for


def test_names_of_files_may_be_anything(folder: Folder) -> None:
    shutil.rmtree(folder.images)
    names = [b"\xff\xfe not UTF-8.png", b"line\nbreak.png", b"<img src=x onerror=alert(1)>.png", "ένα 图.png".encode()]
    folder.images.mkdir()
    for i, name in enumerate(names):
        picture = folder.draw("drawn.png", i)
        picture.rename(os.fsdecode(os.fsencode(folder.images) + b"/" + name))
    collection = folder.open()
    collection.start()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.problem) == (4, None)
    assert sorted(os.fsencode(name) for name in folder.names(collection)) == sorted(names)


def test_names_that_are_no_utf8_reach_the_page_and_the_api_as_text(folder: Folder) -> None:
    odd = os.fsencode(folder.images) + b"/\xff\xfe"
    (folder.images / "0.png").rename(os.fsdecode(odd + b".png"))
    Path(os.fsdecode(odd + b"-broken.png")).write_bytes(b"no picture")
    collection = folder.open()
    collection.start()
    wait_for(collection)
    client = TestClient(create_application(collection), base_url="http://127.0.0.1")
    hits = client.get("/api/search", params={"q": "a red circle", "top": 100}).json()["pictures"]
    assert "\ufffd\ufffd.png" in [hit["name"] for hit in hits]
    assert [broken["name"] for broken in client.get("/api/rejected").json()] == ["\ufffd\ufffd-broken.png"]
    for address in ("/", "/?q=a+red+circle", "/rows?q=a", *(f"/picture?id={hit['id']}&q=a" for hit in hits)):
        assert client.get(address).status_code == 200, address
    collection.close()


def test_a_folder_within_that_cannot_be_read_is_listed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.draw("closed/7.png", 7)
    scan = os.scandir

    def closed(path: str) -> object:  # tests may run as root, whom no permission stops
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    collection = folder.open()
    collection.start()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.problem) == (7, None)
    assert status.rejected == [("closed", "is a folder that cannot be read (Permission denied)")]


def test_links_that_lead_round_or_nowhere_and_pipes_keep_nobody_waiting(folder: Folder) -> None:
    (folder.images / "round").symlink_to(folder.images)
    (folder.images / "nowhere.png").symlink_to(folder.root / "missing.png")
    (folder.images / "itself.png").symlink_to(folder.images / "itself.png")
    os.mkfifo(folder.images / "pipe.png")
    collection = folder.open()
    collection.start()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.total, status.problem) == (7, 7, None)
    assert dict(status.rejected) == {
        "nowhere.png": "cannot be read (No such file or directory)",
        "itself.png": "cannot be read (Too many levels of symbolic links)",
        "pipe.png": "is not a file",
        "round": "is a link to a folder, which is not followed",
    }


def test_weights_of_one_name_are_read_again_for_a_model_that_was_trained_on_others(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file is overwritten, or a package is updated."""
    detector = folder.root / "models/detector"
    fingerprints = []
    for seed in (0, 5):
        torch.manual_seed(seed)
        sha256 = save_state(build_network(CONFIG, 3, 2).state_dict(), detector)
        replace(Description.load(detector), weights_sha256=sha256).save(detector)
        name_weights(folder, monkeypatch)
        found = ready_detector(Extraction.of_model(folder.model), folder.model, folder.root / "cache")
        fingerprints.append(Description.load(found).fingerprint)
    assert fingerprints[1] == Description.load(detector).fingerprint != fingerprints[0]


def test_a_model_that_is_exported_anew_meanwhile_puts_no_features_of_its_detector_into_the_cache(
    folder: Folder, opened: PictureCollection
) -> None:
    opened.close()
    before = shards(folder)
    collection = folder.open()  # whose detector is loaded for a new picture
    detector = folder.model / "detector"
    torch.manual_seed(9)
    sha256 = save_state(build_network(CONFIG, 3, 2).state_dict(), detector)
    replace(Description.load(detector), weights_sha256=sha256).save(detector)
    (folder.model / "fingerprint.json").write_text(json.dumps({"detector": Description.load(detector).fingerprint}))
    folder.draw("new.png", 20)
    collection.start()
    status = wait_for(collection)
    with pytest.raises(InputError, match="is another detector now"):
        collection.find_regions(np.zeros((40, 60, 3), np.uint8))
    collection.close()
    assert shards(folder) == before and status.ready == 7
    assert status.problem.startswith("indexing has stopped: ") and "restart the search" in status.problem


@pytest.mark.parametrize("damaged", ["detector.json", "weights.safetensors", ""])
def test_a_detector_that_is_damaged_or_gone_from_the_cache_is_fetched_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    def damage() -> None:
        (path,) = (folder.root / "cache/detectors").glob(f"*/{damaged}")
        if damaged:
            path.write_bytes(path.read_bytes()[:-1])
        else:
            shutil.rmtree(path.parent)

    name_weights(folder, monkeypatch)
    folder.open().close()
    damage()
    collection = folder.open()
    damage()  # while it is searched; the detector is loaded for the first new picture
    collection.start()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.problem) == (7, None)


def name_weights(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folder's model one whose detector's weights are named, not shipped with it."""
    detector = folder.root / "models/detector"
    named = DetectorParams(architecture="fasterrcnn_resnet50_fpn", weights="weights.pth")
    monkeypatch.setattr(torchvision, "resolve", lambda params, out, dataset: resolved(detector, out))
    make_model(folder.model)
    copy_detector(detector, named, folder.model)
    Extraction(detector=named, regions=REGIONS).write(folder.model)


def resolved(detector: Path, out: Path) -> Description:
    """What a detector's backend answers, which has read its weights now."""
    shutil.copy(detector / "weights.safetensors", out)
    return Description.load(detector)


def test_every_extension_of_a_format_that_is_decoded_is_listed(folder: Folder) -> None:
    """Stereo cameras write .mpo and .jps, browsers .apng; of several pictures in a file, the first is indexed."""
    for path in folder.images.iterdir():
        path.unlink()
    drawn, turned = (Image.effect_noise((64, 48), size).convert("RGB") for size in (30, 90))
    more = {"save_all": True, "append_images": [turned]}
    for number, (kind, extension, options) in enumerate(
        [("JPEG", ".jps", {}), ("MPO", ".mpo", more), ("PNG", ".apng", more), ("JPEG2000", ".jpf", {}),
         ("JPEG2000", ".j2c", {"no_jp2": True}), ("JPEG2000", ".jpc", {"no_jp2": True})]
    ):  # fmt: skip
        ImageChops.offset(drawn, number).save(folder.images / f"{number}{extension}", kind, **options)
    (folder.images / "camera.nrw").touch()
    collection = folder.open()
    collection.start()
    status = wait_for(collection)
    collection.close()
    assert (status.ready, status.rejected) == (6, [("camera.nrw", "is in a format that is not read (.nrw)")])
