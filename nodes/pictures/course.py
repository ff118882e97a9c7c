"""Chart of the profiles that a probe offers, from closest to fastest, and of the chosen one."""

from __future__ import annotations

from itertools import pairwise

from ...rspa_core.run.probe import ProbeOutcome
from ...rspa_core.run.report_text import short
from . import BACKGROUND, BAR_HIGH, DENSE, GRID, MUTED, TEXT, Box, Canvas, text_width

LINE = 2.5
DOT = 0.3
"""Radius of a mark, in sizes of the text."""


def draw_course(canvas: Canvas, outcome: ProbeOutcome, box: Box, size: int) -> None:
    """A line of errors over the share computed, which falls to the right.

    On it stands a mark for the profile, and another one for the same sparsity in all blocks.

    Args:
        canvas: to draw on.
        outcome: of a probe.
        box: of the plot; there is text on its left, and below it one line.
        size: of the text.
    """
    left, top, right, bottom = box
    course, alike = outcome.course, outcome.alike
    points = [*course, outcome.chosen, *([alike] if alike else [])]
    end = 1.1 * max(error for _, error in points)
    most, least = max(share for share, _ in points), min(share for share, _ in points)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        share, error = point
        way = (most - share) / (most - least) if most > least else 0.5
        return left + way * (right - left), bottom - error / end * (bottom - top)

    for value in (0.0, end / 2.2, end / 1.1):
        y = bottom - value / end * (bottom - top)
        canvas.line((left, y), (right, y), GRID, 1)
        canvas.text((left - size / 3, y), digits(value), size, MUTED, "rm")
    x, y = at(outcome.chosen)
    canvas.line((x, top), (x, bottom), MUTED, 1.5)
    for first, second in pairwise(course):
        canvas.line(at(first), at(second), BAR_HIGH, LINE)
    if alike:
        canvas.dot(at(alike), DOT * size, DENSE)
    canvas.dot((x, y), 1.4 * DOT * size, BACKGROUND)
    canvas.dot((x, y), DOT * size, TEXT)
    canvas.line((left, bottom), (right, bottom), MUTED, 1.5)
    canvas.text((left, bottom + 1.2 * size), f"closest, {most:.0%}", size, MUTED, "ls")
    canvas.text((right, bottom + 1.2 * size), f"fastest, {least:.0%}", size, MUTED, "rs")


def draw_course_key(
    canvas: Canvas, outcome: ProbeOutcome, right: float, y: float, size: int
) -> None:
    """What the marks are, right-aligned in one line with its baseline at `y`."""
    labels = [("this profile", TEXT)]
    if outcome.alike:
        labels.insert(0, (f"{short(outcome.shown_sparsity)} everywhere", DENSE))
    for label, color in labels:
        canvas.text((right, y), label, size, MUTED, "rs")
        right -= text_width(label, size) + size / 2
        canvas.dot((right, y - 0.35 * size), DOT * size, color)
        right -= size


def digits(error: float) -> str:
    """A short number: .004, .052, .31, 1.2, 25, or 99+."""
    if not error < 99.5:
        return "99+"
    if error >= 10.0:
        return f"{error:.0f}"
    if error >= 1.0:
        return f"{error:.1f}"
    if error < 0.00095:
        return "<.001" if error > 0.0 else "0"
    places = 2 if error >= 0.0995 else 3
    return f"{error:.{places}f}".removeprefix("0")
