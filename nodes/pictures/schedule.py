"""Picture of a sparsity schedule: one bar per step, dense steps a hatched strip at 0.

Steps are drawn as evenly spaced in percent, as they are for a sampler that takes all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ...rspa_core.run.reasons import DenseReason, Reason
from ...rspa_core.run.schedule import Position, SparsitySchedule, even_course
from . import BACKGROUND, GRID, MUTED, TEXT, Canvas, as_tensor, text_width, wrapped

WIDTH, HEIGHT = 960, 640

LEFT, RIGHT, TOP, BOTTOM = 130, 936, 226, 490
"""The plot area, in pixels of the finished picture."""
MARGIN = 20
SIZE = 52
"""Of the text, in pixels: 11 on the screen where a node shows the picture 205 pixels wide."""
LINE = 58
DENSE_HEIGHT = 20
"""Of the strip that marks a dense step, which stands at 0."""
LABEL_GAP = 12
MIN_LABELLED_BAR = 90


def preview_image(schedule: SparsitySchedule, num_steps: int, shift: float = 1.0) -> Tensor:
    """Draw `schedule` over `num_steps` steps: `[1, 640, 960, 3]` fp32, 0 to 1.

    Args:
        schedule: what is drawn.
        num_steps: of a sampler.
        shift: of its noise levels, which a ramp depends on.
    """
    steps = preview_steps(schedule, num_steps, shift)
    return as_tensor(draw_schedule(steps, shift if schedule.has_ramp else None))


def preview_steps(
    schedule: SparsitySchedule, num_steps: int, shift: float = 1.0
) -> list[float | None]:
    """Sparsity of each of `num_steps` steps evenly spaced in percent.

    None for a dense one, and 0 for one that is dense because a ramp keeps all.
    """
    course = even_course(num_steps, shift)
    decided = (
        schedule.sparsity_at(Position(step, num_steps, percent, course))
        for step, percent in enumerate(course.percents)
    )
    return [_shown(each) for each in decided]


def _shown(decided: float | DenseReason) -> float | None:
    if isinstance(decided, DenseReason):
        return 0.0 if decided.reason is Reason.RAMP else None
    return decided


def draw_schedule(steps: Sequence[float | None], shift: float | None = None) -> Image.Image:
    """The finished RGB picture, 960 x 640, of a sparsity per step, as `preview_steps` has it.

    `shift` is named below the steps where the picture depends on it.
    """
    canvas = Canvas.empty(WIDTH, HEIGHT)
    _draw_header(canvas, steps)
    _draw_axes(canvas, len(steps), shift)
    slot = (RIGHT - LEFT) / len(steps)
    gap = min(0.18 * slot, 6.0)
    for index, sparsity in enumerate(steps):
        left, right = LEFT + index * slot + gap / 2, LEFT + (index + 1) * slot - gap / 2
        if not sparsity:
            canvas.dense((left, BOTTOM - DENSE_HEIGHT, right, BOTTOM))
            continue
        top = BOTTOM - sparsity * (BOTTOM - TOP)
        canvas.bar((left, top, right, BOTTOM), sparsity)
        if slot >= MIN_LABELLED_BAR:
            label = f"{sparsity:.2f}".removeprefix("0")
            canvas.text(((left + right) / 2, top + SIZE), label, SIZE, BACKGROUND, "ms")
    canvas.line((LEFT, BOTTOM), (RIGHT, BOTTOM), MUTED, 1.5)
    return canvas.finished()


def _draw_header(canvas: Canvas, steps: Sequence[float | None]) -> None:
    counted = [sparsity for sparsity in steps if sparsity is not None]
    sparse = [sparsity for sparsity in counted if sparsity > 0.0]
    canvas.text((MARGIN, LINE), "Sparsity per step", SIZE, TEXT, "ls")
    summary = f"{len(sparse)} of {len(steps)} steps sparse"
    if whole := len(counted) - len(sparse):
        summary += f" ({whole} dense by the ramp)"
    if sparse:
        summary += f", mean {sum(counted) / len(counted):.2f}"
    for number, line in enumerate(wrapped(summary, SIZE, RIGHT - MARGIN)[:2], start=2):
        canvas.text((MARGIN, number * LINE), line, SIZE, MUTED, "ls")

    x = float(RIGHT)
    for name, draw in (("dense", canvas.dense), ("sparse", lambda box: canvas.bar(box, 1.0))):
        canvas.text((x, LINE), name, SIZE, MUTED, "rs")
        x -= text_width(name, SIZE) + 10
        draw((x - 34, LINE - 34, x, LINE))
        x -= 62


def _draw_axes(canvas: Canvas, num_steps: int, shift: float | None) -> None:
    for tick in range(3):
        value = tick / 2
        y = BOTTOM - value * (BOTTOM - TOP)
        canvas.line((LEFT, y), (RIGHT, y), GRID, 1)
        canvas.text((LEFT - 12, y), f"{value:g}", SIZE, MUTED, "rm")

    slot = (RIGHT - LEFT) / num_steps
    widest = text_width(str(num_steps), SIZE) + LABEL_GAP
    for step in range(0, num_steps, math.ceil(widest / slot)):
        canvas.text((LEFT + (step + 0.5) * slot, BOTTOM + LINE), str(step + 1), SIZE, MUTED, "ms")
    title = "step"
    if shift is not None:
        title += f", shift {shift:g}"
    canvas.text(((LEFT + RIGHT) / 2, BOTTOM + 2 * LINE + 4), title, SIZE, MUTED, "ms")
