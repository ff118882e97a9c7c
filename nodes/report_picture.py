"""Picture of a sampling run: summary, warnings, charts, why calls were dense, settings.

The parts stand below one another, and the picture is as high as they need.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .canvas import DENSE, MUTED, TEXT
from .report_canvas import (
    LINE_HEIGHT,
    MAX_LINES,
    ReportCanvas,
    drawable,
    fitted,
    text_width,
    wrapped,
)
from .report_charts import MARGIN, RIGHT, Table, draw_map, draw_times
from .report_text import (
    NEVER_CALLED,
    NO_RUN_CAUSES,
    NO_RUN_TITLE,
    headline,
    is_slower,
    model_words,
    ranked_reasons,
    settings_words,
)
from .run_record import RunRecord

WIDTH = 960
MAX_HEIGHT = 2400
BOTTOM_MARGIN = 24
TITLE = "Rectified SpaAttn"

MAX_REASONS = 8
MAX_WARNINGS = 8
WARNING, WARNING_FILL = (255, 176, 150), (74, 38, 34)
WARNING_LINE = 20


def draw_report(record: RunRecord) -> Image.Image:
    """The finished RGB picture of a run, 960 pixels wide and as high as its parts."""
    canvas = ReportCanvas.empty(WIDTH, MAX_HEIGHT)
    table = Table(record)
    y = _draw_header(canvas, record)
    if table.rows:
        y = draw_map(canvas, table, y + 26)
    if record.steps:
        y = draw_times(canvas, record, table, y + 44)
    y = _draw_reasons(canvas, record, y)
    if record.settings:
        y = _draw_heading(canvas, "Settings", y)
        y = canvas.lines(MARGIN, y, settings_words(record.settings), 15, MUTED, RIGHT)
    return canvas.cut(y + BOTTOM_MARGIN)


def draw_no_run(title: str = NO_RUN_TITLE, causes: Sequence[str] = NO_RUN_CAUSES) -> Image.Image:
    """What the node shows where there is no run to show: a title and likely causes."""
    canvas = ReportCanvas.empty(WIDTH, MAX_HEIGHT)
    canvas.text((MARGIN, 48), title, 24, TEXT, "ls")
    canvas.text((MARGIN, 80), "Likely causes:", 16, MUTED, "ls")
    y = 90.0
    for number, cause in enumerate(causes, start=1):
        canvas.text((MARGIN, y + LINE_HEIGHT), f"{number}.", 16, DENSE, "ls")
        y = canvas.lines(MARGIN + 24, y, cause, 16, TEXT, RIGHT) + 8
    return canvas.cut(y + BOTTOM_MARGIN)


def _draw_header(canvas: ReportCanvas, record: RunRecord) -> float:
    canvas.text((MARGIN, 42), TITLE, 24, TEXT, "ls")
    free = RIGHT - MARGIN - text_width(TITLE, 24) - 40
    canvas.text((RIGHT, 42), fitted(drawable(model_words(record)), 16, free), 16, MUTED, "rs")
    canvas.text((MARGIN, 74), headline(record), 18, WARNING if is_slower(record) else TEXT, "ls")
    y = 88.0
    warnings = list(record.warnings)
    if not record.sparse and not record.dense and not warnings:
        warnings = [NEVER_CALLED]
    if len(warnings) > MAX_WARNINGS:
        rest = len(warnings) - MAX_WARNINGS + 1
        warnings[MAX_WARNINGS - 1 :] = [f"and {rest} more (all are in the summary)"]
    for warning in warnings:
        lines = wrapped(warning, 15, RIGHT - MARGIN - 28)[:MAX_LINES]
        bottom = y + 10 + WARNING_LINE * len(lines)
        canvas.fill((MARGIN, y, RIGHT, bottom), WARNING_FILL)
        canvas.fill((MARGIN, y, MARGIN + 4, bottom), WARNING)
        for index, line in enumerate(lines):
            baseline = y + 20 + WARNING_LINE * index
            canvas.text((MARGIN + 16, baseline), line, 15, WARNING, "ls")
        y = bottom + 6
    return y


def _draw_reasons(canvas: ReportCanvas, record: RunRecord, y: float) -> float:
    reasons = ranked_reasons(record)
    if not reasons:
        return y
    y = _draw_heading(canvas, "Why calls were dense", y)
    shown = reasons if len(reasons) <= MAX_REASONS else reasons[: MAX_REASONS - 1]
    rows = [(f"{count:,}", reason) for reason, count in shown]
    if rest := reasons[len(shown) :]:
        others = f"for {len(rest)} other reasons (all are in the summary)"
        rows.append((f"{sum(count for _, count in rest):,}", others))
    edge = MARGIN + max(text_width(count, 16) for count, _ in rows)
    for count, reason in rows:
        canvas.text((edge, y + LINE_HEIGHT), count, 16, DENSE, "rs")
        y = canvas.lines(edge + 14, y, reason, 16, TEXT, RIGHT)
    return y


def _draw_heading(canvas: ReportCanvas, title: str, y: float) -> float:
    canvas.text((MARGIN, y + 40), title, 18, TEXT, "ls")
    return y + 46
