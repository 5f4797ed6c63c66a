"""Describes regions with timm's networks: any that gives a feature map, or tokens of patches.

These networks detect no boxes. A region is a cell of a grid (`regions.boxes: grid`), described by the mean of the map
over it, or a box that the dataset provides (`given`), described through RoIAlign. If the network classifies the mean of
its map, a region's class and probability are the classifier's output for exactly that feature.

Shapes: B images of a batch, C channels of a map, h and w its places, n regions of the batch. region_dim is the sum of
the channels of the last map and of the requested earlier ones.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.layers import SelectAdaptivePool2d
from torchvision.ops import roi_align

from camp_model.regions import ImageRegions
from stages.detectors.base import Description, NetworkInput
from stages.detectors.folding import fold_norms
from stages.detectors.grid import cell_boxes, cell_shares
from stages.detectors.timm_maps import all_maps, as_map, outputs
from stages.detectors.timm_weights import build, check_architecture, load_network, packaged
from stages.detectors.weights import fit, load_saved, save_state
from stages.errors import InputError, shown
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams

ALIGNED = 7
"""Places per side that RoIAlign samples in a box before they are averaged."""
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _check_cover(network: Any, places: tuple[int, ...], size: tuple[int, int], own: tuple[int, int]) -> None:
    """Raise a ValueError if the map, at the stride it has for the network's own size, leaves out a margin of the
    input."""
    try:
        tiled = as_map(network.forward_features(torch.zeros(1, 3, *own)), network, own).shape[2:]
        stride = int(network.feature_info[-1]["reduction"])
    except Exception:  # made only for this size: then its patches have been checked
        return
    for side, count, own_side, own_count in zip(size, places, own, tiled, strict=True):
        if own_count in (own_side // stride, -(-own_side // stride)) and count * stride < side:
            raise ValueError(
                f"has {count} places for {side} pixels, which cover {count * stride}; expected a multiple of {stride}"
            )


def _class_names(network: Any, last: torch.Tensor) -> list[str]:
    """ImageNet's class names, if the network classifies the mean of its map into these; else none."""
    pools = [module.pool_type for module in network.modules() if isinstance(module, SelectAdaptivePool2d)]
    subset = infer_imagenet_subset({"num_classes": network.num_classes})
    if subset is None or pools not in (["avg"], ["fast"], ["fastavg"]):
        return []
    drawn = torch.rand(last.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():  # some heads do more than average before they classify
        whole, mean = (_head(network, maps) for maps in (drawn, drawn.mean((2, 3), keepdim=True)))
    if not torch.allclose(whole, mean, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
        return []
    return [name.split(",")[0] for name in ImageNetInfo(subset).label_descriptions()]


def _head(network: Any, maps: torch.Tensor) -> torch.Tensor:
    """The logits of the network's classifier for maps [B, C, h, w]."""
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    logits: torch.Tensor = network.forward_head(maps.permute(0, 2, 3, 1) if channels_last else maps)
    return logits


class TimmExtractor:
    """A RegionExtractor that uses a timm network."""

    def __init__(self, network: Any, description: Description, params: RegionsParams, device: str) -> None:
        self.description = description
        self.fingerprint = description.fingerprint
        self.region_dim = description.region_dim
        self.categories = description.categories
        self.attributes = description.attributes
        self.params = params
        self.device = torch.device(device)
        self.size: tuple[int, int] = tuple(description.config["input_size"])
        self.earlier: list[int] = list(description.config["earlier_maps"])
        fold_norms(network.eval(), functools.partial(outputs, earlier=self.earlier), self.size)
        # Channels last: convolutions are a third faster, on a CPU too.
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.resampling = RESAMPLING[description.config["interpolation"]]
        self.mean, self.std = (
            torch.tensor(description.config[name], dtype=torch.float32, device=self.device)[:, None, None]
            for name in ("mean", "std")
        )
        self._shares: dict[tuple[int, ...], torch.Tensor] = {}

    def prepare(self, image: np.ndarray) -> NetworkInput:
        height, width = self.size
        resized = Image.fromarray(image).resize((width, height), self.resampling)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return NetworkInput(pixels, width=image.shape[1], height=image.shape[0], group=self.size)

    @torch.inference_mode()
    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """uint8 RGB [B, 3, H, W] on the device -> the last map and the earlier ones, float32 [B, C, h, w] each."""
        images = pixels.contiguous(memory_format=torch.channels_last).float()
        images.div_(255).sub_(self.mean).div_(self.std)
        return all_maps(self.network, images, self.earlier, self.size)

    @torch.inference_mode()
    def forward(
        self, batch: Sequence[NetworkInput], image_boxes: Sequence[np.ndarray] | None = None
    ) -> list[ImageRegions]:
        maps = self.maps(torch.stack([item.pixels for item in batch]).to(self.device))
        if image_boxes is None:
            boxes = [cell_boxes(self.params.grids, item.width, item.height) for item in batch]
            features = torch.cat([self._cells(one) for one in maps], dim=-1).flatten(0, 1)
        else:
            boxes = [
                np.clip(
                    np.array(own, np.float32).reshape(-1, 4), 0, np.array([item.width, item.height] * 2, np.float32)
                )
                for item, own in zip(batch, image_boxes, strict=True)
            ]
            features = torch.cat([self._aligned(one, batch, boxes) for one in maps], dim=-1)
        return self._described(batch, boxes, features)

    def _cells(self, maps: torch.Tensor) -> torch.Tensor:
        """The mean of maps [B, C, h, w] over each cell of the grids: [B, cells, C]."""
        place = tuple(maps.shape[2:])
        if place not in self._shares:
            self._shares[place] = cell_shares(self.params.grids, *place).to(self.device)
        return self._shares[place] @ maps.flatten(2).transpose(1, 2)

    def _aligned(self, maps: torch.Tensor, batch: Sequence[NetworkInput], boxes: Sequence[np.ndarray]) -> torch.Tensor:
        """The mean of RoIAlign's samples in each box: [n, C]."""
        height, width = maps.shape[2:]
        placed = [
            torch.tensor(own * np.array([width / item.width, height / item.height] * 2, np.float32)).to(self.device)
            for item, own in zip(batch, boxes, strict=True)
        ]
        aligned: torch.Tensor = roi_align(maps.contiguous(), placed, ALIGNED, aligned=True)
        return aligned.mean(dim=(2, 3))

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        """The classifier's logits [n, classes] of features [n, region_dim]; no columns without a usable classifier."""
        if not self.categories:
            return features.new_zeros(len(features), 0)
        return _head(self.network, features[:, : self.network.num_features, None, None])

    def _described(
        self, batch: Sequence[NetworkInput], boxes: Sequence[np.ndarray], features: torch.Tensor
    ) -> list[ImageRegions]:
        """Assemble each image's regions from features [n, region_dim]; without a classifier, class -1, score 1."""
        logits = self._logits(features)
        if self.categories:
            scores, classes = logits.softmax(dim=1).max(dim=1)
        else:
            scores, classes = features.new_ones(len(features)), torch.full((len(features),), -1)
        columns = [features.float().cpu().numpy(), scores.float().cpu().numpy(), classes.cpu().numpy().astype(np.int32)]
        ends = np.cumsum([len(own) for own in boxes])[:-1]
        parts = zip(*(np.split(column, ends) for column in columns), strict=True)
        return [
            ImageRegions(
                features=own_features,
                boxes=own_boxes,
                scores=own_scores,
                classes=own_classes,
                attributes=np.full(len(own_boxes), -1, np.int32),
                attribute_scores=np.zeros(len(own_boxes), np.float32),
                width=item.width,
                height=item.height,
            )
            for item, own_boxes, (own_features, own_scores, own_classes) in zip(batch, boxes, parts, strict=True)
        ]

    @torch.inference_mode()
    def box_logits(self, features: np.ndarray) -> np.ndarray:
        return self._logits(torch.as_tensor(features, dtype=torch.float32, device=self.device)).float().cpu().numpy()


def resolve(params: DetectorParams, out: Path, dataset: Path) -> Description:
    """Write the weights of a timm network to `out`, and describe the detector.

    Raises:
        InputError: timm has no such model, its weights cannot be obtained or do not fit, or it gives no map.
    """
    check_architecture(params.architecture)
    known = packaged(params)
    asked = params.timm.image_size
    own_size = known.input.get("input_size", [None])[0] if known else None
    network, source = load_network(params, asked or own_size)
    settings = resolve_data_config(model=network)
    config: dict[str, Any] = {
        "input_size": [asked, asked] if asked else list(settings["input_size"][1:]),
        "mean": list(settings["mean"]),
        "std": list(settings["std"]),
        "interpolation": settings["interpolation"] if settings["interpolation"] in RESAMPLING else "bicubic",
    }
    if known:
        config |= {key: value for key, value in known.input.items() if key != "input_size" or not asked}
    key = "timm.image_size" if asked else "architecture"
    size = config["input_size"][0], config["input_size"][1]
    try:
        network.to(memory_format=torch.channels_last)  # as the extractor has it
        with torch.inference_mode():
            maps = all_maps(network, torch.zeros(1, 3, *size), params.timm.earlier_maps, size)
            if asked:
                own = settings["input_size"][1:]
                _check_cover(network, tuple(maps[0].shape[2:]), size, (own[0], own[1]))
    except Exception as error:  # timm's networks fail in many ways
        if params.timm.earlier_maps and "allocate" not in str(error):
            key = "timm.earlier_maps"
        raise InputError(f"params.yaml: detector.{key}: {shown(params.architecture)} {str(error)[:300]}") from None
    sizes = ", ".join(f"{one.shape[2]} x {one.shape[3]} places of {one.shape[1]} features" for one in maps)
    print(f"{params.architecture}: {sizes}")
    return Description(
        backend="timm",
        architecture=params.architecture,
        weights_source=source,
        weights_sha256=save_state(network.state_dict(), out),
        region_dim=sum(one.shape[1] for one in maps),
        categories=_class_names(network, maps[0]),
        config=config
        | {
            "num_classes": network.num_classes,
            "image_size": asked or own_size,
            "earlier_maps": list(params.timm.earlier_maps),
        },
    )


def load(
    folder: Path, description: Description, params: RegionsParams, device: str, options: DetectorParams
) -> TimmExtractor:
    """Build the network that `description` describes, with the weights in `folder`."""
    network = build(description.architecture, description.config["num_classes"], description.config["image_size"])
    fit(network, load_saved(folder, description.weights_sha256), str(folder / "weights.safetensors"))
    return TimmExtractor(network, description, params, device)
