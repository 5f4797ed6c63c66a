"""Shapes, textures and backgrounds of the embedded scenes as pixels.

Every pixel must be the same on every machine. So random numbers are integers, angles are whole degrees from one rounded
table, and the rest is elementwise + - * /, which IEEE arithmetic defines exactly. There are no matrix products and no
transcendental functions, because their last bit depends on the processor.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 3

# Rounded to 14 bits, so that no difference in the last bit of a sine can reach a pixel.
_SINE = [round(math.sin(math.radians(degrees)) * 16384) / 16384 for degrees in range(360)]

COLOUR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (206, 34, 38),
    "orange": (242, 128, 24),
    "yellow": (240, 214, 40),
    "green": (44, 158, 58),
    "cyan": (58, 200, 210),
    "blue": (42, 74, 206),
    "purple": (134, 50, 168),
    "white": (238, 238, 234),
}
# Largest rotation either way, in degrees: a square on its corner would look like another shape.
ROTATION: dict[str, int] = {
    "circle": 180,
    "square": 20,
    "triangle": 20,
    "star": 35,
    "heart": 22,
    "cross": 20,
    "ring": 180,
    "crescent": 180,
}


def rotate(u: np.ndarray, v: np.ndarray, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates (u, v) in axes turned by `degrees`, an integer."""
    sine, cosine = _SINE[degrees % 360], _SINE[(degrees + 90) % 360]
    return u * cosine + v * sine, v * cosine - u * sine


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    corners = []
    for i in range(10):
        radius = 1.05 if i % 2 == 0 else 0.46
        corners.append((radius * _SINE[36 * i % 360], -radius * _SINE[(36 * i + 90) % 360]))
    inside = np.zeros(u.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:
            inside ^= ((y0 > v) != (y1 > v)) & (u < x0 + (v - y0) * ((x1 - x0) / (y1 - y0)))
    return inside


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = 1.22 * u, 0.1 - 1.22 * v
    bulb = x * x + y * y - 1
    return np.asarray(bulb * bulb * bulb - x * x * y * y * y <= 0)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    hole = u - 0.42
    return np.asarray((u * u + v * v <= 0.96) & (hole * hole + v * v >= 0.55))


_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "circle": lambda u, v: u * u + v * v <= 0.9,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.82,
    "triangle": lambda u, v: (v <= 0.62) & (1.732 * np.abs(u) <= v + 1.1),
    "star": _star,
    "heart": _heart,
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= 0.32) & (np.maximum(np.abs(u), np.abs(v)) <= 0.96),
    "ring": lambda u, v: (u * u + v * v <= 0.94) & (u * u + v * v >= 0.3),
    "crescent": _crescent,
}


def inside_shape(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points lie in the shape, bool; u points right and v down, in units of the object's radius."""
    return np.asarray(_INSIDE[shape](u, v), dtype=bool)


def dark_texture(texture: str, u: np.ndarray, v: np.ndarray, radius: float, phase: float) -> np.ndarray:
    """Whether points take the object's second colour. The pattern never gets finer than 3 pixels."""
    if texture == "plain":
        return np.zeros(u.shape, dtype=bool)
    if texture == "striped":
        position = (u + phase) / max(0.46, 7 / radius)
        return np.asarray(position - np.floor(position) < 0.5)
    if texture == "dotted":
        period = max(0.52, 8 / radius)
        x, y = (u + phase) / period, v / period
        x, y = x - np.floor(x) - 0.5, y - np.floor(y) - 0.5
        return np.asarray(x * x + y * y <= 0.1)
    if texture == "checkered":
        cell = max(0.4, 5 / radius)
        return np.asarray((np.floor((u + phase) / cell) + np.floor(v / cell)) % 2 == 0)
    raise ValueError(f"no such texture: {texture}")


def outline(inside: np.ndarray, width: int) -> np.ndarray:
    """The points of `inside` that are within `width` points of its edge."""
    core = inside.copy()
    core[:width] = core[-width:] = core[:, :width] = core[:, -width:] = False
    core[width:] &= inside[:-width]
    core[:-width] &= inside[width:]
    core[:, width:] &= inside[:, :-width]
    core[:, :-width] &= inside[:, width:]
    return np.asarray(inside & ~core)


def shrink(points: np.ndarray) -> np.ndarray:
    """Means over SUPERSAMPLING x SUPERSAMPLING blocks: [3h, 3w] bool -> [h, w] float64 in 0..1."""
    height, width = points.shape[0] // SUPERSAMPLING, points.shape[1] // SUPERSAMPLING
    blocks = points.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING)
    return np.asarray(blocks.sum(axis=(1, 3), dtype=np.int64) / SUPERSAMPLING**2)


def _muted(rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    return np.clip(int(rng.integers(low, high)) + rng.integers(-30, 31, size=3), 0, 255)


def _value_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """The sum of smooth random fields of three grain sizes, [size, size] in 0..1."""
    total = np.zeros((size, size))
    for cells, weight in ((int(rng.integers(3, 6)), 0.5), (int(rng.integers(8, 16)), 0.3), (size // 4, 0.2)):
        grid = Image.fromarray(rng.integers(0, 256, size=(cells, cells), dtype=np.uint8))
        total += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return total / 255


def _clutter(rng: np.random.Generator, image: Image.Image) -> None:
    """Draw muted scraps and scratches, which no caption mentions."""
    draw = ImageDraw.Draw(image, "RGBA")
    size = image.width

    def points(count: int, spread: int) -> list[tuple[int, int]]:
        x, y = (int(c) for c in rng.integers(0, size, size=2))
        return [(x + int(dx), y + int(dy)) for dx, dy in rng.integers(-spread, spread + 1, size=(count, 2))]

    for _ in range(int(rng.integers(8, 22))):
        colour = (*(int(c) for c in _muted(rng, 30, 215)), int(rng.integers(60, 190)))
        kind = int(rng.integers(3))
        if kind == 0:
            draw.polygon(points(int(rng.integers(3, 6)), size // 7), fill=colour)
        elif kind == 1:
            draw.line(points(int(rng.integers(2, 5)), size // 3), fill=colour, width=int(rng.integers(1, 4)))
        else:
            (x0, y0), (x1, y1) = points(2, size // 9)
            draw.ellipse((min(x0, x1), min(y0, y1), max(x0, x1) + 2, max(y0, y1) + 2), fill=colour)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A textured, cluttered background, float64 [size, size, 3] in 0..255."""
    blend = _value_noise(rng, size)[..., None]
    ground = _muted(rng, 50, 200) * (1 - blend) + _muted(rng, 50, 200) * blend
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    _clutter(rng, image)
    return np.asarray(image, dtype=np.float64)


def light_and_noise(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Add uneven, tinted light and sensor noise to the finished picture: float64 -> uint8 [size, size, 3]."""
    size = canvas.shape[0]
    ramp = (np.arange(size) * 2 - (size - 1)) / (size - 1)
    across, down = rotate(ramp[None, :], ramp[:, None], int(rng.integers(360)))
    gain = int(rng.integers(72, 116)) / 100 + int(rng.integers(0, 19)) / 100 * (across + 0 * down)
    tint = 1 + rng.integers(-60, 61, size=3) / 1000
    strength = int(rng.integers(3, 10))
    noise = rng.integers(-strength, strength + 1, size=(3, *canvas.shape), dtype=np.int8).sum(axis=0, dtype=np.int64)
    lit = np.clip(canvas * gain[..., None] * tint + noise, 0, 255)
    return np.asarray(lit.astype(np.uint8))
