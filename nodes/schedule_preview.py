"""Picture of a sparsity schedule: one bar per step, dense steps hatched, axes labelled.

Steps are drawn as evenly spaced in percent, which is what the "simple" scheduler gives; another
scheduler moves the curve along the steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..rspa_core.schedule import SparsitySchedule

WIDTH, HEIGHT = 960, 480
OVERSAMPLING = 2
"""Drawn at this scale and reduced, which smooths the lines and the text."""

LEFT, RIGHT, TOP, BOTTOM = 92, 932, 84, 394
"""The plot area, in pixels of the finished picture."""
HATCH_PITCH = 10
MAX_STEP_LABELS = 20
MIN_LABELLED_BAR = 34

BACKGROUND = (30, 31, 36)
GRID = (56, 58, 66)
TEXT = (232, 233, 237)
MUTED = (158, 161, 172)
BAR_LOW, BAR_HIGH = (38, 112, 138), (72, 202, 196)
DENSE = (222, 160, 74)
DENSE_FILL = (52, 46, 38)


def preview_image(schedule: SparsitySchedule, num_steps: int) -> Tensor:
    """Draw `schedule` over `num_steps` steps: `[1, 480, 960, 3]` fp32, 0 to 1."""
    picture = draw_schedule(preview_steps(schedule, num_steps))
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0).unsqueeze(0)


def preview_steps(schedule: SparsitySchedule, num_steps: int) -> list[float | None]:
    """Sparsity of each of `num_steps` steps evenly spaced in percent, None for a dense one."""
    return [schedule.sparsity_at(step / num_steps, step, num_steps)[0] for step in range(num_steps)]


def draw_schedule(steps: Sequence[float | None]) -> Image.Image:
    """The finished RGB picture, 960 x 480, of a sparsity per step (None is a dense step)."""
    size = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)
    canvas = _Canvas(Image.new("RGB", size, BACKGROUND))
    _draw_header(canvas, steps)
    _draw_axes(canvas, len(steps))
    slot = (RIGHT - LEFT) / len(steps)
    gap = min(0.18 * slot, 6.0)
    for index, sparsity in enumerate(steps):
        left, right = LEFT + index * slot + gap / 2, LEFT + (index + 1) * slot - gap / 2
        if sparsity is None:
            canvas.hatched((left, TOP, right, BOTTOM), DENSE, DENSE_FILL)
        else:
            top = BOTTOM - sparsity * (BOTTOM - TOP)
            canvas.bar((left, top, right, BOTTOM), sparsity)
            if slot >= MIN_LABELLED_BAR:
                label = f"{sparsity:.2f}".removeprefix("0")
                canvas.text(((left + right) / 2, top - 5), label, 15, TEXT, "ms")
    canvas.line((LEFT, BOTTOM), (RIGHT, BOTTOM), MUTED, 1.5)
    return canvas.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _draw_header(canvas: _Canvas, steps: Sequence[float | None]) -> None:
    sparse = [sparsity for sparsity in steps if sparsity is not None]
    canvas.text((LEFT, 34), "Sparsity per step", 24, TEXT, "ls")
    summary = f"{len(sparse)} of {len(steps)} steps sparse"
    if sparse:
        summary += f", {sum(sparse) / len(sparse):.2f} on average"
    canvas.text((LEFT, 60), summary, 16, MUTED, "ls")

    key_top, key_bottom = 24, 38
    canvas.bar((RIGHT - 226, key_top, RIGHT - 202, key_bottom), 1.0)
    canvas.text((RIGHT - 194, key_bottom), "sparse", 16, MUTED, "ls")
    canvas.hatched((RIGHT - 116, key_top, RIGHT - 92, key_bottom), DENSE, DENSE_FILL)
    canvas.text((RIGHT - 84, key_bottom), "full (dense)", 16, MUTED, "ls")


def _draw_axes(canvas: _Canvas, num_steps: int) -> None:
    for tick in range(6):
        value = tick / 5
        y = BOTTOM - value * (BOTTOM - TOP)
        canvas.line((LEFT, y), (RIGHT, y), GRID, 1)
        canvas.text((LEFT - 12, y), f"{value:.1f}", 16, MUTED, "rm")
    canvas.upright((28, (TOP + BOTTOM) / 2), "sparsity", 16, MUTED)

    stride = -(-num_steps // MAX_STEP_LABELS)
    slot = (RIGHT - LEFT) / num_steps
    for step in range(0, num_steps, stride):
        canvas.text((LEFT + (step + 0.5) * slot, BOTTOM + 20), str(step), 15, MUTED, "ms")
    title = "step (0 = first), evenly spaced in percent"
    canvas.text(((LEFT + RIGHT) / 2, BOTTOM + 56), title, 16, MUTED, "ms")


Point = tuple[float, float]
Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


class _Canvas:
    """Drawing in pixels of the finished picture on the larger one."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)

    def text(self, at: Point, text: str, size: int, color: Color, anchor: str) -> None:
        x, y = at
        at = (x * OVERSAMPLING, y * OVERSAMPLING)
        self._draw.text(at, text, fill=color, font=_font(size), anchor=anchor)

    def upright(self, center: Point, text: str, size: int, color: Color) -> None:
        """Text that reads from bottom to top."""
        font = _font(size)
        left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
        label = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(label).text((-left, -top), text, fill=255, font=font)
        label = label.rotate(90, expand=True)
        x, y = self._scaled(center)
        self.image.paste(color, (x - label.width // 2, y - label.height // 2), label)

    def line(self, start: Point, end: Point, color: Color, width: float) -> None:
        ends = [self._scaled(start), self._scaled(end)]
        self._draw.line(ends, fill=color, width=round(width * OVERSAMPLING))

    def bar(self, box: Box, value: float) -> None:
        """A bar whose color follows its value."""
        blend = zip(BAR_LOW, BAR_HIGH, strict=True)
        color = tuple(round(low + value * (high - low)) for low, high in blend)
        self._draw.rectangle(self._scaled(box), fill=color)

    def hatched(self, box: Box, color: Color, fill: Color) -> None:
        """A box with diagonal lines, clipped to the box."""
        left, top, right, bottom = self._scaled(box)
        width, height = max(right - left, 1), max(bottom - top, 1)
        tile = Image.new("RGB", (width, height), fill)
        draw = ImageDraw.Draw(tile)
        pitch = HATCH_PITCH * OVERSAMPLING
        for offset in range(-height, width, pitch):
            draw.line((offset, height, offset + height, 0), fill=color, width=OVERSAMPLING)
        if width > pitch:  # outlines of narrow boxes side by side would fill the area
            draw.rectangle((0, 0, width - 1, height - 1), outline=color, width=OVERSAMPLING)
        self.image.paste(tile, (left, top))

    def _scaled(self, values: tuple[float, ...]) -> tuple[int, ...]:
        return tuple(round(value * OVERSAMPLING) for value in values)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same picture on every machine."""
    return ImageFont.load_default(size * OVERSAMPLING)
