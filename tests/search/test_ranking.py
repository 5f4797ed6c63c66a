"""Two speeds and many callers: shortlists against all pictures, threads against one."""

import dataclasses
import gc
import html
import json
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from starlette.testclient import TestClient

from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint
from camp_model.encoding import encode_images, encode_sentences
from camp_model.joint import pooled_vectors
from camp_model.regions import RegionStore, write_manifest
from camp_model.retrieval import JointEmbedding, Retriever, build_index
from camp_model.vocabulary import UNK, Vocabulary
from search.collection import PictureCollection, open_workspace
from search.ranking import Ranker
from search.web.application import create_application
from search.web.queries import Queries
from stages.indexing.engines import vector_ids
from stages.indexing.vectors import picture_vectors
from tests.stages.conftest import SmallRun

SENTENCES = ["a red circle", "two blue things above a square", "one yellow circle", "a picture with green squares"]


def joint_run(run: SmallRun, shortlist: int) -> PictureCollection:
    """The small run, as if its model had been trained with the joint term."""
    facts = json.loads((run.model / "fingerprint.json").read_text())
    (run.model / "fingerprint.json").write_text(json.dumps(facts | {"joint_weight": 1.0}))
    (run.root / "params.yaml").write_text(f"index: {{shortlist: {shortlist}}}\n")
    return open_workspace(run.root)


def test_a_shortlist_of_all_is_the_exhaustive_search(run: SmallRun, workspace: PictureCollection) -> None:
    for size in (20, 500):
        joint = joint_run(run, size)
        for sentence in SENTENCES:
            ours, theirs = joint.search(sentence, 100).hits, workspace.search(sentence, 100).hits
            assert [hit.picture_id for hit in ours] == [hit.picture_id for hit in theirs]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)


def test_a_shortlist_holds_the_pictures_whose_vectors_are_nearest(run: SmallRun) -> None:
    joint = joint_run(run, 6)
    store, (model, vocabulary, _) = RegionStore(run.regions), load_checkpoint(run.model)
    for sentence in SENTENCES:
        with torch.inference_mode():
            regions, mask = encode_images(model, store, range(len(store)))
            words, word_mask = encode_sentences(model, [vocabulary.encode(vocabulary.tokenize(sentence))])
            cosines = (pooled_vectors(regions, mask) @ pooled_vectors(words, word_mask).T)[:, 0]
            nearest = cosines.topk(6).indices.sort().values
            scores = model.score_matrix(regions[nearest], mask[nearest], words, word_mask)[:, 0]
        expected = [store.image_ids[nearest[at]] for at in scores.argsort(descending=True)]
        answer = joint.search(sentence, 100)
        assert [hit.picture_id for hit in answer.hits] == expected
        assert (answer.scored, answer.total) == (6, 20)


def test_a_model_trained_without_the_joint_term_ranks_all_pictures(run: SmallRun, workspace: PictureCollection) -> None:
    (run.root / "params.yaml").write_text("index: {shortlist: 3}\n")
    assert workspace.search(SENTENCES[0], 100).scored == open_workspace(run.root).search(SENTENCES[0], 100).scored == 20


def test_two_models_and_one_give_the_same_with_a_shortlist_of_all(
    run: SmallRun, workspace: PictureCollection, make_run: Callable[..., SmallRun]
) -> None:
    """`camp_model.retrieval` needs a joint embedding beside CAMP; with a shortlist of all only CAMP's order counts."""
    model, vocabulary, _ = load_checkpoint(run.model)
    joint, _, _ = load_checkpoint(make_run(run.root / "joint", matcher="joint").model)
    store, embedding = RegionStore(run.regions), JointEmbedding(joint)
    retriever = Retriever(model, embedding, build_index(embedding, store), store)
    for sentence in SENTENCES:
        ids = vocabulary.encode(vocabulary.tokenize(sentence))
        result = retriever.search(torch.tensor([ids]), torch.tensor([len(ids)]), shortlist=20, top_k=20)
        hits = workspace.search(sentence, 100).hits
        assert [hit.picture_id for hit in hits] == [store.image_ids[row] for row in result.rows[0].tolist()]
        assert [hit.score for hit in hits] == pytest.approx(result.logits[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("shortlist", [None, 6])
def test_32_callers_at_once_get_what_one_gets(run: SmallRun, shortlist: int | None) -> None:
    collection = open_workspace(run.root) if shortlist is None else joint_run(run, shortlist)
    alone = {
        sentence: (collection.search(sentence, 10), collection.pair("image-03", sentence)) for sentence in SENTENCES
    }
    collection._rankings.clear()
    barrier = threading.Barrier(32)

    def ask(number: int) -> list[bool]:
        barrier.wait()
        same = []
        for turn in range(10):
            sentence = SENTENCES[(number + turn) % len(SENTENCES)]
            answer = collection.search(sentence, 10), collection.pair("image-03", sentence)
            same.append(answer == alone[sentence])
        return same

    with ThreadPoolExecutor(32) as pool:
        assert all(all(same) for same in pool.map(ask, range(32)))


def test_pictures_of_earlier_states_are_not_kept_by_the_sentences_that_searched_them(
    workspace: PictureCollection,
) -> None:
    earlier = []
    for sentence in SENTENCES:
        answer = workspace.search(sentence, 5)
        earlier.append(weakref.ref(workspace.source.pictures()))
        workspace.rescan()
        assert workspace.search(sentence, 5) == answer
    workspace.close()
    gc.collect()
    assert [state() for state in earlier] == [None] * len(SENTENCES)


@pytest.mark.parametrize("held", [0, 7_000, 10**9])
def test_what_is_held_between_queries_changes_no_score_and_keeps_its_bound(
    run: SmallRun, workspace: PictureCollection, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.ranking.BLOCK", 3)
    pictures, reader = workspace.source.pictures(), workspace.reader
    ranker = Ranker(workspace.model, None, held)
    for sentence in SENTENCES * 2:
        ranked = ranker.rank(pictures, reader.read(sentence).ids)
        hits = workspace.search(sentence, 100).hits
        assert [pictures.ids[at] for at in ranked.positions] == [hit.picture_id for hit in hits]
        assert ranker._cached_bytes <= held
    assert (ranker._cached_bytes > 0) == (held > 0)
    assert (len(ranker._cached) == 7) == (held == 10**9)


@pytest.mark.parametrize("room", [0, 4_000, 10**9])
def test_what_shortlists_hold_changes_no_score_and_keeps_its_bound(run: SmallRun, room: int) -> None:
    joint = joint_run(run, 6)
    pictures, store = joint.source.pictures(), joint.source.pictures().store
    ranker = Ranker(joint.model, 6, encoded_bytes=room)
    first = {}
    for sentence in SENTENCES * 2:
        ids = joint.reader.read(sentence).ids
        ranked = ranker.rank(pictures, ids)
        assert first.setdefault(sentence, ranked.scores.tolist()) == ranked.scores.tolist(), "equal to the bit"
        with torch.inference_mode():
            images = encode_images(joint.model, store, ranked.positions)
            expected = joint.model.score_matrix(*images, *encode_sentences(joint.model, [ids]))[:, 0]
        assert ranked.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        assert ranker._encoded.used_bytes <= room
    held = ranker._encoded._cached
    assert (len(held) == 0) == (room == 0) and sum(regions.nbytes for regions, _ in held.values()) <= room
    if room == 10**9:  # nothing is read twice
        damaged = dataclasses.replace(pictures, store=_Unreadable(store))  # type: ignore[arg-type]
        assert ranker.rank(damaged, ids).scores.tolist() == ranked.scores.tolist()


class _Unreadable:
    """A store whose features are not to be read."""

    def __init__(self, store: RegionStore) -> None:
        self.mapped_rows = store.mapped_rows


def test_regions_of_another_run_are_not_mixed_up_with_those_held(run: SmallRun) -> None:
    """An image id stays, its regions are others: both speeds read them anew."""
    for shortlist in (6, 500):
        joint = joint_run(run, shortlist)
        before = joint.search(SENTENCES[0], 20).hits
        for path in run.regions.glob("*.arrow"):
            path.rename(path.with_name(f"x{path.name}"))
        table = pq.read_table(run.regions / "manifest.parquet")
        rows = [(row["image_id"], f"x{row['shard']}", row["row"], row["num_regions"]) for row in table.to_pylist()]
        swapped = [(name, *other[1:]) for (name, *_), other in zip(rows, rows[::-1], strict=True)]
        write_manifest(run.regions, joint.source.pictures().store.info, swapped)
        joint.rescan()
        after = joint.search(SENTENCES[0], 20).hits
        fresh = joint_run(run, shortlist).search(SENTENCES[0], 20).hits
        assert [(hit.picture_id, hit.score) for hit in after] == [(hit.picture_id, hit.score) for hit in fresh]
        assert [(hit.picture_id, hit.score) for hit in after] != [(hit.picture_id, hit.score) for hit in before]


@pytest.mark.parametrize("others", [0, 1, 10, 1000])
def test_vectors_of_pictures_that_come_or_go_meanwhile_take_no_places(run: SmallRun, others: int) -> None:
    """The engine already, or still, holds pictures that the state that is searched does not know."""
    joint = joint_run(run, 6)
    pictures = joint.source.pictures()
    vector = picture_vectors(joint.model, pictures.store, [3])
    expected, ranked = pictures.nearest(vector, 7), joint.search(SENTENCES[0], 100)
    nearer = np.repeat(vector, others, axis=0)
    pictures.engine.add(vector_ids([f"other {i}" for i in range(others)]), nearer)
    assert pictures.nearest(vector, 7) == expected and len(expected[0]) == 7
    joint._rankings.clear()
    assert joint.search(SENTENCES[0], 100) == ranked
    assert sorted(pictures.nearest(vector, 100)[0]) == list(range(20))


def test_equal_scores_are_ordered_by_picture(workspace: PictureCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = Ranker(workspace.model, None)
    monkeypatch.setattr(ranker, "_score_all", lambda pictures, *_: np.zeros(len(pictures), np.float32))
    pictures = workspace.source.pictures()
    ranked = ranker.rank(pictures, workspace.reader.read("a red circle").ids)
    assert [pictures.ids[at] for at in ranked.positions] == sorted(pictures.ids)


def test_the_training_captions_that_fit_a_picture(run: SmallRun) -> None:
    table = CaptionTable.load(run.token_tables / "test.parquet")
    ids = [tokens[:length].tolist() for tokens, length in zip(*table.batch(range(len(table))), strict=True)]
    captions = (
        [*range(len(ids) + 1)],
        [*table.image_ids, table.image_ids[0]],
        [*table.texts, "\U0001f44d"],
        [*ids, [UNK]],
    )
    write_captions(run.token_tables / "train.parquet", *captions)
    collection = open_workspace(run.root)
    pictures = collection.source.pictures()
    best = Queries(collection).like(pictures.ids[4], 1, captions=5).captions  # though there is no detector
    assert len(best) == 5 and [score for _, score in best] == sorted((score for _, score in best), reverse=True)
    for text, score in best:
        assert collection.pair(pictures.ids[4], text).score == pytest.approx(score, abs=1e-4)
    everything = collection.captions_like(collection.features(pictures.ids[4]), top=1000)
    assert len({text for text, _ in everything}) == len(everything) > 40
    assert not {"\U0001f44d"} & {text for text, _ in everything}, "its link would lead to no search"


def test_training_captions_of_another_vocabulary_are_read_with_that_of_the_model(run: SmallRun) -> None:
    """As where captions were tokenized again while the page of an earlier model is served."""
    table = CaptionTable.load(run.token_tables / "test.parquet")
    path, columns = run.token_tables / "train.parquet", (range(len(table)), table.image_ids, table.texts)
    write_captions(path, *columns, [[UNK]] * len(table))
    collection = open_workspace(run.root)
    other = Vocabulary.build([["entirely"] * 3, ["other", "words"]])
    write_captions(path, *columns, [other.encode(["entirely", "other"])] * len(table), vocabulary=other)
    picture = collection.first(1)[0].picture_id
    best = collection.captions_like(collection.features(picture), top=5)
    assert len(best) == 5
    for text, score in best:
        assert collection.pair(picture, text).score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    ("switches", "loss", "middle"),
    [
        ({}, None, True),
        ({}, "hardest_bce", True),
        ({}, "triplet", False),
        ({}, "softmax", False),
        ({"matching": "cosine"}, "bce", True),
        ({"matching": "cosine"}, None, False),
    ],
)
def test_the_page_says_that_none_matches_only_where_scores_have_a_middle(
    make_run: Callable[..., SmallRun], tmp_path: Path, switches: dict, loss: str | None, middle: bool
) -> None:
    run = make_run(tmp_path, images=6, **switches)
    if loss:
        (run.model / "fingerprint.json").write_text(json.dumps({"detector": "a" * 64, "loss": loss}))
    collection = open_workspace(run.root)
    with torch.no_grad():  # the last number that is added to a logit
        list(collection.model.matcher.matching.parameters())[-1].sub_(100)
    client = TestClient(create_application(collection), base_url="http://127.0.0.1")
    page = client.get("/", params={"q": SENTENCES[0]}).text
    assert "is higher where sentence and picture match better" in page
    assert ("None matches well" in page) == middle


def test_captions_are_links_to_their_search_however_long_and_in_their_own_direction(
    workspace: PictureCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [("a red circle " * 400, 1.0), ("\u72d7" * 3000, 0.5), ("\u05db\u05dc\u05d1 (2)!", 0.1)]
    monkeypatch.setattr(PictureCollection, "captions_like", lambda *_: captions)
    monkeypatch.setattr(PictureCollection, "has_captions", True)
    client = TestClient(create_application(workspace), base_url="http://127.0.0.1")
    page = client.get("/", params={"like": workspace.first(1)[0].picture_id}).text
    links = re.findall(r'<a href="([^"]+)" dir="auto" lang="">([^<]+)</a>', page)
    assert [html.unescape(text) for _, text in links] == [text for text, _ in captions]
    answers = [client.get(html.unescape(link)) for link, _ in links]
    assert answers[0].status_code == answers[1].status_code == 200
    asked = [re.search(r'name="q" value="([^"]*)"', answer.text)[1] for answer in answers]
    assert asked[0] == ("a red circle " * 77)[:-1] and asked[1] == "\u72d7" * 1000
