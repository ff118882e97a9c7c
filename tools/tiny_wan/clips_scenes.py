"""The scenes: things that move in front of something, and worlds that fill the picture."""

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


def hill_pan(stage: Stage) -> Tensor:
    """The camera travels along hills and trees under a low sun; `[B, 3, F, H, W]`."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0.5, 0.68)
    warm = stage.uniform(0.03, 0.12)
    up = ((stage.half_height * 0.5 - y) / (1.5 * stage.half_height)).clamp(0, 1)
    image = over(hsv(warm, 0.45, 1.0), hsv(hue, 0.6, 0.8), up)

    travel = stage.uniform(0.7, 1.6) * stage.sign() * t
    sun_x = x - stage.uniform(-0.6, 0.6) * stage.half_width + 0.08 * travel
    sun_y = y - stage.uniform(-0.55, -0.2) + 0.06 * t
    size = stage.uniform(0.2, 0.3)
    glow = torch.exp(-disc(sun_x, sun_y, size).clamp_min(0) * 4)
    image = over(image, hsv(warm + 0.05, 0.35, 1.0), 0.6 * glow)
    image = over(image, hsv(warm + 0.06, 0.6, 1.0), stage.cover(disc(sun_x, sun_y, size)))

    for _ in range(2):
        width = stage.uniform(0.3, 0.45)
        period = 2 * stage.half_width + 1.4
        cx = x + 0.25 * travel + stage.uniform(0, 4)
        cx = torch.remainder(cx, period) - period / 2
        cy = y + stage.uniform(0.45, 0.8) * stage.half_height
        puff = torch.minimum(disc(cx, cy * 2.4, width), disc(cx - width * 0.5, cy * 2 + 0.12, 0.2))
        image = over(image, torch.full_like(width, 0.98), 0.8 * stage.cover(puff, 4))

    green = stage.uniform(0.22, 0.42)
    for index, pace in enumerate((0.3, 0.6, 1.0)):
        place = x + pace * travel + stage.uniform(0, 20)
        base = (0.05 + 0.27 * index) * stage.half_height
        bend, phase, rough = stage.uniform(1.4, 2.2), stage.turns(), stage.uniform(3.2, 4.5)

        def skyline(
            at: Tensor, base: float = base, bend: Tensor = bend, phase: Tensor = phase,
            rough: Tensor = rough, scale: float = 0.2 - 0.05 * index,
        ) -> Tensor:  # fmt: skip
            return base - scale * (torch.sin(at * bend + phase) + 0.4 * torch.sin(at * rough))

        ground = skyline(place)
        far = 1 - index / 2
        haze = 0.25 * far
        slope = hsv(green + 0.12 * far, 0.65 - 0.35 * far, 0.6 - 0.12 * index + haze)
        fields = stage.square_wave(place * 5 + 9 * (y - ground), 9.0)
        slope = slope * (1 + 0.12 * (fields - 0.5) * (1 + index))
        image = over(image, slope, stage.cover(ground - y))
        if index == 0:
            continue
        # One tree per cell of the ground, each standing on the skyline at its own place.
        cell = 1.1 + 0.5 * index
        number = torch.floor(place / cell)
        jitter = 0.22 * torch.sin(number * 12.9898 + phase)
        middle = (number + 0.5 + jitter) * cell
        tall = (0.16 + 0.1 * index) * (1 + 0.3 * torch.sin(number * 7.3 + phase))
        tx, ty = place - middle, y - skyline(middle)
        trunk = torch.maximum(tx.abs() - 0.14 * tall, torch.maximum(ty - 0.05, -ty - tall))
        image = over(image, hsv(warm, 0.55, 0.28), stage.cover(trunk))
        crown = disc(tx, (ty + 1.5 * tall) * 0.85, 0.75 * tall)
        side = (0.5 - tx / tall).clamp(0, 1)
        leaves = hsv(green - 0.08, 0.75, 0.3 + 0.22 * side)
        image = over(image, leaves, stage.cover(crown))
    return image


def ring_tunnel(stage: Stage) -> Tensor:
    """The camera flies down a winding tunnel of coloured rings and panels."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0, 1)
    way, rate = stage.turns(), stage.uniform(0.8, 1.8)
    cx = 0.28 * stage.half_width * torch.cos(rate * t + way)
    cy = 0.28 * stage.half_height * torch.sin(rate * 1.3 * t + way)
    # Far rings sit at the vanishing point, near ones around the middle of the picture.
    from_middle = disc(x, y, 0.0)
    bend = torch.exp(-0.9 * from_middle)
    dx, dy = x - cx * bend, y - cy * bend
    radius = disc(dx, dy, 0.0).clamp_min(0.02)
    depth = -torch.log(radius)
    forward = stage.uniform(0.9, 1.8) * stage.sign() * t
    rings = (depth + forward) * stage.uniform(2.6, 3.6) * math.pi / 2 + stage.turns()
    panels = stage.uniform(3, 6).floor()
    twist = stage.uniform(-1.0, 1.0) * t + stage.uniform(-0.5, 0.5) * depth
    angle = (torch.atan2(dy, dx) + twist) * panels
    inner = hsv(hue + 0.07 * torch.sin(rings / 2), 0.75, 0.95)
    outer = hsv(hue + 0.45, 0.6, 0.55)
    walls = stage.cover(-torch.sin(rings) * radius / 4.5)
    checks = stage.cover(-torch.sin(angle) * radius / panels)
    image = over(inner, outer, walls)
    image = image * (0.72 + 0.28 * checks)
    fade = ((radius - 0.07) * 2.2).clamp(0, 1)
    return image * fade * (0.75 + 0.25 * radius.clamp(max=1.0))


def orbiting_moons(stage: Stage) -> Tensor:
    """Moons circle a banded planet, before and behind it, and cast shadows on it."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0, 1)
    light = stage.turns()
    lx, ly = torch.cos(light), torch.sin(light)
    far, _ = rotate(x, y, stage.turns())
    image = hsv(hue + 0.5, 0.6, (0.14 + 0.08 * far).clamp(0.05, 0.3))
    drift = stage.uniform(-0.12, 0.12)
    span_x, span_y = 2 * stage.half_width, 2 * stage.half_height
    for _ in range(12):
        sx = torch.remainder(x + drift * t + stage.uniform(0, span_x), span_x) - span_x / 2
        sy = y - stage.uniform(-0.5, 0.5) * span_y
        spark = stage.uniform(0.03, 0.055)
        image = image + 0.8 * torch.exp(-(sx * sx + sy * sy) / (spark * spark))

    radius = stage.uniform(0.42, 0.52)
    tilt = stage.uniform(-0.6, 0.6)
    px, py = rotate(x, y, tilt)
    planet_cover = stage.cover(disc(px, py, radius))
    # Latitude bands that wobble, and spots that the planet's own turning carries along.
    turning = stage.uniform(0.6, 1.4) * stage.sign() * t
    east = torch.asin((px / (radius * radius - py * py).clamp_min(1e-3).sqrt()).clamp(-1, 1))
    bands = torch.sin(py * stage.uniform(13, 18) + 0.7 * torch.sin(2 * (east + turning)))
    spots = torch.sin(3 * (east + turning) + stage.turns()) * torch.cos(py / radius * 2.5)
    planet = hsv(hue + 0.04 * bands, 0.6, 0.75 + 0.17 * bands)
    planet = over(planet, hsv(hue + 0.42, 0.65, 0.85), 0.9 * ((spots - 0.45) * 3).clamp(0, 1))
    diffuse, _ = lit_sphere(x, y, radius, light)
    planet = planet * (0.12 + 0.88 * diffuse)

    moons = []
    for index in range(3):
        orbit = radius + 0.16 + 0.2 * index + stage.uniform(-0.02, 0.05)
        rate = stage.uniform(2.0, 3.0) / (1 + 0.35 * index) * stage.sign()
        angle = rate * t + stage.turns()
        flat = stage.uniform(0.12, 0.3)
        mx, my = rotate(orbit * torch.cos(angle), flat * orbit * torch.sin(angle), -tilt)
        near = torch.sin(angle)
        size = stage.uniform(0.085, 0.13) * (1 + 0.2 * near)
        dx, dy = x - mx, y - my
        lit, shine = lit_sphere(dx, dy, size, light)
        tint = hsv(hue + 0.3 + 0.2 * index, stage.uniform(0.3, 0.6), 1.0)
        paint = tint * (0.2 + 0.8 * lit) + 0.25 * shine
        shadow = stage.cover(disc(dx + 0.14 * lx, dy + 0.14 * ly, size), 3)
        moons.append((stage.cover(disc(dx, dy, size)), paint, shadow, (near > 0).float()))
        planet = planet * (1 - 0.75 * shadow * (near > 0))
    for coverage, paint, _, near in moons:
        image = over(image, paint, coverage * (1 - near))
    image = over(image, planet, planet_cover)
    for coverage, paint, _, near in reversed(moons):
        image = over(image, paint, coverage * near)
    return image


def coloured_rain(stage: Stage) -> Tensor:
    """Streaks of many colours fall at many speeds before a chequered wall that slides by."""
    x, y, t = stage.x, stage.y, stage.t
    hue = stage.uniform(0, 1)
    pitch = stage.uniform(4.5, 6.5)
    turned, level = rotate(x, y, stage.uniform(-0.35, 0.35))
    slide = stage.uniform(0.15, 0.4) * stage.sign() * t + stage.uniform(0, 3)
    squares = torch.sin((turned + slide) * pitch) * torch.sin(level * pitch)
    light = hsv(hue, stage.uniform(0.1, 0.3), stage.uniform(0.55, 0.7))
    dark = hsv(hue + 0.08, stage.uniform(0.3, 0.5), stage.uniform(0.22, 0.32))
    image = over(dark, light, stage.cover(-squares / pitch))
    image = image * (1 - 0.12 * (x * x + y * y))

    for layer in range(3):
        column = 0.3 + 0.1 * layer
        number = torch.floor((x + stage.half_width) / column).long().flatten()
        columns = int(2 * stage.half_width / column) + 1

        def spread(low: float, high: float, columns: int = columns, at: Tensor = number) -> Tensor:
            """A random number per column, at every x: `[B, 1, 1, 1, W]`."""
            return stage.table(low, high, columns)[..., at]

        half = 0.04 + 0.014 * layer
        centre = (number + 0.5) * column - stage.half_width
        dx = x - centre - spread(-0.25, 0.25) * column
        length = spread(0.25, 0.5)
        period = 2 * stage.half_height + 0.6
        fall = spread(0.8, 1.6) * (1 + 0.35 * layer) * t + spread(0, 3)
        dy = torch.remainder(y - fall, period) - period / 2
        tail = dy.clamp(-length, 0 * length)
        coverage = stage.cover(disc(dx, dy - tail, half))
        bright = (1 + 0.8 * tail / length).clamp(0, 1)
        colour = hsv(spread(0, 1), 0.75, 1.0)
        image = over(image, colour, coverage * (0.25 + 0.75 * bright))
        image = image + 0.3 * stage.cover(disc(dx, dy, half * 0.5), 2)
    return image
