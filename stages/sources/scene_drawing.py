"""Places a scene's objects and draws the picture, its boxes and its map of the topmost objects."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stages.sources.scene_graph import Scene, SceneObject
from stages.sources.scene_raster import (
    COLOUR_RGB,
    ROTATION,
    SUPERSAMPLING,
    background,
    dark_texture,
    inside_shape,
    light_and_noise,
    outline,
    rotate,
    shrink,
)

MIN_VISIBLE = 0.6
"""Least share of every object's own pixels that is not covered."""
JPEG_QUALITY = 92
# Radii in pixels at an image side of 160.
_RADII = {"small": (13, 17), "medium": (20, 24), "large": (28, 33)}
_JITTER = 9


@dataclass(frozen=True)
class Place:
    """Position of an object: centre and radius in pixels, rotation in degrees."""

    x: int
    y: int
    radius: float
    angle: int


@dataclass(frozen=True)
class Drawing:
    """A drawn scene: uint8 RGB pixels [side, side, 3], each pixel's topmost object (-1: background), and the places."""

    pixels: np.ndarray
    owner: np.ndarray
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Geometry:
    """What the captions and the detector need to know about a drawing."""

    centres: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    """XYXY of each object's visible pixels; x1 and y1 are one past the last pixel."""
    visible: tuple[float, ...]


class _Stencil:
    """One object's points on a supersampled grid over its window [y0:y0+h, x0:x0+w] of the image."""

    def __init__(self, shape: str, place: Place, side: int) -> None:
        reach = int(place.radius * 1.2) + 3
        self.x0, self.y0 = max(0, place.x - reach), max(0, place.y - reach)
        x1, y1 = min(side, place.x + reach), min(side, place.y + reach)
        offset = (SUPERSAMPLING - 1) / 2
        xs = (np.arange(self.x0 * SUPERSAMPLING, x1 * SUPERSAMPLING) - offset) / SUPERSAMPLING
        ys = (np.arange(self.y0 * SUPERSAMPLING, y1 * SUPERSAMPLING) - offset) / SUPERSAMPLING
        self.across, self.down = (xs[None, :] - place.x) / place.radius, (ys[:, None] - place.y) / place.radius
        self.u, self.v = rotate(self.across, self.down, place.angle)
        self.inside = inside_shape(shape, self.u, self.v)
        self.window = (slice(self.y0, y1), slice(self.x0, x1))
        self.cover = shrink(self.inside)


def _draw_places(
    rng: np.random.Generator, scene: Scene, side: int, near: tuple[Place, ...] | None
) -> tuple[tuple[Place, ...], list[_Stencil], np.ndarray]:
    """Draw places in which every object is visible enough, or, if `near` is given, jittered copies of its places."""
    scale, attempt = side / 160, 0
    while True:
        attempt += 1
        # If a scene is too full, objects shrink step by step; a twin whose copied places fail gets new ones.
        shrinking = max(0.6, 1 - 0.02 * (attempt // 25))
        copied = near if near is not None and attempt <= 40 else ()
        places: list[Place] = []
        for i, item in enumerate(scene.objects):
            low, high = _RADII[item.size]
            radius = (low * 4 + int(rng.integers((high - low) * 4 + 1))) / 4 * scale * shrinking
            margin = int(radius) + 1
            angle = int(rng.integers(-ROTATION[item.shape], ROTATION[item.shape] + 1))
            x, y = (int(c) for c in rng.integers(margin, side - margin, size=2))
            if i < len(copied):
                jitter = round(_JITTER * scale)
                dx, dy = (int(c) for c in rng.integers(-jitter, jitter + 1, size=2))
                x, y = copied[i].x + dx, copied[i].y + dy
                x, y = (min(max(c, margin), side - margin - 1) for c in (x, y))
            places.append(Place(x, y, radius, angle))
        stencils = [_Stencil(item.shape, place, side) for item, place in zip(scene.objects, places, strict=True)]
        owner = np.full((side, side), -1, dtype=np.int8)
        for i, stencil in enumerate(stencils):
            owner[stencil.window][stencil.cover >= 0.5] = i
        if all(share >= MIN_VISIBLE for share in _visible(stencils, owner)):
            return tuple(places), stencils, owner


def _visible(stencils: list[_Stencil], owner: np.ndarray) -> list[float]:
    return [int((owner == i).sum()) / max(1, int((stencil.cover >= 0.5).sum())) for i, stencil in enumerate(stencils)]


def _paint(rng: np.random.Generator, canvas: np.ndarray, stencil: _Stencil, item: SceneObject, radius: float) -> None:
    """Paint one object on the canvas, with its pattern, a dark outline, light from the top left and a shadow."""
    colour, texture = item.colour, item.texture
    base = np.array(COLOUR_RGB[colour]) + rng.integers(-16, 17, size=3)
    lighter = colour not in ("white", "yellow", "cyan") and bool(rng.integers(2))
    second = base + (255 - base) * 0.72 if lighter else base * 0.36
    turned = rotate(stencil.u, stencil.v, int(rng.integers(0, 8)) * 45 if texture == "striped" else 0)
    dark = shrink(stencil.inside & dark_texture(texture, *turned, radius, int(rng.integers(100)) / 100))
    edge = shrink(outline(stencil.inside, SUPERSAMPLING + 1))
    cover = stencil.cover
    whole = np.where(cover > 0, cover, 1)
    pattern, rim = (dark / whole)[..., None], (edge / whole)[..., None]
    light = 1 - 0.13 * (stencil.across[:, 1::SUPERSAMPLING] + stencil.down[1::SUPERSAMPLING])
    colours = (base * (1 - pattern) + second * pattern) * light[..., None] * (1 - 0.55 * rim)
    shadow = np.zeros(cover.shape)
    shadow[2:, 2:] = cover[:-2, :-2]
    view = canvas[stencil.window]
    view *= (1 - 0.35 * shadow)[..., None]
    view *= (1 - cover)[..., None]
    view += colours.clip(0, 255) * cover[..., None]


def draw_scene(scene: Scene, side: int, near: tuple[Place, ...] | None = None) -> Drawing:
    """Draw a scene, each with its own random generator; `near` has the places of the scene that it is a near twin
    of."""
    rng = np.random.default_rng((*scene.key, 1))
    places, stencils, owner = _draw_places(rng, scene, side, near)
    canvas = background(rng, side)
    for item, place, stencil in zip(scene.objects, places, stencils, strict=True):
        _paint(rng, canvas, stencil, item, place.radius)
    return Drawing(light_and_noise(rng, canvas), owner, places)


def _geometry(scene: Scene, drawing: Drawing, side: int) -> Geometry:
    boxes = []
    for i in range(len(scene.objects)):
        ys, xs = np.nonzero(drawing.owner == i)
        boxes.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    stencils = [_Stencil(item.shape, place, side) for item, place in zip(scene.objects, drawing.places, strict=True)]
    centres = tuple((place.x, place.y) for place in drawing.places)
    return Geometry(centres, tuple(boxes), tuple(_visible(stencils, drawing.owner)))


def draw_family(family: list[Scene], side: int, folder: Path) -> list[Geometry]:
    """Draw near twins (or a single scene) into `folder` as JPEG; the scene that the family starts from comes first."""
    near: tuple[Place, ...] | None = None
    geometries = []
    for scene in family:
        drawing = draw_scene(scene, side, near)
        near = near or drawing.places
        image = Image.fromarray(drawing.pixels)
        image.save(folder / f"{scene.image_id}.jpg", quality=JPEG_QUALITY, subsampling=0)
        geometries.append(_geometry(scene, drawing, side))
    return geometries
