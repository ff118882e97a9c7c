"""Picture of a sparsity schedule: one bar per step, dense steps hatched, axes labelled.

Steps are drawn as evenly spaced in percent, as they are for a sampler that takes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ...rspa_core.run.reasons import DenseReason, Reason
from ...rspa_core.run.schedule import Position, SparsitySchedule, even_course
from . import GRID, MUTED, TEXT, Canvas, as_tensor

WIDTH, HEIGHT = 960, 480

LEFT, RIGHT, TOP, BOTTOM = 92, 932, 84, 394
"""The plot area, in pixels of the finished picture."""
MAX_STEP_LABELS = 20
MIN_LABELLED_BAR = 34


def preview_image(schedule: SparsitySchedule, num_steps: int, shift: float = 1.0) -> Tensor:
    """Draw `schedule` over `num_steps` steps: `[1, 480, 960, 3]` fp32, 0 to 1.

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
    """The finished RGB picture, 960 x 480, of a sparsity per step, as `preview_steps` has it.

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
            canvas.dense((left, TOP, right, BOTTOM))
        else:
            top = BOTTOM - sparsity * (BOTTOM - TOP)
            canvas.bar((left, top, right, BOTTOM), sparsity)
            if slot >= MIN_LABELLED_BAR:
                label = f"{sparsity:.2f}".removeprefix("0")
                canvas.text(((left + right) / 2, top - 5), label, 15, TEXT, "ms")
    canvas.line((LEFT, BOTTOM), (RIGHT, BOTTOM), MUTED, 1.5)
    return canvas.finished()


def _draw_header(canvas: Canvas, steps: Sequence[float | None]) -> None:
    counted = [sparsity for sparsity in steps if sparsity is not None]
    sparse = [sparsity for sparsity in counted if sparsity > 0.0]
    canvas.text((LEFT, 34), "Sparsity per step", 24, TEXT, "ls")
    summary = f"{len(sparse)} of {len(steps)} steps sparse"
    if sparse:
        summary += f", {sum(counted) / len(counted):.2f} on average"
    if whole := len(counted) - len(sparse):
        summary += f" with the {whole} that the ramp makes dense"
    canvas.text((LEFT, 60), summary, 16, MUTED, "ls")

    key_top, key_bottom = 24, 38
    canvas.bar((RIGHT - 226, key_top, RIGHT - 202, key_bottom), 1.0)
    canvas.text((RIGHT - 194, key_bottom), "sparse", 16, MUTED, "ls")
    canvas.dense((RIGHT - 116, key_top, RIGHT - 92, key_bottom))
    canvas.text((RIGHT - 84, key_bottom), "full (dense)", 16, MUTED, "ls")


def _draw_axes(canvas: Canvas, num_steps: int, shift: float | None) -> None:
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
    if shift is not None:
        title += f", shift {shift:g}"
    canvas.text(((LEFT + RIGHT) / 2, BOTTOM + 56), title, 16, MUTED, "ms")
