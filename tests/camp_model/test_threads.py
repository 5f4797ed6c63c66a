"""With several threads, too, a training step is the same each time, to the bit."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask
from camp_model.losses import EncodedBatch
from camp_model.tensors import take_rows
from stages.device import Precision
from stages.params.train import TrainParams
from stages.training.data import Batch
from stages.training.foils import FoilBatch
from stages.training.loss import batch_loss

CPU = torch.device("cpu")
PAIRS, REGIONS, WORDS = 48, 12, 10


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2), (5, 0, 2)])
@pytest.mark.parametrize("chosen", [[4, 0, 4, 4, 2], [[4, 0], [4, 2]], [[1], [1]], [[]], 3])
def test_rows_and_their_gradient_are_those_of_indexing(shape: tuple[int, ...], chosen: Any) -> None:
    values, rows = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.tensor(chosen, dtype=torch.long)
    taken = take_rows(values, rows)
    weights = torch.randn_like(taken)
    (gradient,) = torch.autograd.grad((taken * weights).sum(), values)
    (expected,) = torch.autograd.grad((values[rows] * weights).sum(), values)
    assert torch.equal(taken, values[rows])
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(take_rows(values.detach() > 0, rows), (values > 0)[rows])


@pytest.mark.parametrize(
    ("switches", "training"),
    [
        ({}, {}), ({"gate_evidence": True}, {"foil_weight": 1.0}), ({"pooling": "gpo", "hops": 2}, {}),
        ({"matcher": "scan"}, {"loss": "triplet", "gate_supervision": 0.0}),
        ({"matcher": "sgraf", "similarity_dim": 64}, {"gate_supervision": 0.0}),
        ({"matcher": "joint"}, {"gate_supervision": 0.0}),
    ],
)  # fmt: skip
def test_a_step_repeats_itself(switches: dict[str, object], training: dict[str, object]) -> None:
    torch.manual_seed(0)
    params = TrainParams.from_dict({"batch_size": PAIRS, "epochs": 1, **training})
    sizes = {"vocab_size": 40, "region_dim": 32, "word_dim": 32, "dim": 128, "geometry": 4.0}
    model = CAMP(CampConfig(**(sizes | switches)))  # type: ignore[arg-type]
    counts, lengths = torch.randint(3, REGIONS + 1, (PAIRS,)), torch.randint(3, WORDS + 1, (PAIRS,))
    counts[0], lengths[0] = REGIONS, WORDS
    tokens = torch.randint(4, 40, (PAIRS, WORDS)) * length_mask(lengths, WORDS)
    rows = torch.randint(0, PAIRS, (PAIRS,))
    foils = FoilBatch(rows, tokens[rows], lengths[rows], torch.zeros(PAIRS, dtype=torch.long), torch.ones(PAIRS))
    batch = Batch(
        torch.randn(PAIRS, REGIONS, 32), length_mask(counts, REGIONS), tokens, lengths, torch.arange(PAIRS),
        torch.arange(PAIRS), foils if params.foil_weight else None,
    )  # fmt: skip

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        loss = batch_loss(model, batch, params, 0, 1, Precision("fp32", CPU))
        return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True))

    first = gradients()
    for _ in range(7):
        again = gradients()
        assert all(a is b if b is None else torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("pooling", ["attention", "mlp", "mean", "gpo"])
@pytest.mark.parametrize("passing", ["both", "text_to_image", "none"])
def test_all_pairs_have_the_scores_with_gradients_that_they_have_without(pooling: str, passing: str) -> None:
    torch.manual_seed(0)
    config = CampConfig(vocab_size=9, region_dim=4, word_dim=3, dim=8, pooling=pooling, message_passing=passing)
    model = CAMP(config)
    regions, words = torch.randn(6, 5, 8), torch.randn(6, 4, 8)
    masks = length_mask(torch.tensor([5, 2, 3, 1, 5, 4]), 5), length_mask(torch.tensor([4, 1, 3, 2, 2, 4]), 4)
    options = {"caption_index": torch.arange(6)}

    def scores() -> torch.Tensor:
        return EncodedBatch(model, regions, masks[0], words, masks[1], torch.arange(6), **options).all_scores()[0]

    with torch.no_grad():
        expected = scores()
    torch.testing.assert_close(scores().detach(), expected)
