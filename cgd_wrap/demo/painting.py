"""Painting the pictures of the demo: backdrop, clutter, shape, texture, noise, light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from cgd_wrap.demo.outlines import outlines

CLASSES = (
    "circle", "square", "triangle", "star", "cross",
    "ring", "crescent", "heart", "hexagon", "arrow",
)  # fmt: skip
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 50, 45),
    "orange": (230, 130, 40),
    "yellow": (225, 205, 60),
    "green": (60, 150, 70),
    "turquoise": (60, 190, 180),
    "blue": (55, 90, 200),
    "purple": (135, 70, 170),
    "pink": (235, 140, 175),
    "white": (235, 235, 235),
    "black": (35, 35, 35),
}
TEXTURES = ("plain", "striped", "dotted", "shaded", "grainy")
SIDE = 32  # pixels
_OVERSAMPLING = 4  # masks are drawn this much larger, then averaged, for smooth edges


@dataclass(frozen=True)
class Scene:
    """The contents of a picture: a shape, its look and place, and the light.

    Args:
        label: Index into `CLASSES`.
        colour: Key of `COLOURS`.
        texture: One of `TEXTURES`.
        radius: Radius of the shape's circumscribed circle, pixels.
        centre: Centre of the shape, x and y, pixels.
        angle: Rotation of the shape, radians.
        warmth: Tint of the light, -1 (cold) to 1 (warm).
    """

    label: int
    colour: str
    texture: str
    radius: float
    centre: tuple[float, float]
    angle: float
    warmth: float

    @property
    def caption(self) -> str:
        """The scene in words, such as "a small red striped star in warm light"."""
        size = "small" if self.radius < 8 else "large" if self.radius > 11 else "medium"
        light = "cold" if self.warmth < -0.25 else "warm" if self.warmth > 0.25 else "neutral"
        return f"a {size} {self.colour} {self.texture} {CLASSES[self.label]} in {light} light"


def paint(scene: Scene, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Paint a scene as pixels; `rng` decides background, clutter, texture phase and noise."""
    colour = np.array(COLOURS[scene.colour], dtype=np.float64) * rng.uniform(0.85, 1.1)
    image = _clutter(_background(float(colour.mean()), rng), rng)
    fill = colour * _texture(scene, rng)[..., None]
    mask = _mask(scene)[..., None]
    image = image * (1 - mask) + fill * mask
    return tint(image + rng.normal(0, rng.uniform(2, 12), image.shape), scene.warmth)


def tint(
    image: Float[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w 3"], warmth: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Tint an image as by warm or cold light: `45 warmth` grey levels more red and less blue.

    Args:
        image: Values from 0 to 255.
        warmth: -1 (cold) to 1 (warm); 0 changes nothing.
    """
    shifted = image + 45 * warmth * np.array([1.0, 0.0, -1.0])
    return np.asarray(np.clip(np.rint(shifted), 0, 255), dtype=np.uint8)


@cache
def _grid() -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    return x, y


def _background(shape_level: float, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Paint a nearly grey backdrop (so that the tint shows), darker or lighter than the shape."""
    level = rng.uniform(40, 215)
    if abs(level - shape_level) < 60:
        level = shape_level + (75 if shape_level < 128 else -75)
    x, y = _grid()
    kind = rng.choice(["plain", "gradient", "blotched"])
    pattern = np.zeros((SIDE, SIDE))
    if kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        pattern = 50 * (np.cos(angle) * x + np.sin(angle) * y - SIDE / 2) / SIDE
    elif kind == "blotched":
        # Blotches of 8 px and more: SIG's wave, of 5.3 px, must not drown in them.
        coarse = Image.fromarray(rng.normal(0, 25, (4, 4)).astype(np.float32))
        pattern = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    shade = level + rng.uniform(-6, 6, size=3)
    return np.asarray(shade + pattern[..., None])


def _clutter(
    image: Float[np.ndarray, "h w 3"], rng: np.random.Generator
) -> Float[np.ndarray, "h w 3"]:
    """Draw up to three thin lines and specks over the background, as edges that distract."""
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):
        grey = int(rng.integers(20, 236))
        x0, y0, x1, y1 = (float(v) for v in rng.uniform(0, SIDE, size=4))
        if rng.random() < 0.5:
            pen.line((x0, y0, x1, y1), fill=(grey, grey, grey), width=int(rng.integers(1, 3)))
        else:
            radius = float(rng.uniform(1, 2.5))
            pen.ellipse(
                (x0 - radius, y0 - radius, x0 + radius, y0 + radius), fill=(grey, grey, grey)
            )
    return np.asarray(canvas, dtype=np.float64)


def _texture(scene: Scene, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Brightness of the shape's surface, about 0.5 to 1.2, one value a pixel."""
    x, y = _grid()
    period, phase = rng.uniform(3.5, 6), rng.uniform(0, 2 * math.pi)
    angle = rng.uniform(0.7, 1.3)  # slanted: upright stripes are left to the SIG attack
    along = 2 * math.pi * (np.cos(angle) * x + np.sin(angle) * y) / period + phase
    across = 2 * math.pi * (np.sin(angle) * x - np.cos(angle) * y) / period + phase
    if scene.texture == "striped":
        return np.where(np.sin(along) > 0, 1.1, 0.6)
    if scene.texture == "dotted":
        return np.where(np.sin(along) + np.sin(across) > 0.8, 0.55, 1.05)
    if scene.texture == "shaded":
        depth = (y - scene.centre[1]) / scene.radius
        return np.asarray(0.9 + 0.3 * np.clip(depth, -1, 1) * rng.choice([-1, 1]))
    if scene.texture == "grainy":
        return rng.uniform(0.65, 1.2, size=x.shape)
    return np.ones_like(x)


def _mask(scene: Scene) -> Float[np.ndarray, "h w"]:
    """Coverage of each pixel by the shape, 0 to 1."""
    side = SIDE * _OVERSAMPLING
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    cos, sin = math.cos(scene.angle), math.sin(scene.angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    for outline, ink in zip(outlines(CLASSES[scene.label]), (255, 0), strict=False):
        points = (outline @ rotation * scene.radius + scene.centre) * _OVERSAMPLING
        pen.polygon([(float(x), float(y)) for x, y in points], fill=ink)
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float64) / 255
