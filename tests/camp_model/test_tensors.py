"""Unit vectors, and what is made of vectors that have no direction."""

import pytest
import torch
from torch.nn.functional import normalize

from camp_model import CampConfig
from camp_model.joint import joint_contrastive
from camp_model.losses import hardest_negative_bce
from camp_model.tensors import unit
from tests.camp_model.loss_batches import INDEX, SIZES, batch_of, gradients


@pytest.mark.parametrize("dim", [-1, -2])
def test_unit_vectors_and_their_gradients_are_those_of_normalize(dim):
    values = [torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    ours, theirs = unit(values[0], dim), normalize(values[1], dim=dim)
    weights = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.equal(ours, theirs) and torch.equal(values[0].grad, values[1].grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_vectors_of_zeros_are_zero_in_every_precision(dtype):
    assert unit(torch.zeros(2, 3, dtype=dtype)).tolist() == [[0.0] * 3] * 2


def test_a_vector_without_length_stays_zero_and_gets_no_gradient():
    values = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, torch.nan]], requires_grad=True)
    units = unit(values)
    assert units[:2].tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]] and units[2].isnan().all()
    units[:2].sum().backward()
    assert values.grad[0].tolist() == [0.0, 0.0] and values.grad[1].tolist() == pytest.approx([0.032, -0.024])


@pytest.mark.parametrize("switches", [
    {}, {"feature_norm": 6.0}, {"joint_score": True}, {"hops": 2}, {"matching": "cosine"}, {"matcher": "joint"},
    {"matcher": "scan", "scan_direction": "both"}, {"matcher": "sgraf", "similarity_dim": 4},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("regions", [1, 4])
def test_a_picture_without_features_leaves_the_gradient_of_the_others(make_batch, switches, regions):
    """So do features that come ready made where a picture could not be read; a new encoder has no bias to hide them."""
    batch = batch_of(make_batch, CampConfig(**SIZES, **switches))
    batch.features[2, :regions] = 0
    batch.model.float()
    batch.features = batch.features.float()
    torch.nn.init.zeros_(batch.model.region_encoder.linear.bias)
    encoded = batch.encode()
    vectors = batch.model.image_vectors(*encoded[:2]), batch.model.caption_vectors(*encoded[2:])
    loss = hardest_negative_bce(batch.model, *encoded, INDEX) + joint_contrastive(*vectors, INDEX)
    norm = torch.stack([gradient.norm() for gradient in gradients(batch, loss).values()]).norm()
    assert norm < 1e4
