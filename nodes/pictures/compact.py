"""Picture of a sampling run for a small node: what it gained, the time of its steps, what is wrong.

Drawn for a node that shows it 320 pixels wide; the whole report is in `report.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from PIL import Image

from ...rspa_core.run.record import Ending, RunRecord
from ...rspa_core.run.report_text import (
    NEVER_CALLED,
    NO_RUN_CAUSES,
    NO_RUN_TITLE,
    is_slower,
    ranked_reasons,
    seconds_words,
    speed_words,
    why_not_sparse,
)
from . import BAR_HIGH, DENSE, MUTED, TEXT, Canvas, Color, fitted, text_width, wrapped
from .report import CUT_BAR, WARNING

WIDTH, MAX_HEIGHT = 640, 1200
MARGIN = 20
SIZE = 24
"""Of the text, in pixels: 12 on the screen where a node shows the picture 320 pixels wide."""
LARGE = 36
LINE = 32
MAX_LINES = 4
"""Of one text; the whole of it is in the summary."""
BARS_HEIGHT = 110


def draw_compact(record: RunRecord) -> Image.Image:
    """The finished RGB picture of a run, 640 pixels wide and as high as its parts."""
    canvas = Canvas.empty(WIDTH, MAX_HEIGHT)
    parts = [f"{record.sparse:,} sparse, {record.dense:,} dense calls"]
    if record.ending is not Ending.COMPLETE:
        parts.insert(0, record.ending.value)
    if record.density is not None:
        parts.append(f"density {record.density:.2f}")
    color = WARNING if is_slower(record) else TEXT
    y = _lines(canvas, 18, _promise(record), LARGE, color)
    y = _lines(canvas, y, " · ".join(parts), SIZE, MUTED)
    if record.warnings:
        y = _lines(canvas, y + 6, record.warnings[0], SIZE, WARNING)
    if record.steps:
        y = _draw_steps(canvas, record, y + 16)
    for reason, count in ranked_reasons(record)[:1]:
        y = _lines(canvas, y + 6, f"{count:,} dense: {reason.text}", SIZE, DENSE)
    return canvas.cut(y + MARGIN)


def draw_compact_no_run(
    title: str = NO_RUN_TITLE, causes: Sequence[str] = NO_RUN_CAUSES
) -> Image.Image:
    """What the node shows where there is no run to show: a title and likely causes."""
    canvas = Canvas.empty(WIDTH, MAX_HEIGHT)
    y = _lines(canvas, 18, f"{title}. Likely causes:", SIZE, TEXT)
    for number, cause in enumerate(causes, start=1):
        y = _lines(canvas, y + 6, f"{number}. {cause}", SIZE, MUTED)
    return canvas.cut(y + MARGIN)


def _promise(record: RunRecord) -> str:
    if speed := speed_words(record):
        return speed
    if not record.sparse and not record.dense:
        return NEVER_CALLED
    return "sparse" if record.sparse else f"not sparse: {why_not_sparse(record)}"


def _lines(canvas: Canvas, y: float, text: str, size: int, color: Color) -> float:
    """Text below `y`; the bottom of its last line."""
    lines = wrapped(text, size, WIDTH - 2 * MARGIN)
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = ["…"]
    height = LINE * size / SIZE
    for line in lines:
        y += height
        canvas.text((MARGIN, y - height / 4), line, size, color, "ls")
    return y


def _draw_steps(canvas: Canvas, record: RunRecord, y: float) -> float:
    """A bar for the seconds of each step; returns the lower edge of what is said about them."""
    seconds = [step.seconds / max(step.forwards, 1) for step in record.steps]
    # One long step, as the first that loads the model, would flatten the others.
    end = min(max(seconds), CUT_BAR * max(median(seconds), record.dense_step_seconds or 0.0))
    bottom = y + BARS_HEIGHT
    slot = (WIDTH - 2 * MARGIN) / len(seconds)
    gap = min(0.15 * slot, 4.0)
    for index, (step, value) in enumerate(zip(record.steps, seconds, strict=True)):
        left = MARGIN + index * slot
        share = min(value / end, 1.0) if end > 0.0 else 0.0
        box = (left + gap / 2, bottom - share * BARS_HEIGHT, left + slot - gap / 2, bottom)
        canvas.fill(box, BAR_HIGH if step.sparse else DENSE if step.dense else MUTED)
    canvas.line((MARGIN, bottom), (WIDTH - MARGIN, bottom), MUTED, 1.5)
    x, baseline = float(MARGIN), bottom + 26
    medians = (
        ("sparse", record.sparse_step_seconds, BAR_HIGH),
        ("dense", record.dense_step_seconds, DENSE),
    )
    for kind, median_seconds, color in medians:
        if median_seconds is not None:
            canvas.fill((x, baseline - 17, x + 20, baseline + 1), color)
            text = f"{kind} {seconds_words(median_seconds)}"
            canvas.text((x + 28, baseline), text, SIZE, MUTED, "ls")
            x += text_width(text, SIZE) + 52
    words = "per step" if all(step.forwards <= 1 for step in record.steps) else "per model call"
    canvas.text((x, baseline), fitted(words, SIZE, WIDTH - MARGIN - x), SIZE, MUTED, "ls")
    return baseline + 12
