import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask
from camp_model.retrieval import JointEmbedding, Retriever, build_index, load_index, save_index

faiss = pytest.importorskip("faiss", reason="the extra `retrieval` is not installed")

SIZES = {"vocab_size": 12, "region_dim": 5, "word_dim": 3}


class Collection:
    """Region features in memory, read as from a region store."""

    def __init__(self, images=60):
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(images, 4, 5, generator=generator).half().numpy()
        self.mask = length_mask(torch.randint(1, 5, (images,), generator=generator), 4).numpy()

    def __len__(self):
        return len(self.values)

    def features(self, rows):
        return self.values[list(rows)], self.mask[list(rows)]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    joint = JointEmbedding(CAMP(CampConfig(**SIZES, dim=8, matcher="joint")))
    model, collection = CAMP(CampConfig(**SIZES, dim=6)), Collection()
    tokens, lengths = torch.randint(0, 12, (7, 5)), torch.tensor([5, 1, 3, 2, 4, 5, 2])
    return model, joint, build_index(joint, collection, batch_size=16), collection, tokens, lengths


def camp_scores(model, collection, tokens, lengths):
    features, mask = (torch.from_numpy(x) for x in collection.features(range(len(collection))))
    with torch.no_grad():
        words, word_mask = model.encode_captions(tokens, lengths), length_mask(lengths, 5)
        return model.score_matrix(model.encode_regions(features, mask), mask, words, word_mask).T


def test_a_shortlist_of_everything_is_camp(parts):
    model, joint, index, collection, tokens, lengths = parts
    result = Retriever(model, joint, index, collection).search(tokens, lengths, shortlist=1000, top_k=10)
    expected = camp_scores(model, collection, tokens, lengths).topk(10)
    assert result.shortlist.shape == (7, 60)
    assert torch.equal(result.rows, expected.indices)
    torch.testing.assert_close(result.logits, expected.values)


def test_a_shortlist_holds_the_nearest_and_camp_orders_it(parts):
    model, joint, index, collection, tokens, lengths = parts
    result = Retriever(model, joint, index, collection).search(tokens, lengths, shortlist=8, top_k=3)
    cosine = camp_scores(joint.model, collection, tokens, lengths)
    nearest = cosine.topk(8).indices
    assert torch.equal(result.shortlist, nearest)
    scores = camp_scores(model, collection, tokens, lengths)
    for query in range(7):
        order = nearest[query][scores[query, nearest[query]].argsort(descending=True)]
        assert result.rows[query].tolist() == order[:3].tolist()


@pytest.mark.parametrize("kind", ["HNSW8", "IVF4,Flat"])
def test_other_indexes(parts, kind, tmp_path):
    model, joint, _, collection, tokens, lengths = parts
    added = []
    index = build_index(joint, collection, kind, batch_size=16, progress=added.append)
    assert sum(added) == 60
    save_index(index, tmp_path / "images.faiss")
    assert [path.name for path in tmp_path.iterdir()] == ["images.faiss"]
    loaded = load_index(tmp_path / "images.faiss")
    result = Retriever(model, joint, loaded, collection).search(tokens, lengths, shortlist=30, top_k=5)
    found = result.rows >= 0  # an inverted list can hold fewer than asked for
    assert found.any(dim=1).all() and torch.isinf(result.logits[~found]).all()


def test_parts_that_do_not_fit_are_an_error(parts, tmp_path):
    model, joint, index, collection, tokens, lengths = parts
    with pytest.raises(ValueError, match="joint embedding: needs"):
        JointEmbedding(model)
    with pytest.raises(ValueError, match="index: 60 vectors"):
        Retriever(model, joint, index, Collection(images=3))
    with pytest.raises(ValueError, match="model.vocab_size"):
        Retriever(CAMP(CampConfig(**(SIZES | {"vocab_size": 13}))), joint, index, collection)
    (tmp_path / "x").write_bytes(b"junk")
    with pytest.raises(ValueError, match="expected a faiss index"):
        load_index(str(tmp_path / "x"))
    save_index(index, tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-100] + bytes(100))  # and with it the seal
    with pytest.raises(ValueError, match="x: is damaged: the checksum at its end is missing; expected a faiss index"):
        load_index(tmp_path / "x")
    with pytest.raises(ValueError, match="shortlist 0, top_k 10; expected 1 or more"):
        Retriever(model, joint, index, collection).search(tokens, lengths, shortlist=0)


def test_vectors_are_units(parts):
    joint, collection = parts[1], parts[3]
    features, mask = (torch.from_numpy(x) for x in collection.features(range(5)))
    np.testing.assert_allclose(np.linalg.norm(joint.images(features, mask), axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("platform", "count", "allowed"), [("linux", 2, None), ("darwin", 1, "TRUE")])
def test_on_macos_faiss_may_have_an_openmp_library_beside_pytorchs_but_no_threads(
    parts, monkeypatch, platform, count, allowed
):
    model, joint, index, collection, tokens, lengths = parts
    seen = []

    class Index:
        ntotal, d = index.ntotal, index.d

        def search(self, *arguments):
            seen.append(faiss.omp_get_max_threads())
            return index.search(*arguments)

    def captions(*arguments):
        vectors = embedding(*arguments)
        faiss.omp_set_num_threads(2)  # of this thread alone
        return vectors

    embedding = joint.captions
    monkeypatch.setattr(joint, "captions", captions)
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "")
    monkeypatch.delenv("KMP_DUPLICATE_LIB_OK")
    monkeypatch.setattr(sys, "platform", platform)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Retriever(model, joint, Index(), collection).search, tokens, lengths, 9, 3).result()
    assert seen == [count] and os.environ.get("KMP_DUPLICATE_LIB_OK") == allowed
