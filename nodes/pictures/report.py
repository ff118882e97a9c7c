"""Pictures of a sampling run: the whole report, and the part of it that its node shows.

The report: summary, warnings, charts, why calls were dense, settings. The parts stand below one
another, and the picture is as high as they need. Its two charts, density by block and step and
seconds per step, share their columns, so that a slow step is found in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median, median_low

from PIL import Image

from ...rspa_core.run.record import Block, Cell, Ending, RunRecord, StepRecord
from ...rspa_core.run.report_text import (
    NEVER_CALLED,
    NO_RUN_CAUSES,
    NO_RUN_TITLE,
    headline,
    is_slower,
    kept_words,
    model_words,
    ranked_reasons,
    seconds_words,
    settings_words,
    speed_words,
    why_not_sparse,
)
from ...rspa_core.run.schedule import step_name
from . import (
    BACKGROUND,
    BAR_HIGH,
    BAR_LOW,
    DENSE,
    GRID,
    LINE_HEIGHT,
    MAX_LINES,
    MUTED,
    TEXT,
    Box,
    Canvas,
    Color,
    CompactCanvas,
    drawable,
    fitted,
    text_width,
    wrapped,
)

WIDTH = 960
MAX_HEIGHT = 2400
BOTTOM_MARGIN = 24
TITLE = "Rectified SpaAttn"

MAX_REASONS = 8
MAX_WARNINGS = 8
WARNING, WARNING_FILL = (255, 176, 150), (74, 38, 34)
WARNING_LINE = 20

LEFT, RIGHT = 92, 932
"""Edges of the charts, in pixels of the finished picture."""
MARGIN = 28
"""Left edge of headings."""

MAX_MAP_HEIGHT, MAX_ROW_HEIGHT, MIN_ROW_HEIGHT = 450, 26, 3
GROUP_GAP = 10
MIN_LABEL_DISTANCE = 15
"""Between row numbers, in pixels."""
MIN_LABELLED_CELL = (30, 14)
"""Cells of this width and height or more show their density as a number."""
MAX_STEP_LABELS = 25
SCALE_WIDTH = 140
MIN_SCALE_TENTHS = 2
"""A narrower color scale would make noise look like a finding."""
BARS_HEIGHT, COMPACT_BARS_HEIGHT = 120, 110
MIN_LABELLED_BAR = 40
CUT_BAR = 3.0
"""A bar this many times the median is cut, or a step that loads the model flattens the others."""
LARGEST_GAIN = 10.0
"""Dense steps up to this many times the median are not cut: they show what sparse ones gain."""

DENSITY_COLORS: tuple[Color, ...] = (BAR_HIGH, BAR_LOW, (36, 52, 84))
"""From the scale's low end to its high one: bright is fast."""
GROUP_ORDER = {"double": 0, "single": 1}


class Table:
    """The cells of a record in rows (blocks) and columns (steps)."""

    def __init__(self, record: RunRecord) -> None:
        self.cells = record.cells
        self.records = {each.step: each for each in record.steps}
        steps = {*self.records, *(step for step, _ in record.cells)}
        # A step whose number is not known stands last.
        self.steps = sorted(steps, key=lambda step: (step is None, step or 0))
        self.rows = sorted({block for _, block in record.cells}, key=_block_order)
        self.slot = (RIGHT - LEFT) / max(len(self.steps), 1)
        densities = [cell.density for cell in self.cells.values() if cell.density is not None]
        high = math.ceil(max(densities, default=1.0) * 10)
        high = min(max(high, MIN_SCALE_TENTHS), 10)
        low = min(math.floor(min(densities, default=0.0) * 10), high - MIN_SCALE_TENTHS)
        self.scale = (max(low, 0) / 10, high / 10)

    def groups(self) -> list[tuple[str, list[Block]]]:
        """(name, rows) of every type of block; only HunyuanVideo has two."""
        kinds = list(dict.fromkeys(kind for kind, _ in self.rows))
        return [
            (
                f"{kind} block" if kind and len(kinds) > 1 else "block",
                [row for row in self.rows if row[0] == kind],
            )
            for kind in kinds
        ]

    def columns(self) -> Iterator[tuple[int | None, float, float]]:
        """(step, left, right) of every column."""
        gap = 0.0 if self.slot < 6 else 1.0 if self.slot < 20 else 2.0
        for index, step in enumerate(self.steps):
            left = LEFT + index * self.slot
            yield step, left + gap / 2, left + self.slot - gap / 2


def draw_map(canvas: Canvas, table: Table, y: float) -> float:
    """The heat map below `y`; returns the lower edge of its labels."""
    canvas.text((MARGIN, y + 16), "Density by block and step", 18, TEXT, "ls")
    _draw_map_key(canvas, table, y)
    groups = table.groups()
    height = (MAX_MAP_HEIGHT - GROUP_GAP * (len(groups) - 1)) / len(table.rows)
    height = max(min(height, MAX_ROW_HEIGHT), MIN_ROW_HEIGHT)
    stride = _stride(MIN_LABEL_DISTANCE / height)
    top = y + 32
    for name, rows in groups:
        bottom = top + len(rows) * height
        if bottom - top >= text_width(name, 15):
            canvas.upright((MARGIN + 8, (top + bottom) / 2), name, 15, MUTED)
        for index, block in enumerate(rows):
            upper, lower = top + index * height, top + (index + 1) * height
            if index % stride == 0:
                label = "?" if block[1] is None else str(block[1])
                canvas.text((LEFT - 10, (upper + lower) / 2), label, 13, MUTED, "rm")
            for step, left, right in table.columns():
                cell = table.cells.get((step, block))
                draw_cell(canvas, (left, upper, right, lower), cell, table.scale)
        top = bottom + GROUP_GAP
    _draw_step_labels(canvas, table, top - GROUP_GAP)
    return top - GROUP_GAP + 20


def _draw_map_key(canvas: Canvas, table: Table, y: float) -> None:
    """In one line, from the right: dense and mixed cells, and the color scale."""
    cells = table.cells.values()
    x = float(RIGHT)
    if any(cell.sparse and cell.dense for cell in cells):
        x = _draw_key(canvas, x, y, "partly dense", Cell(1, 1, None))
    if any(cell.dense and not cell.sparse for cell in cells):
        x = _draw_key(canvas, x, y, "full (dense)", Cell(0, 1, None))
    if any(cell.sparse for cell in cells):
        low, high = table.scale
        canvas.text((x, y + 15), f"{high:g}", 15, MUTED, "rs")
        right = x - text_width(f"{high:g}", 15) - 6
        left = right - SCALE_WIDTH
        for pixel in range(SCALE_WIDTH):
            color = density_color(pixel / SCALE_WIDTH)
            canvas.fill((left + pixel, y + 2, left + pixel + 1, y + 16), color)
        canvas.text((left - 6, y + 15), f"computed share   {low:g}", 15, MUTED, "rs")


def _draw_key(
    canvas: Canvas, right: float, y: float, text: str, cell: Cell, color: Color = MUTED
) -> float:
    """An entry of a key that ends at `right`; returns where the one before it may end."""
    canvas.text((right, y + 15), text, 15, color, "rs")
    left = right - text_width(text, 15) - 32
    draw_cell(canvas, (left, y + 2, left + 24, y + 16), cell, (0.0, 1.0))
    return left - 22


def draw_cell(canvas: Canvas, box: Box, cell: Cell | None, scale: tuple[float, float]) -> None:
    """One block in one step; `scale` is (low, high) of the color scale."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    gap = 0.0 if height < 6 else 0.5 if height < 12 else 1.0
    box = (left, top + gap, right, bottom - gap)
    if cell is None or not (cell.sparse or cell.dense):
        canvas.fill(box, GRID)
    elif not cell.sparse:
        canvas.dense(box)
    else:
        low, high = scale
        share = 0.0 if cell.density is None else (cell.density - low) / (high - low)
        color = density_color(share)
        canvas.fill(box, color)
        if cell.dense:
            middle = (left + right) / 2
            canvas.dense((middle, top + gap, right, bottom - gap))
        elif (
            cell.density is not None
            and width >= MIN_LABELLED_CELL[0]
            and height >= MIN_LABELLED_CELL[1]
        ):
            label = f"{cell.density:.2f}".removeprefix("0")
            ink = BACKGROUND if sum(color) > 330 else TEXT
            size = 12 if height < 20 else 14
            canvas.text(((left + right) / 2, (top + bottom) / 2), label, size, ink, "mm")


def density_color(share: float) -> Color:
    """Color of a density; `share` is its place on the scale, 0 to 1."""
    place = min(max(share, 0.0), 1.0) * (len(DENSITY_COLORS) - 1)
    index = min(int(place), len(DENSITY_COLORS) - 2)
    pairs = zip(DENSITY_COLORS[index], DENSITY_COLORS[index + 1], strict=True)
    red, green, blue = (round(low + (place - index) * (high - low)) for low, high in pairs)
    return red, green, blue


def draw_times(canvas: Canvas, record: RunRecord, table: Table, y: float) -> float:
    """Seconds of each step as bars, the heading at `y`; returns the lower edge.

    With guidance a step has two model calls or more, and not always as many: then a bar is the
    mean of the step's calls, which is what the medians are of.
    """
    is_single = all(each.forwards <= 1 for each in record.steps)
    title = "Seconds per step" if is_single else "Seconds per model call"
    canvas.text((MARGIN, y), title, 18, TEXT, "ls")
    _draw_times_key(canvas, record, y - 16)

    seconds = {each.step: each.seconds / max(each.forwards, 1) for each in record.steps}
    end, ticks = time_axis(list(seconds.values()), record.dense_step_seconds)
    top, bottom = y + 36, y + 36 + BARS_HEIGHT

    def level(value: float) -> float:
        return bottom - min(value / end, 1.0) * BARS_HEIGHT

    for tick in ticks:
        canvas.line((LEFT, level(tick)), (RIGHT, level(tick)), GRID, 1)
        canvas.text((LEFT - 10, level(tick)), f"{tick:g}", 13, MUTED, "rm")
    dense_median = record.dense_step_seconds
    for step, left, right in table.columns():
        if step not in seconds:
            continue
        each, value = table.records[step], seconds[step]
        _draw_time_bar(canvas, (left, level(value), right, bottom), each)
        if each.sparse and dense_median is not None and dense_median <= end:
            # What the step would have taken: dashes over the sparse steps.
            place = level(dense_median)
            inset = min(0.2 * (right - left), 6.0)
            canvas.line((left + inset, place), (right - inset, place), DENSE, 1)
        if value > end:
            canvas.fill((left - 1, top + 8, right + 1, top + 11), BACKGROUND)
        if right - left >= MIN_LABELLED_BAR or value > end:
            label = seconds_words(value)
            half = text_width(label, 12) / 2
            middle = min(max((left + right) / 2, LEFT + half), RIGHT - half)
            canvas.note((middle, level(value) - 5), label, 12, BACKGROUND, TEXT)
    canvas.line((LEFT, bottom), (RIGHT, bottom), MUTED, 1.5)
    _draw_step_labels(canvas, table, bottom + 2)
    axis = "step (? = not known)" if None in table.steps else "step"
    canvas.text(((LEFT + RIGHT) / 2, bottom + 42), axis, 15, MUTED, "ms")
    return bottom + 46


def _draw_times_key(canvas: Canvas, record: RunRecord, y: float) -> None:
    """In one line, from the right: the speed-up, and the medians beside their colors."""
    x = float(RIGHT)
    if speed := speed_words(record):
        canvas.text((x, y + 15), speed, 15, TEXT, "rs")
        x -= text_width(speed, 15) + 22
    dense, sparse = record.dense_step_seconds, record.sparse_step_seconds
    if dense is not None:
        text = f"dense, median {seconds_words(dense)}"
        x = _draw_key(canvas, x, y, text, Cell(0, 1, None))
    if sparse is not None:
        text = f"sparse, median {seconds_words(sparse)}"
        _draw_key(canvas, x, y, text, Cell(1, 0, None))


def _draw_time_bar(canvas: Canvas, box: Box, step: StepRecord) -> None:
    if step.sparse:
        canvas.fill(box, BAR_HIGH)
    elif step.dense:
        canvas.dense(box)
    else:
        canvas.fill(box, MUTED)


def time_axis(seconds: Sequence[float], dense: float | None = None) -> tuple[float, list[float]]:
    """(end of the axis, its ticks) such that a single long step does not flatten the others.

    `dense` is the median of the dense steps, where there are some.
    """
    longest = max(seconds, default=0.0)
    if len(seconds) > 2:
        median = median_low(seconds)
        usual = [value for value in seconds if value <= CUT_BAR * median]
        longest = max(usual, default=longest)
        if dense is not None and dense <= LARGEST_GAIN * median:
            longest = max(longest, dense)
    if not math.isfinite(longest) or longest <= 0.0:
        return 1.0, [0.0, 1.0]
    unit = 10.0 ** math.floor(math.log10(longest))
    spacing = next(step * unit for step in (0.2, 0.5, 1.0, 2.0, 5.0) if longest <= 5 * step * unit)
    count = math.ceil(longest / spacing)
    return count * spacing, [round(tick * spacing, 9) for tick in range(count + 1)]


def _draw_step_labels(canvas: Canvas, table: Table, y: float) -> None:
    stride = _stride(len(table.steps) / MAX_STEP_LABELS)
    for index, (step, left, right) in enumerate(table.columns()):
        if index % stride == 0 or step is None:
            label = step_name(step)
            canvas.text(((left + right) / 2, y + 17), label, 13, MUTED, "ms")


def _stride(least: float) -> int:
    """A round number of rows or columns from one label to the next."""
    return next((each for each in (1, 2, 5, 10, 20, 50, 100) if each >= least), 200)


def _block_order(block: Block) -> tuple[int, str, bool, int]:
    kind, index = block
    return GROUP_ORDER.get(kind, 2), kind, index is None, index or 0


def draw_report(record: RunRecord) -> Image.Image:
    """The finished RGB picture of a run, 960 pixels wide and as high as its parts."""
    canvas = Canvas.empty(WIDTH, MAX_HEIGHT)
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
    canvas = Canvas.empty(WIDTH, MAX_HEIGHT)
    canvas.text((MARGIN, 48), title, 24, TEXT, "ls")
    canvas.text((MARGIN, 80), "Likely causes:", 16, MUTED, "ls")
    y = 90.0
    for number, cause in enumerate(causes, start=1):
        canvas.text((MARGIN, y + LINE_HEIGHT), f"{number}.", 16, DENSE, "ls")
        y = canvas.lines(MARGIN + 24, y, cause, 16, TEXT, RIGHT) + 8
    return canvas.cut(y + BOTTOM_MARGIN)


def _draw_header(canvas: Canvas, record: RunRecord) -> float:
    canvas.text((MARGIN, 42), TITLE, 24, TEXT, "ls")
    free = RIGHT - MARGIN - text_width(TITLE, 24) - 40
    canvas.text((RIGHT, 42), fitted(drawable(model_words(record)), 16, free), 16, MUTED, "rs")
    canvas.text((MARGIN, 74), headline(record), 18, WARNING if is_slower(record) else TEXT, "ls")
    y = 88.0
    if words := kept_words(record):
        canvas.text((MARGIN, 98), f"kept share {words}", 16, MUTED, "ls")
        y = 112.0
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


def _draw_reasons(canvas: Canvas, record: RunRecord, y: float) -> float:
    reasons = ranked_reasons(record)
    if not reasons:
        return y
    y = _draw_heading(canvas, "Why calls were dense", y)
    shown = reasons if len(reasons) <= MAX_REASONS else reasons[: MAX_REASONS - 1]
    rows = [(f"{count:,}", reason.text) for reason, count in shown]
    if rest := reasons[len(shown) :]:
        others = f"for {len(rest)} other reasons (all are in the summary)"
        rows.append((f"{sum(count for _, count in rest):,}", others))
    edge = MARGIN + max(text_width(count, 16) for count, _ in rows)
    for count, reason in rows:
        canvas.text((edge, y + LINE_HEIGHT), count, 16, DENSE, "rs")
        y = canvas.lines(edge + 14, y, reason, 16, TEXT, RIGHT)
    return y


def _draw_heading(canvas: Canvas, title: str, y: float) -> float:
    canvas.text((MARGIN, y + 40), title, 18, TEXT, "ls")
    return y + 46


def draw_compact(record: RunRecord) -> Image.Image:
    """The finished RGB picture of a run for its node, 640 pixels wide and as high as its parts."""
    canvas = CompactCanvas.blank()
    parts = [f"{record.sparse:,} sparse, {record.dense:,} dense calls"]
    if record.ending is not Ending.COMPLETE:
        parts.insert(0, record.ending.value)
    if record.density is not None:
        parts.append(f"density {record.density:.2f}")
    color = WARNING if is_slower(record) else TEXT
    y = canvas.paragraph(18, _compact_title(record), canvas.LARGE, color)
    y = canvas.paragraph(y, " · ".join(parts), canvas.SIZE, MUTED)
    if record.warnings:
        y = canvas.paragraph(y + 6, record.warnings[0], canvas.SIZE, WARNING)
    if record.steps:
        y = _draw_compact_times(canvas, record, y + 16)
    for reason, count in ranked_reasons(record)[:1]:
        y = canvas.paragraph(y + 6, f"{count:,} dense: {reason.text}", canvas.SIZE, DENSE)
    return canvas.cut(y + canvas.MARGIN)


def draw_compact_no_run(
    title: str = NO_RUN_TITLE, causes: Sequence[str] = NO_RUN_CAUSES
) -> Image.Image:
    """What the node shows where there is no run to show: a title and likely causes."""
    canvas = CompactCanvas.blank()
    y = canvas.paragraph(18, f"{title}. Likely causes:", canvas.SIZE, TEXT)
    for place, cause in enumerate(causes, start=1):
        y = canvas.paragraph(y + 6, f"{place}. {cause}", canvas.SIZE, MUTED)
    return canvas.cut(y + canvas.MARGIN)


def _compact_title(record: RunRecord) -> str:
    if speed := speed_words(record):
        return speed
    if not record.sparse and not record.dense:
        return NEVER_CALLED
    return "sparse" if record.sparse else f"not sparse: {why_not_sparse(record)}"


def _draw_compact_times(canvas: CompactCanvas, record: RunRecord, y: float) -> float:
    """A bar for the seconds of each step; returns the lower edge of what is said about them."""
    seconds = [step.seconds / max(step.forwards, 1) for step in record.steps]
    # One long step, as the first that loads the model, would flatten the others.
    end = min(max(seconds), CUT_BAR * max(median(seconds), record.dense_step_seconds or 0.0))
    bottom = y + COMPACT_BARS_HEIGHT
    slot = (canvas.RIGHT - canvas.MARGIN) / len(seconds)
    gap = min(0.15 * slot, 4.0)
    for index, (step, value) in enumerate(zip(record.steps, seconds, strict=True)):
        left = canvas.MARGIN + index * slot
        share = min(value / end, 1.0) if end > 0.0 else 0.0
        box = (left + gap / 2, bottom - share * COMPACT_BARS_HEIGHT, left + slot - gap / 2, bottom)
        canvas.fill(box, BAR_HIGH if step.sparse else DENSE if step.dense else MUTED)
    canvas.line((canvas.MARGIN, bottom), (canvas.RIGHT, bottom), MUTED, 1.5)
    x, baseline = float(canvas.MARGIN), bottom + 26
    medians = (
        ("sparse", record.sparse_step_seconds, BAR_HIGH),
        ("dense", record.dense_step_seconds, DENSE),
    )
    for kind, median_seconds, color in medians:
        if median_seconds is not None:
            canvas.fill((x, baseline - 17, x + 20, baseline + 1), color)
            text = f"{kind} {seconds_words(median_seconds)}"
            canvas.text((x + 28, baseline), text, canvas.SIZE, MUTED, "ls")
            x += text_width(text, canvas.SIZE) + 52
    words = "per step" if all(step.forwards <= 1 for step in record.steps) else "per model call"
    words = fitted(words, canvas.SIZE, canvas.RIGHT - x)
    canvas.text((x, baseline), words, canvas.SIZE, MUTED, "ls")
    return baseline + 12
