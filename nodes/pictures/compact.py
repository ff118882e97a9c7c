"""Pictures for small nodes: what a sampling run gained, and what a probe proposes.

Drawn for nodes that show them 320 pixels wide; the whole ones are in `report.py` and `probe.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean, median

from PIL import Image

from ...rspa_core.run.probe import ProbeOutcome
from ...rspa_core.run.record import Ending, RunRecord
from ...rspa_core.run.report_text import (
    NEVER_CALLED,
    NO_RUN_CAUSES,
    NO_RUN_TITLE,
    is_slower,
    number,
    ranked_reasons,
    seconds_words,
    speed_words,
    why_not_sparse,
)
from . import BAR_HIGH, DENSE, GRID, MUTED, TEXT, Canvas, Color, fitted, text_width, wrapped
from .course import draw_course, draw_course_key
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
COURSE_HEIGHT = 94
COURSE_LEFT = 92
BLOCKS_HEIGHT = 72
DENSE_HEIGHT = 10
"""Of the strip that marks a dense block, which stands at 0."""


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
    for place, cause in enumerate(causes, start=1):
        y = _lines(canvas, y + 6, f"{place}. {cause}", SIZE, MUTED)
    return canvas.cut(y + MARGIN)


def draw_compact_probe(outcome: ProbeOutcome) -> Image.Image:
    """The finished RGB picture of a probe's outcome, 640 pixels wide and as high as its parts."""
    canvas = Canvas.empty(WIDTH, MAX_HEIGHT)
    sparsities = [outcome.sparsity(block) for block in outcome.blocks]
    y = _lines(canvas, 10, f"sparsity {fmean(sparsities):.2f} on average", LARGE, TEXT)
    within = f"error up to {number(outcome.profile.wanted_error)}"
    y = _lines(canvas, y, f"{within} · {outcome.density():.0%} computed", SIZE, MUTED)
    y += 38
    canvas.text((MARGIN, y), "error", SIZE, TEXT, "ls")
    draw_course_key(canvas, outcome, WIDTH - MARGIN, y, SIZE)
    y += 16
    plot = (COURSE_LEFT, y, WIDTH - MARGIN, y + COURSE_HEIGHT)
    draw_course(canvas, outcome, plot, SIZE)
    return canvas.cut(_draw_blocks(canvas, sparsities, y + COURSE_HEIGHT + LINE) + MARGIN)


def _draw_blocks(canvas: Canvas, sparsities: Sequence[float], y: float) -> float:
    """A bar for the sparsity of each block, a hatched strip for a dense one; the lower edge."""
    y += 36
    canvas.text((MARGIN, y), "sparsity by block", SIZE, TEXT, "ls")
    if dense := sparsities.count(0.0):
        label = f"{dense} dense"
        canvas.text((WIDTH - MARGIN, y), label, SIZE, MUTED, "rs")
        x = WIDTH - MARGIN - text_width(label, SIZE) - 8
        canvas.dense((x - 20, y - 17, x, y + 1))
    bottom = y + 16 + BLOCKS_HEIGHT
    slot = (WIDTH - MARGIN - COURSE_LEFT) / len(sparsities)
    gap = min(0.15 * slot, 4.0)
    for tick in (0.0, 0.5, 1.0):
        level = bottom - tick * BLOCKS_HEIGHT
        canvas.line((COURSE_LEFT, level), (WIDTH - MARGIN, level), GRID, 1)
        canvas.text((COURSE_LEFT - SIZE / 3, level), f"{tick:g}", SIZE, MUTED, "rm")
    for index, sparsity in enumerate(sparsities):
        left = COURSE_LEFT + index * slot + gap / 2
        top = bottom - (sparsity * BLOCKS_HEIGHT or DENSE_HEIGHT)
        draw = partial(canvas.bar, value=sparsity) if sparsity else canvas.dense
        draw((left, top, left + slot - gap, bottom))
    canvas.line((COURSE_LEFT, bottom), (WIDTH - MARGIN, bottom), MUTED, 1.5)
    return bottom + SIZE / 2


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
