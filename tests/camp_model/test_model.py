import numpy as np
import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.joint import pooled_vectors
from camp_model.matchers.prepared import PAIRS, TILES
from camp_model.scoring.all_pairs import pair_bytes

CONFIG = CampConfig(vocab_size=12, region_dim=5, word_dim=3, dim=6)


def test_every_score_equals_the_loop_reference(every_switch, make_batch, reference):
    batch = make_batch(every_switch, counts=[4, 2], lengths=[3, 1, 5])
    with torch.no_grad():
        encoded = batch.encode()
        scores = batch.model.score_matrix(*encoded).numpy()
        pairs = batch.model.score_pairs(*(values[:2] for values in encoded)).numpy()
    images, captions = batch.plain(reference)
    expected = [[reference.score(batch.state, every_switch, v, t)[0] for t in captions] for v in images]
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pairs, np.diagonal(expected), rtol=1e-9, atol=1e-9)


def test_gate_logits_equal_the_loop_reference(every_switch, make_batch, reference):
    batch = make_batch(every_switch, counts=[4, 2], lengths=[3, 5])
    encoded = batch.encode()
    has_gates = every_switch.matcher == "camp" and "none" not in (every_switch.gate, every_switch.message_passing)
    assert has_gates == (every_switch.no_gates_reason() is None)
    if not has_gates:
        with pytest.raises(ValueError, match="gate_supervision"):
            batch.model.gate_logits(*encoded)
        return
    expected = [
        reference.score(batch.state, every_switch, v, t)[1] for v, t in zip(*batch.plain(reference), strict=True)
    ]
    np.testing.assert_allclose(batch.model.gate_logits(*encoded).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_gate_logits_alone_are_those_of_the_whole_model(every_switch, make_batch):
    """The shortcut that forms no messages, against the gates that the forward pass reports."""
    batch = make_batch(every_switch, counts=[4, 2, 3], lengths=[3, 5, 1], spare=1)
    encoded = batch.encode()
    model = batch.model
    images, captions = model.prepare_regions(*encoded[:2]), model.prepare_words(*encoded[2:])
    if every_switch.matcher != "camp" or "none" in (every_switch.gate, every_switch.message_passing):
        with pytest.raises(ValueError, match="gate_supervision"):
            model.matcher.gate_logits(images, captions, PAIRS)
        return
    logits, real = model.matcher.gate_logits(images, captions, PAIRS)
    torch.testing.assert_close((logits * real).sum(1) / real.sum(1), model.gate_logits(*encoded))
    tiles, real = model.matcher.gate_logits(images, captions, TILES)
    assert tiles.shape[:2] == (3, 3) and real.expand(tiles.shape).shape == tiles.shape
    for i in range(3):
        torch.testing.assert_close(tiles[i, i][: logits.shape[1]], logits[i])


def test_no_pairs_have_no_gate_logits(make_batch):
    """A model with gates says that there are no pairs, not that there are no gates."""
    batch = make_batch(CONFIG, counts=[2], lengths=[3])
    none = tuple(values[:0] for values in batch.encode())
    assert batch.model.gate_logits(*none).shape == (0,)
    assert batch.model.inspect_pairs(*none).word_gates.shape == (0, 3)


def test_padding_and_company_do_not_change_a_score(every_switch, make_batch):
    """In float32: more padding, garbage in it, and other pairs beside it."""
    wide = make_batch(every_switch, counts=[4, 2, 3], lengths=[3, 1, 5], spare=3)
    wide.model.float()
    wide.features[~wide.region_mask] = 1e3
    model = wide.model
    with torch.no_grad():
        together = model.score_matrix(*wide.encode())
        for i, (k, n) in enumerate(zip([4, 2, 3], [3, 1, 5], strict=True)):
            region_mask, word_mask = torch.ones(1, k, dtype=torch.bool), torch.ones(1, n, dtype=torch.bool)
            regions = model.encode_regions(wide.features[i : i + 1, :k], region_mask)
            words = model.encode_captions(wide.tokens[i : i + 1, :n], torch.tensor([n]))
            alone = model.score_pairs(regions, region_mask, words, word_mask)
            torch.testing.assert_close(together[i, i], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["scalar", "elementwise", "none", "unapplied"])
@pytest.mark.parametrize("hops", [1, 2])
def test_gradients_are_those_of_the_function(make_batch, gate, hops):
    config = CampConfig(
        vocab_size=6, region_dim=3, word_dim=2, dim=3, gate=gate, hops=hops, pooling="mlp", pooling_heads=2
    )
    batch = make_batch(config, counts=[2, 1], lengths=[2, 3])
    batch.features.requires_grad_()

    def scores(features, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(
            batch.model, values, (features, batch.region_mask, batch.tokens, batch.lengths)
        )

    names = [name for name, _ in batch.model.named_parameters()]
    assert torch.autograd.gradcheck(scores, (batch.features, *batch.model.parameters()), fast_mode=True)


def test_inspection_explains_the_score(make_batch):
    batch = make_batch(CONFIG, counts=[4, 2], lengths=[3, 5], spare=1)
    encoded = batch.encode()
    details = batch.model.inspect_pairs(*encoded)
    torch.testing.assert_close(details.logits, batch.model.score_pairs(*encoded))
    real_words, real_regions = batch.word_mask.double(), batch.region_mask.double()
    torch.testing.assert_close(details.word_attention.sum(-1), real_words)
    torch.testing.assert_close(details.region_attention.sum(-1), real_regions)
    torch.testing.assert_close(details.word_pooling.sum(-1), torch.ones(2, dtype=torch.float64))
    assert details.region_pooling[~batch.region_mask].abs().max() == 0
    # The gate of word 0 of pair 0, from its definition.
    regions, _, words, _ = encoded
    message = details.word_attention[0, 0] @ regions[0]
    torch.testing.assert_close(details.word_gates[0, 0], torch.sigmoid(words[0, 0] @ message))
    assert details.word_gates[~batch.word_mask].abs().max() == 0


def test_one_sided_messages_leave_the_other_side_without_gates(make_batch):
    config = CampConfig(**(CONFIG.to_dict() | {"message_passing": "image_to_text"}))
    batch = make_batch(config, counts=[4, 2], lengths=[3, 5])
    details = batch.model.inspect_pairs(*batch.encode())
    assert details.region_gates is None and details.region_attention is None
    assert details.word_gates is not None
    config = CampConfig(**(CONFIG.to_dict() | {"gate": "none"}))
    batch = make_batch(config, counts=[4, 2], lengths=[3, 5])
    details = batch.model.inspect_pairs(*batch.encode())
    assert details.word_gates is None and details.word_attention is not None


@pytest.mark.parametrize(("hops", "fusion", "columns"), [(1, "concat", 128), (1, "sum", 64), (2, "concat", 128)])
def test_fusion_begins_in_the_released_range(hops, fusion, columns):
    """Uniform within sqrt(3 / dim); a second hop has weights of its own and no bias."""
    receiver = CAMP(CampConfig(vocab_size=12, region_dim=5, word_dim=3, dim=64, hops=hops, fusion=fusion))
    receiver = receiver.matcher.messages.to_words
    weight, most = receiver.fusion.weight, (3 / 64) ** 0.5
    assert weight.shape == (64, columns) and -most <= weight.min() < -0.95 * most and 0.95 * most < weight.max() <= most
    if hops == 1:
        assert receiver.fusion.bias.tolist() == [0.0] * 64
    assert {name for name, _ in receiver.named_parameters()} == {
        "fusion.weight", *(("fusion.bias",) if hops == 1 else ("hop_query.weight", "hop_key.weight"))
    }  # fmt: skip


def test_a_joint_embedding_is_what_no_messages_and_a_cosine_were():
    """The same first weights for a seed, and the same scores."""
    models = []
    for switches in ({"matcher": "joint"}, {"message_passing": "none", "matching": "cosine"}):
        torch.manual_seed(3)
        models.append(CAMP(CampConfig(**(CONFIG.to_dict() | switches))))
    joint, switched_off = models
    assert joint.state_dict().keys() == switched_off.state_dict().keys()
    batch = torch.randn(2, 4, 5), torch.ones(2, 4).bool(), torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    assert torch.equal(joint(*batch), switched_off(*batch))
    assert joint.matcher.has_vectors and switched_off.matcher.has_vectors and not CAMP(CONFIG).matcher.has_vectors


@pytest.mark.parametrize("length", [0, 6])
def test_a_caption_of_impossible_length_is_an_error(make_batch, length):
    batch = make_batch(CONFIG, counts=[4, 2], lengths=[3, 5])
    with pytest.raises(ValueError, match=f"caption 1 .* length {length}"):
        batch.model.encode_captions(batch.tokens, torch.tensor([3, length]))


def test_dropout_only_while_training(make_batch):
    batch = make_batch(CONFIG, counts=[4, 2], lengths=[3, 5])
    model = CAMP(CONFIG, dropout=0.5)
    features = batch.features.float()
    assert not torch.equal(
        model.encode_regions(features, batch.region_mask), model.encode_regions(features, batch.region_mask)
    )
    model.eval()
    assert torch.equal(
        model.encode_regions(features, batch.region_mask), model.encode_regions(features, batch.region_mask)
    )


def test_region_dropout_takes_a_feature_from_all_regions_of_an_image():
    """On encoders that add nothing: what reaches a region is whole, twice as large, or gone, the same in its image."""
    model = CAMP(CampConfig(vocab_size=12, region_dim=64, word_dim=3, dim=64), region_dropout=0.5)
    torch.nn.init.eye_(model.region_encoder.linear.weight)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    encoded = model.encode_regions(torch.ones(2, 3, 64), mask)
    assert set(encoded[0].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(encoded[0, 0], encoded[0, 2]) and torch.equal(encoded[1, 0], encoded[1, 1])
    assert not torch.equal(encoded[0, 0], encoded[1, 0]) and not encoded[1, 2].any()
    assert torch.equal(model.eval().encode_regions(torch.ones(2, 3, 64), mask)[0], torch.ones(3, 64))


def test_with_a_joint_score_training_begins_at_the_joint_embedding(make_batch):
    config = CampConfig(vocab_size=12, region_dim=5, word_dim=3, dim=6, joint_score=True)
    regions, region_mask, words, word_mask = make_batch(config, counts=[4, 2], lengths=[3, 5]).encode()
    model = CAMP(config).double()
    cosines = (pooled_vectors(regions, region_mask) * pooled_vectors(words, word_mask)).sum(1)
    logits = model.score_pairs(regions, region_mask, words, word_mask)
    torch.testing.assert_close(logits, 10 * cosines)


@pytest.mark.parametrize(
    "switches",
    [
        {}, {"gate": "elementwise"}, {"gate": "none"}, {"gate_context": 2.0}, {"hops": 2}, {"fusion": "sum"},
        {"feature_norm": 3.0}, {"pooling": "mlp"}, {"residual": False}, {"message_passing": "text_to_image"},
        {"fusion": "message", "gate": "none", "residual": False},
    ],
)  # fmt: skip
def test_under_autocast_vectors_of_pairs_have_16_bits_and_logits_32(make_batch, switches):
    """A float32 gate or bias would widen the fused vectors, and with them the memory and traffic of every pair."""
    batch = make_batch(CampConfig(**(CONFIG.to_dict() | {"dim": 32} | switches)), counts=[4, 2, 3], lengths=[3, 1, 5])
    model = batch.model.float()
    for parameter in model.parameters():
        parameter.data *= 0.3
    batch.features = batch.features.float()
    with torch.no_grad():
        exact = model.score_matrix(*batch.encode())
        with torch.autocast("cpu", torch.bfloat16):
            regions, region_mask, words, word_mask = batch.encode()
            images, captions = model.prepare_regions(regions, region_mask), model.prepare_words(words, word_mask)
            matched = model.match(images, captions, TILES)
            scores = model.score_matrix(regions, region_mask, words, word_mask)
    sides = [side for side in (matched.regions, matched.words) if side is not None]
    assert sides and all(side.fused.dtype == torch.bfloat16 for side in sides)
    vectors = (images.features, images.own, images.message, captions.features, captions.own, captions.message)
    assert {value.dtype for value in vectors if value is not None} == {torch.bfloat16}
    assert {side.gate_logits.dtype for side in sides if side.gate_logits is not None} <= {torch.float32}
    assert matched.logits.dtype == scores.dtype == torch.float32
    assert pair_bytes(images.features, captions.features) == 3 * (4 + 5) * 32 * 2
    torch.testing.assert_close(scores, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_of_one_norm_how_long_encoded_vectors_are_changes_no_score(make_batch):
    """As where encoders were trained on cosines, which do not see it; as published, gates and attention do."""
    for norm, same in ((3.0, True), (0.0, False)):
        config = CampConfig(**(CONFIG.to_dict() | {"joint_score": True, "feature_norm": norm}))
        batch = make_batch(config, counts=[4, 2, 3], lengths=[3, 1, 5])
        regions, region_mask, words, word_mask = batch.encode()
        scores = batch.model.score_matrix(regions, region_mask, words, word_mask)
        longer = batch.model.score_matrix(30 * regions, region_mask, 2 * words, word_mask)
        assert torch.allclose(scores, longer) == same


def test_half_precision_features_are_read(make_batch):
    batch = make_batch(CONFIG, counts=[4, 2], lengths=[3, 5])
    assert batch.model.float().encode_regions(batch.features.half(), batch.region_mask).dtype == torch.float32


def test_every_caption_has_a_length_and_none_is_encoded_to_nothing():
    model = CAMP(CampConfig(vocab_size=5, region_dim=3, word_dim=2, dim=4))
    with pytest.raises(ValueError, match=r"tokens: shape \[4, 5\], lengths \[2\]"):
        model.encode_captions(torch.ones(4, 5, dtype=torch.int64), torch.tensor([2, 5]))
    none = torch.zeros(0, 5, dtype=torch.int64)
    assert model.encode_captions(none, none[:, 0]).shape == (0, 5, model.config.dim)
