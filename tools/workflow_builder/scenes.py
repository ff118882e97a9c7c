"""Small landscapes for the thumbnails, drawn from scratch with Pillow.

A scene is a function of the frame size and of time (0 to 1), so that the frames of one thumbnail
show motion.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Place = tuple[float, float, float]
"""x and y in pixels, and the size in pixels that a figure drawn there has."""


def render(kind: str, width: int, height: int, time: float) -> Image.Image:
    """The scene called `kind` as an RGB picture of `width` x `height` at `time` in 0..1."""
    return SCENES[kind](width, height, time)


def sky(width: int, height: int, top: Color, bottom: Color) -> Image.Image:
    """A vertical gradient, RGB, `width` x `height`."""
    column = Image.new("RGB", (1, height))
    for y in range(height):
        share = y / max(1, height - 1)
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
        column.putpixel((0, y), (red, green, blue))
    return column.resize((width, height))


def _ridge(
    draw: ImageDraw.ImageDraw,
    base: float,
    rise: float,
    color: Color,
    *,
    seed: int,
    peaks: int = 5,
    drift: float = 0.0,
) -> None:
    """A jagged mountain line: `base` and `rise` are shares of the height, `drift` of the width."""
    width, height = draw.im.size
    rng = random.Random(seed)
    points: list[tuple[float, float]] = [(-width, height)]
    for i in range(-peaks, 2 * peaks + 1):
        top = rng.uniform(0.45, 1.0) * rise if i % 2 else rng.uniform(0.0, 0.3) * rise
        points.append(((i / peaks - drift) * width, height * (base - top)))
    draw.polygon([*points, (2 * width, height)], fill=color)


def _hills(
    draw: ImageDraw.ImageDraw, width: int, base: float, rise: float, color: Color, *, phase: float
) -> None:
    """Rolling ground over the first `width` pixels."""
    height = draw.im.size[1]
    points = [
        (x, height * (base - rise * math.sin(2.2 * math.pi * x / width + phase)))
        for x in range(0, width + 8, 8)
    ]
    draw.polygon([(0, height), *points, (width, height)], fill=color)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _cloud(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, color: Color) -> None:
    puffs = ((-0.9, 0.1, 0.45), (-0.3, -0.2, 0.6), (0.4, -0.1, 0.5), (0.9, 0.15, 0.38))
    for dx, dy, radius in puffs:
        _disc(draw, x + dx * size, y + dy * size, radius * size, color)


def _shape(
    draw: ImageDraw.ImageDraw, at: Place, points: list[tuple[float, float]], color: Color
) -> None:
    """A polygon whose points are given relative to a place and in units of its size."""
    x, y, size = at
    draw.polygon([(x + dx * size, y + dy * size) for dx, dy in points], fill=color)


def _stroke(
    draw: ImageDraw.ImageDraw,
    at: Place,
    points: list[tuple[float, float]],
    color: Color,
    thickness: float,
) -> None:
    """A line through points relative to a place; `thickness` is in units of its size too."""
    x, y, size = at
    draw.line(
        [(x + dx * size, y + dy * size) for dx, dy in points],
        fill=color,
        width=max(2, int(thickness * size)),
        joint="curve",
    )


def _winter(width: int, height: int, time: float) -> Image.Image:
    picture = sky(width, height, (92, 142, 196), (226, 236, 246))
    draw = ImageDraw.Draw(picture)
    _ridge(draw, 0.66, 0.42, (150, 176, 208), seed=3, drift=0.03 * time)
    _ridge(draw, 0.74, 0.26, (196, 212, 230), seed=8, peaks=7, drift=0.08 * time)
    draw.rectangle((0, height * 0.72, width, height), fill=(240, 245, 250))
    for i in range(9):
        place = ((i / 7.5 - 0.25 * time) * width, height * (0.76 + 0.03 * (i % 3)), height * 0.24)
        for level in range(3):
            half, low = 0.42 - 0.1 * level, -0.28 * level
            _shape(draw, place, [(-half, low), (half, low), (0, low - 0.45)], (46, 84, 92))
    # A running fox: legs that open and close, tail with a white tip, body, ear, head.
    fox = (width * (0.18 + 0.55 * time), height * 0.86, height * 0.15)
    stride = 0.35 * math.sin(time * 9)
    for leg, swing in ((-0.5, stride), (-0.3, -stride), (0.4, stride), (0.6, -stride)):
        _stroke(draw, fox, [(leg, 0), (leg + swing, 0.6)], (92, 48, 30), 0.16)
    _shape(draw, fox, [(-0.6, -0.1), (-1.7, -0.55), (-1.5, 0.05)], (250, 240, 228))
    _shape(draw, fox, [(-0.5, -0.25), (-1.45, -0.5), (-1.2, 0.1)], (222, 108, 44))
    x, y, s = fox
    draw.ellipse((x - 0.8 * s, y - 0.4 * s, x + 0.9 * s, y + 0.25 * s), fill=(222, 108, 44))
    _shape(draw, fox, [(0.6, -0.3), (0.75, -1.0), (1.05, -0.5)], (200, 88, 32))
    _shape(draw, fox, [(0.6, -0.6), (1.15, -0.55), (1.65, -0.12), (0.8, 0.05)], (232, 120, 52))
    return picture


def _meadow(width: int, height: int, time: float) -> Image.Image:
    picture = sky(width, height, (70, 140, 235), (180, 220, 250))
    draw = ImageDraw.Draw(picture)
    _cloud(draw, width * (0.2 + 0.12 * time), height * 0.2, height * 0.13, (255, 255, 255))
    _cloud(draw, width * (0.7 + 0.1 * time), height * 0.14, height * 0.1, (245, 250, 255))
    _hills(draw, width, 0.72, 0.07, (124, 200, 96), phase=0.4)
    _hills(draw, width, 0.84, 0.06, (84, 170, 80), phase=2.2)
    # A child, a line, a kite and its tail.
    size = height * 0.16
    hand = (width * 0.22, height * 0.80, size)
    kite = (width * (0.42 + 0.3 * time), height * (0.42 - 0.16 * math.sin(3 * time)), size)
    draw.line((*hand[:2], kite[0], kite[1] + size), fill=(250, 250, 250), width=int(size * 0.05))
    red, yellow = (236, 84, 84), (255, 196, 76)
    _shape(draw, kite, [(0, -1), (0.7, 0), (0, 1.1), (-0.7, 0)], red)
    _shape(draw, kite, [(0, -1), (0.7, 0), (0, 0)], yellow)
    _shape(draw, kite, [(0, 1.1), (-0.7, 0), (0, 0)], yellow)
    tail = [(0.25 * math.sin(k * 0.9 + 6 * time), 1.1 + 0.16 * k) for k in range(8)]
    _stroke(draw, kite, tail, red, 0.09)
    _disc(draw, hand[0] - 0.15 * size, hand[1] - 0.15 * size, 0.2 * size, (250, 224, 200))
    _shape(draw, hand, [(-0.15, 0), (0.25, 0.9), (-0.55, 0.9)], (240, 120, 170))
    return picture


def _dusk(width: int, height: int, time: float) -> Image.Image:
    picture = sky(width, height, (58, 34, 98), (250, 138, 92))
    draw = ImageDraw.Draw(picture)
    _disc(draw, width * 0.62, height * (0.5 + 0.16 * time), height * 0.15, (255, 216, 140))
    _ridge(draw, 0.70, 0.22, (110, 58, 110), seed=14, peaks=6, drift=0.04 * time)
    draw.rectangle((0, height * 0.68, width, height), fill=(66, 44, 96))
    rng = random.Random(5)
    for _ in range(26):  # light on the water, strongest below the sun
        y = rng.uniform(0.7, 0.98)
        x = rng.uniform(0.0, 1.0) + 0.05 * math.sin(6 * time + 9 * y)
        length = 0.05 + 0.09 * rng.random()
        glow = 1 - min(1.0, abs(x - 0.62) * 2.2)
        color = (int(90 + 165 * glow), int(60 + 110 * glow), int(116 - 10 * glow))
        ends = (x * width, y * height, (x + length) * width, y * height)
        draw.line(ends, fill=color, width=max(2, height // 90))
    # A lighthouse with a turning beam.
    tower = (width * 0.2, height * 0.3, height * 0.05)
    x, top, half = tower
    beam = Image.new("L", picture.size, 0)
    angle, reach = -0.5 + 1.1 * time, width * 0.9
    edges = [
        (x + reach * math.cos(angle + side), top + reach * math.sin(angle + side))
        for side in (-0.09, 0.09)
    ]
    ImageDraw.Draw(beam).polygon([(x, top), *edges], fill=110)
    picture.paste((255, 240, 200), mask=beam)
    tall = 9.6
    for start, end, color in (
        (0.0, 1.0, (240, 232, 232)),
        (0.2, 0.37, (206, 66, 76)),
        (0.55, 0.72, (206, 66, 76)),
    ):
        upper, lower = 1 + 0.7 * start, 1 + 0.7 * end
        corners = [(-upper, tall * start), (upper, tall * start)]
        corners += [(lower, tall * end), (-lower, tall * end)]
        _shape(draw, tower, corners, color)
    _disc(draw, x, top - half * 0.5, half * 0.9, (255, 244, 190))
    _hills(draw, width // 2, 0.86, 0.08, (36, 26, 58), phase=0.6)
    return picture


def _skyline(
    draw: ImageDraw.ImageDraw,
    base: float,
    rise: float,
    color: Color,
    window: Color | None,
    *,
    seed: int,
    drift: float,
) -> None:
    """A row of houses up to `rise` above `base`, some windows lit in the color `window`."""
    width, height = draw.im.size
    rng = random.Random(seed)
    x = -0.3 - drift
    while x < 1.1:
        wide = rng.uniform(0.07, 0.13)
        top = base - rise * rng.uniform(0.35, 1.0)
        draw.rectangle((x * width, top * height, (x + wide) * width, base * height), fill=color)
        for row in range(int((base - top) / 0.055)):
            for column in range(3):
                if window and rng.random() < 0.5:
                    left = (x + wide * (0.16 + 0.27 * column)) * width
                    upper = (top + 0.025 + 0.055 * row) * height
                    right, lower = left + wide * width * 0.15, upper + height * 0.026
                    draw.rectangle((left, upper, right, lower), fill=window)
        x += wide + rng.uniform(0.0, 0.02)


def _city(width: int, height: int, time: float) -> Image.Image:
    picture = sky(width, height, (38, 54, 122), (150, 146, 206))
    draw = ImageDraw.Draw(picture)
    _disc(draw, width * 0.78, height * 0.22, height * 0.11, (246, 240, 214))
    _skyline(draw, 0.86, 0.55, (74, 86, 150), None, seed=4, drift=0.05 * time)
    _skyline(draw, 0.90, 0.42, (42, 50, 98), (255, 214, 120), seed=9, drift=0.14 * time)
    draw.rectangle((0, height * 0.86, width, height), fill=(16, 18, 34))
    for i in range(5):
        x = ((i * 0.27 + 0.6 * time) % 1.25 - 0.1) * width
        car = (x, height * 0.895, x + width * 0.1, height * 0.94)
        draw.rounded_rectangle(car, height // 60, fill=(196, 60, 76) if i % 2 else (64, 150, 210))
        _disc(draw, car[2], height * 0.925, height * 0.012, (255, 246, 200))
    return picture


def _station(width: int, height: int, time: float) -> Image.Image:
    picture = sky(width, height, (84, 104, 104), (170, 180, 150))
    draw = ImageDraw.Draw(picture)
    for i in range(6):  # arches of the tunnel, from far to near
        share = 0.25 + 0.17 * i
        half, top = width * share * 0.62, height * (0.5 - share * 0.48)
        shade = 110 + 18 * i
        box = (width / 2 - half, top, width / 2 + half, top + height * share * 1.3)
        thickness = max(3, int(height * 0.012 * (i + 1)))
        draw.arc(box, 180, 360, fill=(shade, shade + 10, shade - 4), width=thickness)
    ratio = height / width
    floor = [(0.42, 0.58), (0.58, 0.58), (1.05, 1), (-0.05, 1)]
    edge = [(0.58, 0.58), (0.62, 0.58), (1.3, 1), (1.05, 1)]
    _shape(draw, (0, 0, width), [(x, y * ratio) for x, y in floor], (112, 104, 98))
    _shape(draw, (0, 0, width), [(x, y * ratio) for x, y in edge], (226, 190, 80))
    # The train grows as it comes in on the right.
    x, y, s = width * (0.66 + 0.06 * time), height * 0.52, height * 0.34 * (0.3 + 0.5 * time)
    body = (x - 0.6 * s, y - 0.9 * s, x + 0.6 * s, y + 0.7 * s)
    draw.rounded_rectangle(body, s * 0.2, fill=(52, 110, 136))
    pane = (x - 0.45 * s, y - 0.7 * s, x + 0.45 * s, y - 0.1 * s)
    draw.rounded_rectangle(pane, s * 0.1, fill=(206, 228, 230))
    for side in (-0.38, 0.38):
        _disc(draw, x + side * s, y + 0.35 * s, 0.12 * s, (255, 244, 180))
    # The musician stands on the left: legs, jacket, head, the guitar's neck, body and hole.
    man = (width * 0.26, height * 0.78, height * 0.2)
    x, y, s = man
    tilt = 0.08 * math.sin(8 * time)
    for hip, foot in ((-0.2, -0.3), (0.2, 0.25)):
        _stroke(draw, man, [(hip, 0), (foot, 1.0)], (38, 42, 60), 0.22)
    jacket = (x - 0.4 * s, y - 1.0 * s, x + 0.4 * s, y + 0.15 * s)
    draw.rounded_rectangle(jacket, s * 0.18, fill=(150, 82, 52))
    _disc(draw, x + tilt * s, y - 1.3 * s, 0.3 * s, (232, 190, 158))
    _stroke(draw, man, [(-0.1, -0.3), (0.95, -0.7 - tilt)], (90, 54, 30), 0.1)
    _disc(draw, x - 0.05 * s, y - 0.3 * s, 0.34 * s, (214, 150, 76))
    _disc(draw, x - 0.02 * s, y - 0.32 * s, 0.1 * s, (70, 40, 24))
    return picture


def _alps(width: int, height: int, time: float) -> Image.Image:
    picture = sky(width, height, (60, 126, 206), (252, 222, 190))
    draw = ImageDraw.Draw(picture)
    _disc(draw, width * (0.22 + 0.1 * time), height * 0.28, height * 0.1, (255, 244, 206))
    _ridge(draw, 0.62, 0.46, (120, 134, 178), seed=21, drift=0.02 * time)
    _ridge(draw, 0.66, 0.26, (78, 98, 142), seed=30, peaks=6, drift=0.06 * time)
    draw.rectangle((0, height * 0.64, width, height), fill=(74, 140, 176))
    for i in range(9):  # waves
        x, y = width * ((i * 0.37 + 0.25 * time) % 0.9), height * (0.68 + 0.033 * i)
        ends = (x, y, x + width * 0.16, y)
        draw.line(ends, fill=(150, 200, 220), width=max(2, height // 110))
    boat = (width * (0.3 + 0.36 * time), height * 0.8, height * 0.2)
    _shape(draw, boat, [(0, -1.3), (0.75, -0.1), (0, -0.1)], (255, 252, 244))
    _shape(draw, boat, [(-0.08, -1.1), (-0.5, -0.1), (-0.08, -0.1)], (238, 92, 84))
    _shape(draw, boat, [(-0.75, 0), (0.85, 0), (0.55, 0.28), (-0.5, 0.28)], (110, 60, 44))
    return picture


def _harbour(width: int, height: int, time: float) -> Image.Image:
    picture = sky(width, height, (246, 178, 120), (252, 230, 196))
    draw = ImageDraw.Draw(picture)
    _skyline(draw, 1.0, 0.80, (216, 150, 120), None, seed=31, drift=0.04 * time)
    _skyline(draw, 1.0, 0.55, (150, 92, 98), (255, 220, 150), seed=17, drift=0.12 * time)
    # A paper plane that glides between the buildings, and its trail.
    height_share = 0.28 + 0.22 * math.sin(2.6 * time)
    plane = (width * (0.2 + 0.5 * time), height * height_share, height * 0.24)
    for k in range(0, 6, 2):
        trail = [(-0.9 - 0.22 * step, 0.3 + 0.015 * step * step) for step in (k, k + 1)]
        _stroke(draw, plane, trail, (255, 255, 255), 0.03)
    _shape(draw, plane, [(1, -0.2), (-0.9, -0.35), (-0.25, 0.1)], (255, 255, 255))
    _shape(draw, plane, [(1, -0.2), (-0.25, 0.1), (-0.3, 0.55)], (206, 214, 226))
    _shape(draw, plane, [(1, -0.2), (-0.3, 0.55), (-0.02, 0.2)], (236, 240, 246))
    return picture


SCENES: dict[str, Callable[[int, int, float], Image.Image]] = {
    "winter": _winter,
    "meadow": _meadow,
    "dusk": _dusk,
    "city": _city,
    "station": _station,
    "alps": _alps,
    "harbour": _harbour,
}
