"""Drawing with distances: the stage that a clip is painted on, and the strokes scenes are made of.

Everything is a tensor that broadcasts to `[B, C, F, H, W]` (clips, colours, frames, rows, columns):
numbers of one clip are `[B, 1, 1, 1, 1]`, colours `[B, 3, 1, 1, 1]` in [0, 1], maps of one picture
`[B, 1, F, H, W]`. Lengths are in halves of the shorter side, x to the right and y down from the
centre; times are in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Slow enough for a code that sums up four frames in 16 numbers.
FRAMES_PER_SECOND = 24.0
# Half the width of an edge in pixels. Wider than anti-aliasing needs: a code of 16 numbers per
# 4 x 8 x 8 pixels cannot carry sharper edges, and ringing looks worse than softness.
EDGE_PIXELS = 1.5


@dataclass(frozen=True)
class Stage:
    """A batch of empty clips: coordinates, and the random numbers that tell the clips apart.

    Attributes:
        count: clips in the batch, B.
        x, y, t: coordinates of pixel centres and frames, `[1, 1, 1, 1, W]`, `[1, 1, 1, H, 1]` and
            `[1, 1, F, 1, 1]`, float32.
        half_width, half_height: the picture reaches from minus to plus these.
        pixel: the side of a pixel.
        generator: source of every random number; may live on another device than the pictures.
    """

    count: int
    x: Tensor
    y: Tensor
    t: Tensor
    half_width: float
    half_height: float
    pixel: float
    generator: torch.Generator

    @classmethod
    def empty(
        cls,
        count: int,
        frames: int,
        height: int,
        width: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> Stage:
        """A stage for `count` clips of `frames` x `height` x `width` on `device`."""
        pixel = 2.0 / min(height, width)

        def centred(size: int) -> Tensor:
            steps = torch.arange(size, device=device, dtype=torch.float32)
            return (steps - (size - 1) / 2) * pixel

        t = torch.arange(frames, device=device, dtype=torch.float32) / FRAMES_PER_SECOND
        return cls(
            count=count,
            x=centred(width).view(1, 1, 1, 1, width),
            y=centred(height).view(1, 1, 1, height, 1),
            t=t.view(1, 1, frames, 1, 1),
            half_width=width * pixel / 2,
            half_height=height * pixel / 2,
            pixel=pixel,
            generator=generator,
        )

    def uniform(self, low: float, high: float) -> Tensor:
        """One number per clip, `[B, 1, 1, 1, 1]`, evenly spread over [low, high)."""
        return self.table(low, high, 1)

    def table(self, low: float, high: float, columns: int) -> Tensor:
        """`columns` numbers per clip along the last axis, `[B, 1, 1, 1, columns]`."""
        drawn = torch.rand(
            (self.count, 1, 1, 1, columns), generator=self.generator, device=self.generator.device
        )
        return (low + (high - low) * drawn).to(self.x.device)

    def sign(self) -> Tensor:
        """Minus or plus one per clip, `[B, 1, 1, 1, 1]`."""
        return torch.where(self.uniform(0, 1) < 0.5, -1.0, 1.0)

    def turns(self) -> Tensor:
        """A random angle in radians per clip, `[B, 1, 1, 1, 1]`."""
        return self.uniform(0, 2 * math.pi)

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """Coverage in [0, 1] of a shape from signed distances, negative inside.

        `softness` widens the edge beyond the usual width, for shadows and glows.
        """
        half = EDGE_PIXELS * self.pixel * softness
        ramp = (0.5 - distance / (2 * half)).clamp(0, 1)
        return ramp * ramp * (3 - 2 * ramp)

    def square_wave(self, phase: Tensor, phase_per_unit: float | Tensor) -> Tensor:
        """Stripes in [0, 1], one period per 2 pi of `phase`, with edges as soft as those of shapes.

        `phase_per_unit` is how fast the phase grows with distance, a lower bound where it varies.
        """
        return self.cover(-torch.sin(phase) / phase_per_unit)


def hsv(hue: Tensor, saturation: Tensor | float, value: Tensor | float) -> Tensor:
    """Colours from hue (in turns), saturation and value, each `[B, 1, ...]`: `[B, 3, ...]`."""
    offsets = 5.0 - 2 * torch.arange(3, device=hue.device)  # made there: a copy would wait for it
    k = (offsets.view(1, 3, *[1] * (hue.dim() - 2)) + hue * 6) % 6
    return value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1))


def over(below: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    """Paint `colour` on the picture `below` where `coverage` is one; in between they mix."""
    return below + coverage * (colour - below)


def rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame that is turned by `angle` (radians)."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def disc(x: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to a disc around the origin."""
    return torch.sqrt(x * x + y * y) - radius


def box(x: Tensor, y: Tensor, half_x: Tensor | float, half_y: Tensor | float) -> Tensor:
    """Signed distance (beyond corners a lower bound) to a box around the origin."""
    return torch.maximum(x.abs() - half_x, y.abs() - half_y)


def star(x: Tensor, y: Tensor, radius: Tensor, points: int, inner: float = 0.5) -> Tensor:
    """Signed distance (beyond the points a lower bound) to a star around the origin, one point up.

    `inner` is the radius between two points as a part of `radius`.
    """
    half = math.pi / points
    turn = torch.remainder(torch.atan2(x, -y) + half, 2 * half) - half
    from_middle = torch.sqrt(x * x + y * y)
    u, v = from_middle * torch.cos(turn), from_middle * torch.sin(turn).abs()
    # The edge runs from the point at (1, 0) to the notch, in units of the radius.
    run, rise = inner * math.cos(half) - 1, inner * math.sin(half)
    return ((u - radius) * rise - v * run) / math.hypot(run, rise)


def segment(x: Tensor, y: Tensor, end_x: Tensor, end_y: Tensor, radius: float) -> Tensor:
    """Signed distance to a line with round ends from the origin to (`end_x`, `end_y`)."""
    along = (x * end_x + y * end_y) / (end_x * end_x + end_y * end_y)
    along = along.clamp(0, 1)
    return disc(x - along * end_x, y - along * end_y, radius)


def back_and_forth(position: Tensor, reach: Tensor | float) -> Tensor:
    """`position` folded into [-reach, reach] as if it bounced off walls there."""
    folded = torch.remainder(position + reach, 4 * reach)
    return torch.minimum(folded, 4 * reach - folded) - reach


def lit_sphere(x: Tensor, y: Tensor, radius: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
    """Diffuse light and highlight in [0, 1] on a sphere around the origin.

    `light` is the direction, in radians, from which light falls in the plane of the picture.
    """
    nx, ny = x / radius, y / radius
    nz = (1 - nx * nx - ny * ny).clamp_min(0).sqrt()
    facing = 0.62 * (nx * torch.cos(light) + ny * torch.sin(light)) + 0.78 * nz
    facing = facing.clamp(0, 1)
    return facing, facing**12
