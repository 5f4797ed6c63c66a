"""Batch norms folded into convolutions, against the networks of timm as they are; only exactly what may be folded."""

import copy
import functools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm as library
import torch
from timm.layers import StdConv2dSame
from torch import nn

from stages.detectors.base import Description, extract
from stages.detectors.folding import fold_norms
from stages.detectors.timm_maps import outputs
from stages.detectors.weights import save_state
from tests.stages.detectors.timm_detectors import detector, loaded, own_network, picture

FAMILIES = {
    # Network -> batch norms, and how many of them follow a convolution that feeds nothing else.
    "resnet18": (20, 20),
    "mobilenetv3_small_050": (34, 34),
    "tf_efficientnet_lite0": (49, 49),
    "regnety_002": (44, 44),
    "densenet121": (121, 59),
    "repvgg_a0": (61, 44),
    "resnetv2_18": (17, 8),
    "levit_128s": (4, 4),
    "mobilevit_xxs": (32, 32),  # its control flow depends on the size of its input
    "vit_tiny_patch16_224": (0, 0),
}


def drawn_norms(network: Any) -> None:
    """Statistics and factors as training leaves them: without, a norm is next to nothing."""
    rng = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            norm.running_mean.normal_(0, 0.1, generator=rng)
            norm.running_var.uniform_(0.5, 1.5, generator=rng)
            if norm.affine:
                norm.weight.data.uniform_(0.5, 1.5, generator=rng)
                norm.bias.data.normal_(0, 0.1, generator=rng)


def norms_of(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("earlier", [(), (1, 2)])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_maps_stay_and_every_norm_that_may_is_folded(architecture: str, earlier: tuple[int, ...]) -> None:
    network = library.create_model(architecture, num_classes=0).eval()
    drawn_norms(network)
    side = 224 if architecture.startswith(("levit", "vit")) else 96
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    folded = copy.deepcopy(network)
    count, expected = FAMILIES[architecture]
    assert norms_of(network) == count
    assert fold_norms(folded, functools.partial(outputs, earlier=earlier), (side, side)) == expected
    assert norms_of(folded) == count - expected
    with torch.inference_mode():
        (last, maps), (own_last, own_maps) = outputs(folded, images, earlier), outputs(network, images, earlier)
    for mine, own in ((last, own_last), *((maps[index], own_maps[index]) for index in own_maps)):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))


class Odd(nn.Module):
    """Every way in which a norm behind a convolution must stay, and one that must not."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.shared, self.apart, self.read = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.standard, self.plain = StdConv2dSame(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.ofbatch, self.factorless = nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False)
        self.before = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(3, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.last(images)
        x = self.norms[0](self.twice(self.twice(x)))  # a convolution that is used twice
        y = self.shared(x)
        x = self.norms[1](y) + y  # its output is read without the norm, too
        x = self.norms[2](self.apart(x)) + self.norms[2](x)  # a norm that is used twice
        x = self.norms[3](self.standard(x))  # weights that are standardised as they are used
        x = self.norms[4](self.read(x)) + self.read.weight.mean()  # its weight is read without it, too
        x = self.ofbatch(self.before(x))  # the statistics of the batch
        return self.factorless(self.plain(x))  # this alone is folded


def test_only_exact_pairs_are_folded() -> None:
    network = Odd().eval()
    drawn_norms(network)
    folded = copy.deepcopy(network)
    assert fold_norms(folded, lambda module, images: module(images), (9, 9)) == 1
    assert isinstance(folded.factorless, nn.Identity) and folded.plain.bias is not None
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


def test_what_is_given_out_without_its_norm_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    assert fold_norms(network, lambda module, images: [between := module[0](images), module[1](between)], (9, 9)) == 0


class Named(nn.Module):
    """A norm that its module knows by two names, and calls by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.layers = nn.ModuleList([self.norm])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.layers[0](self.conv(images))
        return normed


def test_a_norm_of_two_names_is_not_applied_twice() -> None:
    network = Named().eval()
    drawn_norms(network)
    folded, images = copy.deepcopy(network), torch.randn(2, 3, 5, 5)
    fold_norms(folded, lambda module, images: module(images), (9, 9))
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


def test_other_threads_use_their_models_meanwhile() -> None:
    """A server loads a detector in a thread while others answer."""
    other, told = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval(), list[torch.Tensor]()

    def run(module: nn.Module, images: torch.Tensor) -> object:
        answering = threading.Thread(target=lambda: told.append(other(torch.zeros(1, 3))))
        answering.start()
        answering.join()
        return module(images)

    assert fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), run, (9, 9)) == 1
    assert len(told) == 1


def test_features_are_those_of_the_network_with_its_norms(tmp_path: Path) -> None:
    """Weights are kept as timm has them; what the extractor folds gives what they give."""
    detector(tmp_path, "resnet18", image_size=96)
    network = own_network(tmp_path)
    drawn_norms(network)
    kept = save_state(network.state_dict(), tmp_path)
    replace(Description.load(tmp_path), weights_sha256=kept).save(tmp_path)
    extractor, image = loaded(tmp_path), picture(96, 96)
    assert norms_of(extractor.network) == 0 and norms_of(own_network(tmp_path)) == 20
    (regions,) = extract(extractor, [image])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        whole = network.forward_features((pixels - extractor.mean) / extractor.std).mean((2, 3))
    np.testing.assert_allclose(regions.features[0], whole[0].numpy(), atol=1e-4 * float(whole.abs().max()))
