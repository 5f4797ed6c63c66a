"""A batch of five pairs, two of one image, for the tests of losses."""

import torch

from camp_model import CampConfig

SIZES = {"vocab_size": 12, "region_dim": 5, "word_dim": 3, "dim": 6, "pooling_heads": 2}
CONFIG = CampConfig(**SIZES)


# Pairs 0 and 3 show the same image.
INDEX = torch.tensor([7, 1, 2, 7, 4])


def batch_of(make_batch, config=CONFIG, **kwargs):
    batch = make_batch(config, counts=[4, 2, 3, 4, 1], lengths=[3, 1, 5, 2, 4], **kwargs)
    batch.features[3] = batch.features[0]
    return batch


def gradients(batch, loss):
    batch.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in batch.model.named_parameters() if p.grad is not None}


def drawn(seed):
    """Random negatives as loops: the caption and the image with the highest draw among those of another image."""
    draws = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(seed)).tolist()
    others = [[j for j in range(5) if INDEX[j] != INDEX[i]] for i in range(5)]
    return [[max(others[i], key=lambda j, row=kind[i]: row[j]) for i in range(5)] for kind in draws]
