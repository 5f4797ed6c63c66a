"""What the model did with a pair: its words, its gates and attention, and what each word adds."""

import pytest
import torch

from camp_model.checkpoint import load_checkpoint
from camp_model.encoders import length_mask
from camp_model.regions import RegionStore
from camp_model.vocabulary import UNK, Vocabulary
from stages.pair_view.details import explain_pairs, word_effects

SENTENCE = "A red zebra circle, above 2 green things"


@pytest.fixture
def loaded(small):
    vocabulary = Vocabulary.load(small.token_tables / "vocabulary.json")
    model, _, _ = load_checkpoint(small.model, "cpu", vocabulary)
    store = RegionStore(small.regions)
    return model, vocabulary, store, vocabulary.encode(vocabulary.tokenize(SENTENCE))


def logit(model, store, row, ids):
    features, mask = (torch.from_numpy(values) for values in store.features([row]))
    lengths = torch.tensor([len(ids)])
    words = model.encode_captions(torch.tensor([ids]), lengths)
    with torch.inference_mode():
        regions = model.encode_regions(features.float(), mask)
        return model.score_pairs(regions, mask, words, length_mask(lengths, len(ids))).item()


def test_a_word_adds_what_the_logit_loses_without_it(loaded):
    model, _, store, ids = loaded
    row = 4
    features, mask = store.features([row])
    effects = word_effects(model, features[0], mask[0], ids)
    assert effects[2] is None and ids[2] == UNK  # zebra
    for position, token in enumerate(ids):
        if token != UNK:
            without = [UNK if at == position else other for at, other in enumerate(ids)]
            expected = logit(model, store, row, ids) - logit(model, store, row, without)
            assert effects[position] == pytest.approx(expected, abs=1e-4)
    assert max(abs(effect) for effect in effects if effect is not None) > 1e-3


def test_a_pair_is_explained_with_what_is_real_alone(loaded):
    model, vocabulary, store, ids = loaded
    features, mask = store.features([3, 4])  # 3 and 4 regions
    short = ids[:2]
    first, second = explain_pairs(model, vocabulary, features, mask, [ids, short], [SENTENCE, "A red"])
    assert first["words"] == ["a", "red", "zebra", "circle", "above", "2", "green", "things"]
    assert first["unknown"] == [2] and second["unknown"] == []
    for details, words, regions, row in ((first, 8, int(mask[0].sum()), 3), (second, 2, int(mask[1].sum()), 4)):
        assert len(details["wordGates"]) == words and len(details["regionGates"]) == regions
        assert [len(weights) for weights in details["wordAttention"]] == [regions] * words
        assert [sum(weights) for weights in details["wordAttention"]] == pytest.approx([1000] * words, abs=regions)
        assert details["logit"] == pytest.approx(logit(model, store, row, ids if words == 8 else short), abs=1e-4)
