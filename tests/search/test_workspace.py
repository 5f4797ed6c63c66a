"""Search in a workspace: what CAMP's own code says of the same pictures and sentences."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from camp_model.captions import write_captions
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoding import encode_images, encode_sentences
from camp_model.files import write_sealed
from camp_model.regions import RegionStore, write_rejected
from search.collection import PictureCollection, UnknownPicture, open_workspace
from search.workspace import Workspace
from stages.detectors.base import Description
from stages.detectors.scenes import build_network
from stages.detectors.weights import save_state
from stages.errors import InputError
from stages.extraction.plan import ExtractSections
from stages.indexing.vectors import picture_vectors
from tests.search.conftest import NETWORK, Photographs, extract_in
from tests.stages.conftest import SmallRun

SENTENCE = "A red circle above two blue things"


def test_the_answer_is_what_the_model_scores(run: SmallRun, workspace: PictureCollection) -> None:
    store = RegionStore(run.regions)
    model, vocabulary, _ = load_checkpoint(run.model)
    words = encode_sentences(model, [vocabulary.encode(vocabulary.tokenize(SENTENCE))])
    with torch.inference_mode():
        scores = model.score_matrix(*encode_images(model, store, range(len(store))), *words)[:, 0].numpy()
    answer = workspace.search(SENTENCE, top=100)
    assert [hit.picture_id for hit in answer.hits] == [store.image_ids[at] for at in np.argsort(-scores)]
    assert [hit.score for hit in answer.hits] == pytest.approx(np.sort(scores)[::-1], abs=1e-5)
    assert (answer.scored, answer.total) == (len(store), len(store))


def test_it_is_searched_while_another_run_removes_its_regions(run: SmallRun, workspace: PictureCollection) -> None:
    expected = open_workspace(run.root).search(SENTENCE, top=100)
    shutil.rmtree(run.regions)
    assert workspace.search(SENTENCE, top=100) == expected
    assert len(workspace.similar_to(expected.hits[0].picture_id, 5)) == 5


def test_more_rows_go_on_where_the_first_ended(workspace: PictureCollection) -> None:
    whole = workspace.search(SENTENCE, top=12).hits
    assert workspace.search(SENTENCE, top=5).hits + workspace.search(SENTENCE, top=7, offset=5).hits == whole
    assert workspace.search(SENTENCE, top=5, offset=1000).hits == []


def test_words_that_the_model_does_not_know_are_said(workspace: PictureCollection) -> None:
    answer = workspace.search("A red zyzzyva, zyzzyva circle", top=1)
    assert answer.words == ["a", "red", "zyzzyva", "zyzzyva", "circle"]
    assert answer.unknown == ["zyzzyva"]


@pytest.mark.parametrize("sentence", ["", "  ", "!?", "\N{GRINNING FACE}"])
def test_a_sentence_without_a_word_is_an_error(workspace: PictureCollection, sentence: str) -> None:
    with pytest.raises(InputError, match="holds no word"):
        workspace.search(sentence, top=1)


def test_a_long_sentence_is_cut_and_said(workspace: PictureCollection) -> None:
    assert workspace.search("red " * 100, top=1).dropped == 40


def test_a_pair_is_explained(run: SmallRun, workspace: PictureCollection) -> None:
    hit = workspace.search(SENTENCE, top=1).hits[0]
    view = workspace.pair(hit.picture_id, SENTENCE)
    store = RegionStore(run.regions)
    row = store.row_of(hit.picture_id)
    assert view.score == pytest.approx(hit.score, abs=1e-5)
    assert (view.width, view.height) == store.size(row)
    assert np.array(view.boxes) == pytest.approx(store.boxes(row))
    assert len(view.effects) == len(view.details["words"]) == 7
    assert np.array(view.details["wordAttention"]).shape == (7, len(view.boxes))


def test_only_pictures_of_the_collection_are_served(run: SmallRun, workspace: PictureCollection) -> None:
    name = run.images[3]
    assert workspace.file(name).path == run.root / f"data/dataset/images/{name}.png"
    assert workspace.pixels(name).ndim == 3
    for wrong in ("nothing", "../../etc/passwd", f"{name}.png", ""):
        with pytest.raises(UnknownPicture):
            workspace.file(wrong)
        with pytest.raises(UnknownPicture):
            workspace.pair(wrong, SENTENCE)


def test_similar_pictures_of_a_picture_of_the_collection_are_the_nearest_vectors(
    run: SmallRun, workspace: PictureCollection
) -> None:
    store = RegionStore(run.regions)
    vectors = picture_vectors(workspace.model, store, np.arange(len(store)))
    cosines = vectors @ vectors[4]
    order = [store.image_ids[at] for at in np.argsort(-cosines) if at != 4]
    hits = workspace.similar_to(store.image_ids[4], top=6)
    assert [hit.picture_id for hit in hits] == order[:6]
    assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines)[::-1][1:7], abs=1e-5)
    with pytest.raises(UnknownPicture):
        workspace.similar_to("nothing", top=1)


def test_the_first_pictures_and_sentences_to_begin_with(run: SmallRun, workspace: PictureCollection) -> None:
    hits = workspace.first(3) + workspace.first(100, offset=3)
    assert [hit.picture_id for hit in hits] == run.images
    assert workspace.examples(3) == []  # this run has no training captions
    shutil.copy(run.token_tables / "test.parquet", run.token_tables / "train.parquet")
    examples = workspace.examples(3)
    assert len(set(examples)) == 3 and set(examples) <= {text for _, _, text in run.captions}
    assert examples == workspace.examples(3)
    texts = ["\u4e24\u53ea\u72d7\u5728\u96ea\u5730\u91cc", "a dog", "\u72d7"]  # without spaces, and two too short
    write_captions(run.token_tables / "train.parquet", [0, 1, 2], ["a"] * 3, texts, [[4]] * 3)
    assert workspace.examples(3) == texts[:1]


def test_what_another_run_has_set_aside_is_seen_when_it_is_read_again(
    run: SmallRun, workspace: PictureCollection
) -> None:
    before = workspace.status().rejected_count
    write_rejected(run.regions, RegionStore(run.regions).info, [("new", "new.png", "is truncated")] * (before + 1))
    workspace.rescan()
    assert workspace.status().rejected == [("new.png", "is truncated")] * (before + 1)
    assert workspace.status().rejected_count == before + 1


def test_vectors_of_another_model_are_not_mixed_in(run: SmallRun, workspace: PictureCollection) -> None:
    before = workspace.search(SENTENCE, top=100)
    model, vocabulary, _ = load_checkpoint(run.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    save_checkpoint(run.model, model, vocabulary)
    with pytest.raises(InputError, match=r"models/camp: is another model now; restart the search"):
        workspace.rescan()
    assert workspace.search(SENTENCE, top=100) == before
    assert open_workspace(run.root).search(SENTENCE, top=100) != before


def test_a_workspace_that_has_trained_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"models/camp: is not there: .*`make repro`.*--images"):
        open_workspace(tmp_path)


def test_a_changed_byte_of_the_regions_is_said(run: SmallRun, workspace: PictureCollection) -> None:
    shard = run.regions / "b.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    workspace.start()
    workspace.source._checking.join()
    said = workspace.status().progress
    assert said.startswith("Regions cannot be read as they were written") and "Indexing" not in said
    assert f"{shard}: is damaged" in said and "remove the file, run `dvc repro`" in said
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    workspace.rescan()
    workspace.source._checking.join()
    assert workspace.status().problem is None, "another run of the pipeline has made it again"
    shard.unlink()
    workspace.start()
    workspace.source._checking.join()
    assert workspace.status().problem is None, "what is removed stays mapped"
    workspace.close()


def test_a_sentence_is_framed_as_the_model_was_trained_whatever_params_say_now(run: SmallRun, tmp_path: Path) -> None:
    expected = open_workspace(run.root).search(SENTENCE, top=100).hits
    path = run.model / "fingerprint.json"
    facts = json.loads(path.read_text()) if path.is_file() else {}
    (run.root / "params.yaml").write_text("captions: {start_end: true}\n")
    assert open_workspace(run.root).search(SENTENCE, top=100).hits != expected, "of a model that does not say"
    write_sealed(path, {**facts, "start_end": False})
    assert open_workspace(run.root).search(SENTENCE, top=100).hits == expected
    assert not Workspace(run.root).trained_captions.start_end


def test_a_sentence_is_cut_as_the_model_was_trained_whatever_params_say_now(run: SmallRun) -> None:
    path = run.model / "fingerprint.json"
    facts = json.loads(path.read_text())
    (run.root / "params.yaml").write_text("captions: {max_words: 2}\n")
    assert open_workspace(run.root).search(SENTENCE, top=1).dropped, "of a model that does not say"
    write_sealed(path, {**facts, "max_words": 60})
    assert not open_workspace(run.root).search(SENTENCE, top=1).dropped
    write_sealed(path, {**facts, "max_words": 0})
    with pytest.raises(InputError, match=r"fingerprint\.json: max_words: 0 is below 1"):
        open_workspace(run.root)


@pytest.mark.parametrize("changed", ["weights", "geometry", "nms_iou"])
def test_a_picture_is_not_compared_by_features_that_its_workspace_does_not_have(
    photographs: Photographs, tmp_path: Path, changed: str
) -> None:
    """As where params.yaml is edited, or another detector is made, before the regions are extracted again."""
    root, image = tmp_path / "workspace", np.full((50, 60, 3), 100, np.uint8)
    shutil.copytree(photographs.root, root)
    expected = open_workspace(root).find_regions(image)
    params = yaml.safe_load((root / "params.yaml").read_text())
    if changed == "weights":
        torch.manual_seed(5)
        sha256 = save_state(build_network(NETWORK, 3, 2).state_dict(), root / "data/detector")
        replace(Description.load(root / "data/detector"), weights_sha256=sha256).save(root / "data/detector")
    elif changed == "geometry":
        params["regions"]["geometry"] = True
    else:
        params["detector"] = {"torchvision": {"nms_iou": 0.01}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    collection = open_workspace(root)
    assert collection.search("a picture", top=3).hits, "what needs no detector is answered"
    for _ in range(2):
        with pytest.raises(InputError, match=r"data/regions: .*: its features differ by up to"):
            collection.find_regions(image)
    params = params | {
        "detector": {"torchvision": {"nms_iou": 0.5}},
        "regions": params["regions"] | {"max_pixels": 10**6},
    }
    if changed == "nms_iou":  # other names of shards, but the same features
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        assert np.array_equal(open_workspace(root).find_regions(image), expected)


def test_regions_that_were_extracted_again_meanwhile_are_compared_again(
    photographs: Photographs, tmp_path: Path
) -> None:
    root, image = tmp_path / "workspace", np.full((50, 60, 3), 100, np.uint8)
    shutil.copytree(photographs.root, root)
    collection = open_workspace(root)
    collection.find_regions(image)
    sections = ExtractSections.from_dict(
        {name: values for name, values in yaml.safe_load((root / "params.yaml").read_text()).items()
         if name in ("dataset", "regions")} | {"detector": {"torchvision": {"nms_iou": 0.01}}}
    )  # fmt: skip
    extract_in(root, sections)
    collection.rescan()
    with pytest.raises(InputError, match=r"data/regions: .*: its features differ by up to"):
        collection.find_regions(image)


def test_params_that_were_edited_before_another_run_are_read_again_with_its_outputs(
    photographs: Photographs, tmp_path: Path
) -> None:
    root, image = tmp_path / "workspace", np.full((50, 60, 3), 100, np.uint8)
    shutil.copytree(photographs.root, root)
    collection = open_workspace(root)
    before = collection.find_regions(image)
    shutil.copytree(photographs.pictures, tmp_path / "moved")
    params = yaml.safe_load((root / "params.yaml").read_text()) | {"detector": {"torchvision": {"nms_iou": 0.01}}}
    params["dataset"]["root"] = str(tmp_path / "moved")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    extract_in(root, ExtractSections.load(root / "params.yaml"))
    collection.rescan()
    after = collection.find_regions(image)
    assert not np.array_equal(after, before) and np.array_equal(after, open_workspace(root).find_regions(image))
    assert collection.file(photographs.ids[0]).path.parent == tmp_path / "moved"
