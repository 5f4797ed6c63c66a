"""A training step and a ranking on a pretended GPU: devices are never mixed, and the CPU waits for it no more than it
must. What both give is what the CPU gives, to the bit."""

import copy

import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask
from camp_model.scoring import fused_pooling
from camp_model.scoring.ranking import rank_queries
from camp_model.vocabulary import Vocabulary
from stages.device import Precision
from stages.params.train import TrainParams
from stages.training.averaging import WeightAverage
from stages.training.data import Batch
from stages.training.foils import FoilBatch
from stages.training.groups import parameter_groups
from stages.training.loss import batch_loss
from tests.camp_model.elsewhere import WAITS, elsewhere

CPU = torch.device("cpu")
MODELS = [
    {}, {"pooling": "mlp"}, {"pooling": "mean"}, {"pooling": "gpo"}, {"gate": "elementwise"}, {"gate": "none"},
    {"gate": "unapplied"}, {"gate_context": 1.5}, {"gate_evidence": True}, {"hops": 2}, {"matching": "cosine"},
    {"fusion": "sum", "residual": False}, {"joint_score": True}, {"feature_norm": 6.0},
    {"message_passing": "image_to_text"}, {"message_passing": "text_to_image"}, {"message_passing": "none"},
    {"matcher": "scan", "scan_direction": "both"}, {"matcher": "sgraf"}, {"matcher": "joint", "pooling": "gpo"},
]  # fmt: skip
TRAINING = [
    {"gate_target": "pair", "curriculum_steps": 8}, {"random_negative_steps": 8}, {"loss": "bce", "micro_batch": 4},
    {"loss": "triplet"}, {"loss": "triplet", "all_negatives_epochs": 1}, {"mining_batch": 3, "micro_batch": 2},
    {"joint_weight": 1.0}, {"foil_weight": 1.0}, {"dropout": 0.3, "region_dropout": 0.3},
    {"drop_regions": 0.3, "drop_words": 0.3, "ema_decay": 0.9, "learning_rates": {"matcher.": 0.5}},
]  # fmt: skip


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))


def make(params=None, **switches):
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "region_dim": 10, "word_dim": 3, "dim": 8, "pooling_heads": 2, "similarity_dim": 4}
    config = CampConfig(**(sizes | {"geometry": 4.0} | switches))
    params = params or TrainParams()
    return CAMP(config, params.dropout, params.region_dropout)


def make_batch(params):
    generator = torch.Generator().manual_seed(1)
    counts, lengths = torch.tensor([4, 2, 3, 4, 1, 2]), torch.tensor([5, 1, 3, 2, 5, 4])
    tokens = torch.randint(4, 12, (6, 5), generator=generator)
    rows = torch.tensor([0, 2, 5])
    foils = FoilBatch(rows, tokens[rows], lengths[rows], torch.tensor([1, 0, 2]), torch.tensor([1.0, 0.5, 2.0]))
    return Batch(
        torch.randn(6, 4, 10, generator=generator).half(), length_mask(counts, 4), tokens, lengths,
        torch.arange(6) % 5, torch.arange(6) % 4, foils if params.foil_weight else None,
    )  # fmt: skip


def steps(model, params, device):
    """Two steps; the losses, the weights, and their average."""
    batch, precision = make_batch(params), Precision("fp32", CPU)
    optimizer = torch.optim.AdamW(parameter_groups(model, params.learning_rates), lr=0.01, foreach=False)
    average, losses = WeightAverage(model, params.ema_decay), []
    for number in range(2):
        WAITS.clear()
        optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(number)
        losses.append(batch_loss(model.train(), batch.to(device), params, number, 4, precision))
        losses[-1].backward()
        optimizer.step()
        average.update(model, number)
    waits = WAITS.copy()
    values = [*losses, *model.state_dict().values(), *average.weights.values()]
    return [value.detach().tolist() for value in values], waits


def check(model, params):
    """The waits of a step on a GPU, whose results are the CPU's."""
    twin = copy.deepcopy(model)
    here, none = steps(model, params, CPU)
    with elsewhere() as device:
        there, waits = steps(twin.to(device), params, device)
    assert there == here and not none
    return waits


@pytest.mark.parametrize("switches", MODELS, ids=str)
def test_a_step_of_every_matcher(switches):
    has_gates = not make(**switches).config.no_gates_reason()
    waits = check(make(**switches), TrainParams(batch_size=6, epochs=2, gate_supervision=float(has_gates)))
    # Mining asks how long the longest images and captions are; generalised pooling, which lengths there are.
    pooling = {"gpo": 4 if switches.get("matcher") == "joint" else 8}.get(switches.get("pooling"), 0)
    assert sum(waits.values()) == 1 + pooling, waits


@pytest.mark.parametrize("values", TRAINING, ids=str)
def test_a_step_of_every_way_to_train(values):
    params = TrainParams(batch_size=6, epochs=2, **values)
    waits = check(make(params), params)
    assert sum(waits.values()) <= (2 if params.mining_batch else 1), waits


def by_pytorch(_, message, own, residual, gates, bias, score, counts, pooled):
    """What the kernel computes."""
    own = own[:, None] if gates is None else gates[..., None] * own[:, None]
    fused = (own + message if bias is None else own + message + bias).relu()
    fused = fused if residual is None else fused + residual[:, None]
    real = torch.arange(fused.shape[2], device=counts.device) < counts[:, None, None]
    scores = torch.zeros_like(fused[..., 0]) if score is None else fused @ score
    pooled.copy_((scores.masked_fill(~real, -torch.inf).softmax(-1)[..., None] * fused).sum(2))


@pytest.mark.parametrize(
    "switches",
    [{}, {"pooling": "mean"}, {"gate": "none", "gate_context": 0.0}, {"message_passing": "text_to_image"},
     {"gate_evidence": True, "gate_context": 1.5, "joint_score": True, "residual": False}],
    ids=str,
)  # fmt: skip
def test_a_step_with_the_gpu_kernel(switches, monkeypatch):
    """A pretended GPU cannot run it, so PyTorch does; all around it is what a GPU does."""
    launched = []
    monkeypatch.setattr(fused_pooling, "kernel", lambda: True)
    monkeypatch.setattr(fused_pooling, "_launch", lambda *values: (launched.append(1), by_pytorch(*values)))
    model, params = make(**switches), TrainParams(batch_size=6, epochs=2, gate_supervision=0.0)
    here, _ = steps(copy.deepcopy(model), params, CPU)
    with elsewhere() as device:
        there, waits = steps(model.to(device), params, device)
    assert launched and sum(waits.values()) == 1, waits
    for value, expected in zip(there, here, strict=True):
        torch.testing.assert_close(torch.tensor(value), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_step_with_a_transformer(frozen, own):
    vocabulary = Vocabulary.build([["red", "shirt", "left", "dog", "running", "unbelievably", "two", "of"]] * 5)
    model = make(text="transformer", transformer=str(own), transformer_frozen=frozen, vocab_size=len(vocabulary))
    model.caption_encoder.read_vocabulary(vocabulary)
    waits = check(model, TrainParams(batch_size=6, epochs=2))
    assert sum(waits.values()) <= (2 if frozen else 8), waits


@pytest.mark.parametrize("switches", MODELS, ids=str)
@torch.no_grad()
def test_ranks_vectors_and_gates(switches):
    model, batch = make(**switches).eval(), make_batch(TrainParams())
    words = model.encode_captions(batch.tokens, batch.lengths)
    regions = model.encode_regions(batch.features, batch.region_mask)
    inputs = regions, batch.region_mask, words, length_mask(batch.lengths, 5)

    def results(model, regions, region_mask, words, word_mask, index, texts):
        ranked = rank_queries(model, regions, region_mask, words, word_mask, index, 3, caption_text=texts)
        details = model.inspect_pairs(regions, region_mask, words, word_mask)
        values = [*vars(ranked).values(), *vars(details).values()]
        values += model.image_vectors(regions, region_mask), model.caption_vectors(words, word_mask)
        return [None if value is None else value.tolist() for value in values]

    here = results(model, *inputs, torch.arange(6), batch.caption_index)
    with elsewhere() as device:
        there = (value.to(device) for value in (*inputs, torch.arange(6), batch.caption_index))
        on_gpu = results(copy.deepcopy(model).to(device), *there)
    # The CPU has a kernel of its own, which adds up in another order.
    assert str(on_gpu[:4]) == str(here[:4])
    for value, expected in zip(on_gpu, here, strict=True):
        assert (value is None) == (expected is None)
        if value is not None:
            torch.testing.assert_close(torch.tensor(value), torch.tensor(expected))
