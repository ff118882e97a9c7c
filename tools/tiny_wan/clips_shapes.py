"""Scenes of things that move in front of something: balls, a tile, crossing shapes, pendulums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .clips_draw import (
    Stage,
    back_and_forth,
    box,
    disc,
    hsv,
    lit_sphere,
    over,
    rotate,
    segment,
    star,
)


def bouncing_balls(stage: Stage) -> Tensor:
    """Three beach balls bounce, roll and overlap on a chequered floor; `[B, 3, F, H, W]`."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0, 1)
    horizon = stage.uniform(-0.25, 0.0) * stage.half_height
    wall = hsv(hue + 0.55, stage.uniform(0.2, 0.5), 0.9 + 0.25 * (y - horizon))
    pan = stage.t * stage.uniform(0.1, 0.45) * stage.sign() + stage.uniform(-1, 1)

    below = (y - horizon).clamp_min(0.02)
    depth, frequency = 1 / below, 2.2
    across = torch.sin((x + pan) * depth * frequency)
    squares = across * torch.sin(depth * 5)
    # Squares get smaller than pixels towards the horizon; there the floor is one colour.
    contrast = ((y - horizon - 0.12) * 3).clamp(0, 1)
    tint = 0.5 + contrast * (squares * below * 12).clamp(-0.5, 0.5)
    floor = hsv(hue + 0.08, 0.45, 0.32 + 0.5 * tint)
    image = over(wall, floor, stage.cover(horizon - y))

    light = stage.uniform(-2.4, -0.8)
    for index, part in enumerate((0.42, 0.66, 0.92)):
        ground = horizon + part * (stage.half_height - horizon)
        radius = stage.uniform(0.17, 0.21) * (1 + 0.35 * index)
        reach = (stage.half_width - radius).clamp_min(0.1)
        speed = stage.uniform(0.5, 1.3) * stage.sign()
        bx = back_and_forth(speed * t + stage.uniform(-2, 2), reach)
        bounce = torch.remainder(t / stage.uniform(0.7, 1.1) + stage.uniform(0, 1), 1)
        jump = 4 * bounce * (1 - bounce)
        by = ground - radius - jump * stage.uniform(0.4, 0.8)
        shade = stage.cover(disc(x - bx, (y - ground) * 3.2, radius * (1 - 0.35 * jump)), 6)
        image = image * (1 - 0.55 * (1 - 0.5 * jump) * shade)
        dx, dy = x - bx, y - by
        angle = torch.atan2(dy, dx) - bx / radius
        sectors = stage.square_wave(angle * 3, 3 / radius.clamp_min(0.05))
        ball_hue = hue + 0.25 + 0.27 * index + stage.uniform(-0.06, 0.06)
        paint = over(hsv(ball_hue, 0.85, 0.98), torch.ones_like(ball_hue), 0.85 * sectors)
        diffuse, shine = lit_sphere(dx, dy, radius, light)
        ball = paint * (0.35 + 0.65 * diffuse) + 0.35 * shine
        image = over(image, ball, stage.cover(disc(dx, dy, radius)))
    return image


def spinning_tile(stage: Stage) -> Tensor:
    """A square tile with a pattern turns and swells above drifting clouds of colour."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0, 1)
    waves = torch.zeros_like(hue)
    for _ in range(3):
        turned, _ = rotate(x, y, stage.turns())
        waves = waves + torch.sin(turned * stage.uniform(2, 5) + stage.turns() + 2.5 * t)
    image = hsv(hue + 0.03 * waves, 0.55, 0.42 + 0.1 * waves)

    spin = stage.uniform(0.6, 1.8) * stage.sign() * t + stage.turns()
    size = stage.uniform(0.48, 0.62) * (1 + 0.18 * torch.sin(stage.uniform(1.5, 3) * t))
    path = stage.turns() + stage.uniform(1.0, 2.2) * stage.sign() * t
    cx = torch.cos(path) * stage.uniform(0.1, 0.6) * stage.half_width
    cy = torch.sin(path) * stage.uniform(0.1, 0.35) * stage.half_height
    su, sv = rotate(x - cx - 0.12, y - cy - 0.16, spin)
    image = image * (1 - 0.5 * stage.cover(box(su, sv, size, size), 7))

    u, v = rotate(x - cx, y - cy, spin)
    cells = math.pi * 2 / size
    squares = stage.cover(-torch.sin(u * cells) * torch.sin(v * cells) / cells)
    first = hsv(hue + stage.uniform(0.35, 0.5), 0.8, 0.95)
    second = hsv(hue + stage.uniform(0.5, 0.65), 0.35, stage.uniform(0.25, 0.4))
    tile = over(first, second, squares)
    dot = hsv(hue + 0.15, 0.75, 1.0)
    tile = over(tile, dot, stage.cover(disc(u - size * 0.5, v - size * 0.5, size * 0.3)))
    tile = over(tile, dot, stage.cover(disc(u, v, size * 0.36)))
    tile = over(tile, second * 0.5, stage.cover(disc(u, v, size * 0.17)))
    edge = box(u, v, size, size)
    frame = torch.full_like(size, 0.97)
    image = over(image, frame, stage.cover(edge))
    return over(image, tile, stage.cover(edge + size * 0.12))


def crossing_shapes(stage: Stage) -> Tensor:
    """A striped disc and a star cross between pillars and hide one another."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0, 1)
    turned, _ = rotate(x, y, stage.turns())
    bands = stage.square_wave(turned * stage.uniform(4, 7) + stage.turns(), 5.0)
    image = hsv(hue, stage.uniform(0.25, 0.45), 0.62 + 0.2 * bands - 0.12 * y)

    swing = stage.uniform(1.6, 2.8)
    start = stage.turns()
    reach = 0.8 * stage.half_width
    dx = x - reach * torch.sin(swing * t + start)
    dy = y - stage.uniform(-0.25, 0.25) - 0.25 * torch.sin(stage.uniform(1, 3) * t)
    radius = stage.uniform(0.34, 0.46)
    spin = stage.uniform(0.8, 2.0) * stage.sign() * t + stage.turns()
    u, _ = rotate(dx, dy, spin)
    stripes = stage.square_wave(u * 2 * math.pi / radius, 2 * math.pi / radius)
    striped = over(hsv(hue + 0.33, 0.85, 0.95), hsv(hue + 0.33, 0.3, 0.3), stripes)

    sx = x + reach * torch.sin(swing * t + start + stage.uniform(-0.4, 0.4))
    sy = y - stage.uniform(-0.2, 0.2) + 0.2 * torch.sin(stage.uniform(1, 3) * t)
    su, sv = rotate(sx, sy, -spin)
    size = stage.uniform(0.44, 0.58)
    outline = star(su, sv, size, 5)
    heart = hsv(hue + 0.62, stage.uniform(0.75, 0.95), 1.0)
    starry = over(heart * 0.4, heart, stage.cover(outline + 0.05))

    disc_first = stage.uniform(0, 1) < 0.5
    layers = (stage.cover(disc(dx, dy, radius)), striped), (stage.cover(outline), starry)
    for step in (0, 1):
        coverage = torch.where(disc_first, layers[step][0], layers[1 - step][0])
        paint = torch.where(disc_first, layers[step][1], layers[1 - step][1])
        image = over(image, paint, coverage)

    half = stage.uniform(0.09, 0.13)
    stone = hsv(hue + 0.5, 0.2, stage.uniform(0.25, 0.45))
    pan = stage.uniform(-0.15, 0.15) * t
    for side in (-0.45, 0.45):
        px = x - side * stage.half_width - stage.uniform(-0.15, 0.15) - pan
        round_light = (1.25 - 0.8 * (px / half + 0.3).abs()).clamp(0.3, 1.25)
        image = image * (1 - 0.4 * stage.cover(px.abs() - half - 0.06, 5))
        image = over(image, stone * round_light, stage.cover(px.abs() - half))
    return image


def pendulums(stage: Stage) -> Tensor:
    """Two pendulums swing out of step and cast shadows on a wall of moving stripes."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0, 1)
    turned, _ = rotate(x, y, stage.uniform(-0.9, 0.9))
    drift = stage.uniform(1.5, 4.0) * stage.sign() * t + stage.turns()
    pitch = stage.uniform(5.5, 8.5)
    stripes = stage.square_wave(turned * pitch + drift, pitch)
    dark = hsv(hue, stage.uniform(0.3, 0.55), stage.uniform(0.4, 0.5))
    light = hsv(hue + 0.06, stage.uniform(0.15, 0.35), stage.uniform(0.75, 0.9))
    image = over(dark, light, stripes)

    top = -1.05 * stage.half_height
    for index, side in enumerate((-1, 1)):
        px = x - side * stage.uniform(0.05, 0.3) * stage.half_width
        py = y - top
        length = (1.15 + 0.3 * index) * stage.half_height + stage.uniform(-0.1, 0.1)
        # The rate of a small swing under a gravity that suits clips of two seconds.
        rate = 3.6 / length.sqrt() * stage.uniform(0.85, 1.15)
        angle = stage.uniform(0.45, 0.8) * torch.cos(rate * t + stage.turns())
        bx, by = length * torch.sin(angle), length * torch.cos(angle)
        radius = stage.uniform(0.2, 0.26)
        sx, sy = px - 0.12, py - 0.12
        shadow = torch.minimum(segment(sx, sy, bx, by, 0.03), disc(sx - bx, sy - by, radius))
        image = image * (1 - 0.5 * stage.cover(shadow, 5))
        rod = hsv(hue + 0.5, 0.25, stage.uniform(0.12, 0.25))
        image = over(image, rod, stage.cover(segment(px, py, bx, by, 0.03)))
        dx, dy = px - bx, py - by
        bob_hue = hue + 0.38 + 0.26 * index
        diffuse, shine = lit_sphere(dx, dy, radius, torch.full_like(hue, -2.2))
        rim = stage.cover(disc(dx, dy, radius * 0.5))
        paint = over(hsv(bob_hue, 0.9, 0.95), hsv(bob_hue + 0.1, 0.25, 1.0), rim)
        bob = paint * (0.35 + 0.65 * diffuse) + 0.3 * shine
        image = over(image, bob, stage.cover(disc(dx, dy, radius)))
    return image
