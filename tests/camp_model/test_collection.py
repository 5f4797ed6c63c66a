"""Ranks over a collection read from disk: those of the whole matrix, whatever is held and however it is cut."""

from pathlib import Path

import numpy as np
import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.captions import CaptionTable, write_captions
from camp_model.encoders import length_mask
from camp_model.encoding import EncodedImages, encode_batches, encode_images
from camp_model.matchers.matching import mean_logits
from camp_model.matchers.prepared import TILES
from camp_model.metrics import i2t_ranks, t2i_ranks
from camp_model.scoring import ranking
from camp_model.scoring.collection import Collection, ensemble_logits, rank_collection
from camp_model.scoring.ranking import rank_blocks

IMAGES, CAPTIONS, REGIONS = 23, 60, 4


class Features:
    """Random features, and how many were read at a time."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.values = generator.normal(size=(IMAGES + 5, REGIONS, 6)).astype(np.float16)
        self.mask = np.arange(REGIONS) < generator.integers(1, REGIONS + 1, IMAGES + 5)[:, None]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def features(self, rows):
        self.read.append(len(rows))
        return self.values[rows], self.mask[rows]


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    generator = np.random.default_rng(1)
    tokens = [generator.integers(4, 9, generator.integers(1, 4)).tolist() for _ in range(CAPTIONS + 2)]
    owners = generator.permutation(np.arange(CAPTIONS) % IMAGES)
    names = [f"i{i}" for i in range(CAPTIONS + 2)]
    write_captions(tmp_path / "c.parquet", list(range(CAPTIONS + 2)), names, names, tokens)
    table = CaptionTable.load(tmp_path / "c.parquet")
    return Collection(Features(), np.arange(3, IMAGES + 3), table, np.arange(1, CAPTIONS + 1), owners)


def models(count: int) -> list[CAMP]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(CAMP(CampConfig(vocab_size=9, region_dim=6, word_dim=4, dim=8 * (seed + 1))).eval())
    return made


@torch.inference_mode()
def whole_matrix(some: list[CAMP], collection: Collection) -> torch.Tensor:
    tokens, lengths = collection.captions.batch(collection.caption_rows)
    mask = torch.from_numpy(collection.regions.mask[collection.image_rows])
    features = torch.from_numpy(collection.regions.values[collection.image_rows]).float()
    return mean_logits([
        model.score_matrix(
            model.encode_regions(features, mask), mask, model.encode_captions(tokens, lengths), length_mask(lengths, 3)
        )
        for model in some
    ])  # fmt: skip


@torch.inference_mode()
def test_cosines_are_averaged_as_cosines(collection):
    """SCAN's ensemble; the mean of their probabilities would follow the model whose cosines are the largest."""
    peers = [{"matcher": "scan"}, {"matcher": "scan", "scan_direction": "image_to_text"}, {"matcher": "joint"},
             {"matching": "cosine"}]  # fmt: skip
    some = []
    for seed, switches in enumerate(peers):
        torch.manual_seed(seed)
        some.append(CAMP(CampConfig(vocab_size=9, region_dim=6, word_dim=4, dim=8, **switches)).eval())
        some[-1].matcher.matching.log_scale.fill_(0.5 + seed)
        some[-1].matcher.matching.shift.fill_(seed - 2.0)
    tokens, lengths = collection.captions.batch(collection.caption_rows)
    mask = torch.from_numpy(collection.regions.mask[collection.image_rows])
    features = torch.from_numpy(collection.regions.values[collection.image_rows]).float()
    similarities, logits = [], []
    for model in some:
        encoded = model.encode_regions(features, mask), model.encode_captions(tokens, lengths)
        images = model.prepare_regions(encoded[0], mask)
        matched = model.match(images, model.prepare_words(encoded[1], length_mask(lengths, 3)), TILES)
        similarities.append(matched.similarity)
        logits.append(matched.logits)
    mean = torch.stack(similarities).mean(0)
    scale = np.exp([0.5, 1.5, 2.5, 3.5]).mean()
    torch.testing.assert_close(ensemble_logits(some, logits), scale * mean - 0.5, atol=1e-4, rtol=1e-4)
    ranked = rank_collection(some, collection)
    assert ranked.t2i_top[:, 0].tolist() == mean.argmax(0).tolist()
    added = CAMP(CampConfig(vocab_size=9, region_dim=6, word_dim=4, dim=8, matching="cosine", joint_score=True))
    mixed = [some[0], added]
    torch.testing.assert_close(ensemble_logits(mixed, logits[:2]), mean_logits(logits[:2]))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("held", [True, False])
def test_ranks_are_those_of_the_whole_matrix(collection, monkeypatch, count, held):
    monkeypatch.setattr("camp_model.encoding.BLOCK", 5)
    monkeypatch.setattr("camp_model.scoring.collection.CAPTIONS_AT_ONCE", 7)
    monkeypatch.setattr("camp_model.scoring.collection.OWN_PAIRS_AT_ONCE", 4)
    if not held:
        monkeypatch.setattr("camp_model.encoding.CACHE_BYTES", 0)
    some = models(count)
    scores, text = whole_matrix(some, collection), collection.caption_text
    assert len(np.unique(text)) < CAPTIONS, "some captions have equal texts"
    cells: list[int] = []
    seen = CAMP.score_matrix

    def score_matrix(self, *batch, **more):
        cells.append(len(batch[0]) * len(batch[2]))
        return seen(self, *batch, **more)

    monkeypatch.setattr(CAMP, "score_matrix", score_matrix)
    done: list[int] = []
    ranked = rank_collection(some, collection, 4, progress=done.append)
    assert sum(cells) == sum(done) == count * IMAGES * CAPTIONS and max(cells) == 5 * 7
    assert ranked.i2t_ranks.tolist() == i2t_ranks(scores, collection.caption_image, text).tolist()
    assert ranked.t2i_ranks.tolist() == t2i_ranks(scores, collection.caption_image, text).tolist()
    torch.testing.assert_close(ranked.i2t_scores, scores.topk(4, dim=1).values)
    torch.testing.assert_close(scores.T.gather(1, ranked.t2i_top), scores.T.topk(4, dim=1).values)
    wrong = scores.clone()
    for caption in range(CAPTIONS):
        wrong[collection.caption_image[text == text[caption]], caption] = -torch.inf
    assert ranked.hardest.tolist() == wrong.argmax(0).tolist()
    assert (max(collection.regions.read) <= 5) != held, "what is not held is never read whole"


def test_images_are_the_same_held_or_encoded_anew(collection, monkeypatch):
    (model,) = models(1)
    with torch.inference_mode():
        held = EncodedImages(model, collection.regions, collection.image_rows)
        monkeypatch.setattr("camp_model.encoding.CACHE_BYTES", 0)
        anew = EncodedImages(model, collection.regions, collection.image_rows)
        assert held.encoded is not None and anew.encoded is None
        for positions in (np.array([4, 4, 0]), np.arange(IMAGES)):
            for ours, theirs in zip(held.take(positions), anew.take(positions), strict=True):
                torch.testing.assert_close(ours, theirs)
        with pytest.raises(ValueError, match="^rows: is empty"):
            encode_images(model, collection.regions, [])
        batches = list(encode_batches(model, collection.regions, collection.image_rows, batch_size=3))
        assert [len(mask) for _, mask in batches] == [3] * (IMAGES // 3) + [IMAGES % 3] * (IMAGES % 3 > 0)
        for ours, theirs in zip(map(torch.cat, zip(*batches, strict=True)), held.take(np.arange(IMAGES)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_model_that_scores_all_alike_is_ranked_without_holding_all_pairs(monkeypatch):
    monkeypatch.setattr(ranking, "MAX_CLOSE_SCORES", 100)
    held = []
    compact = ranking._ImageQueries._compact

    def compacted(self):
        compact(self)
        held.append(self.close_count)

    monkeypatch.setattr(ranking._ImageQueries, "_compact", compacted)
    owner = torch.arange(30).repeat_interleave(20)
    levels = torch.randint(0, 2, (30, 600), generator=torch.Generator().manual_seed(0)) * 1e-6
    blocks = [(torch.arange(30), columns, levels[:, columns]) for columns in torch.arange(600).split(50)]
    ranked = rank_blocks(blocks, torch.zeros(600), 30, owner, 3)
    assert ranked.i2t_ranks.tolist() == i2t_ranks(levels, owner).tolist()
    assert held and max(held) <= 2 * 30, "two scores of each image"


def test_scores_that_are_all_close_and_all_different_are_gone_through_a_few_times_not_with_each_addition(monkeypatch):
    monkeypatch.setattr(ranking, "MAX_CLOSE_SCORES", 100)
    seen = []
    compact = ranking._ImageQueries._compact

    def compacted(self):
        seen.append(self.close_count)
        compact(self)

    monkeypatch.setattr(ranking._ImageQueries, "_compact", compacted)
    owner = torch.arange(30).repeat_interleave(20)
    levels = 1e-6 * torch.rand(30, 600, generator=torch.Generator().manual_seed(0))
    levels[owner, torch.arange(600)] *= 0.1
    blocks = [(torch.arange(30), columns, levels[:, columns]) for columns in torch.arange(600).split(10)]
    ranked = rank_blocks(blocks, levels[owner, torch.arange(600)], 30, owner, 3)
    assert ranked.i2t_ranks.tolist() == i2t_ranks(levels, owner).tolist()
    assert seen and sum(seen) <= 3 * levels.numel(), "of each addition all would be 30 times as many"


def test_own_scores_may_be_as_coarse_as_the_numbers_that_models_compute_in():
    generator = torch.Generator().manual_seed(0)
    scores, owner = 20 + 4 * torch.randn(40, 200, generator=generator), torch.arange(40).repeat_interleave(5)
    own = scores[owner, torch.arange(200)]
    coarse = own * (1 + torch.finfo(torch.bfloat16).eps * (torch.rand(200, generator=generator) - 0.5))
    blocks = [(torch.arange(40), columns, scores[:, columns]) for columns in torch.arange(200).split(50)]
    with torch.autocast("cpu", torch.bfloat16):
        ranked = rank_blocks(blocks, coarse, 40, owner, 3)
    assert ranked.i2t_ranks.tolist() == i2t_ranks(scores, owner).tolist()
    with pytest.raises(ValueError, match="expected a matcher that scores the same in every layout"):
        rank_blocks(blocks, coarse, 40, owner, 3)  # the error is large enough to matter


@pytest.mark.parametrize("error", [0.5, -0.5])
def test_own_scores_that_are_all_too_high_or_all_too_low_are_an_error(error):
    scores, owner = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 2
    own, blocks = scores[owner, torch.arange(12)], [(torch.arange(6), torch.arange(12), scores)]
    assert rank_blocks(blocks, own, 6, owner, 3).i2t_ranks.tolist() == i2t_ranks(scores, owner).tolist()
    with pytest.raises(ValueError, match="image 0: its best own caption scores"):
        rank_blocks(blocks, own + error, 6, owner, 3)
