"""Encoded images and captions, and models to score them with."""

import torch

from camp_model import CAMP, CampConfig
from camp_model.encoders import LOCATION_DIM, length_mask, region_locations
from camp_model.matchers.prepared import TILES

SIZES = {"vocab_size": 5, "region_dim": 3, "word_dim": 2, "dim": 48, "pooling_heads": 2}


def encoded(images=37, captions=41, dim=48, seed=0):
    """Encoded images and captions of different sizes, real ones not always first, garbage in the padding."""
    generator = torch.Generator().manual_seed(seed)
    region_mask = length_mask(torch.randint(1, 10, (images,), generator=generator), 9)
    region_mask = region_mask[:, torch.randperm(9, generator=generator)]
    word_mask = length_mask(torch.randint(1, 8, (captions,), generator=generator), 7)
    regions = 0.7 * torch.randn(images, 9, dim, generator=generator)
    words = 0.7 * torch.randn(captions, 7, dim, generator=generator)
    corners = torch.rand(images, 9, 2, 2, generator=generator).sort(dim=2).values
    boxes = torch.cat([2 * corners.flatten(2) - 1, (corners[:, :, 1] - corners[:, :, 0]).prod(-1, keepdim=True)], -1)
    regions[..., -LOCATION_DIM:] = region_locations(boxes, 1.0)
    regions[~region_mask], words[~word_mask] = 99.0, 55.0
    return regions, region_mask, words, word_mask


def make(seed=0, **switches):
    torch.manual_seed(seed)
    model = CAMP(CampConfig(**(SIZES | switches))).eval()
    for name, parameter in model.named_parameters():
        # With a joint score the last layer begins at 0.
        if name.endswith("bias") or (name.endswith("matching.output.weight") and not parameter.any()):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def float64_scores(model, regions, region_mask, words, word_mask):
    wide = CAMP(model.config).double()
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        images = wide.prepare_regions(regions.double(), region_mask)
        return wide.match(images, wide.prepare_words(words.double(), word_mask), TILES).logits
