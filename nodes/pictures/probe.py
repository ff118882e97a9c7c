"""Pictures of a probe's outcome: the whole one, and the part of it that its node shows.

The whole one says where the profile lies, and gives errors and sparsity by block, in four charts
below one another. The second has the worst blocks on the left; those below it share the columns of
the model's order. Colours say how an error compares with the wanted one: blue and green are within
it, orange and red are beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean, median

from PIL import Image

from ...rspa_core.run.probe import ProbeOutcome
from ...rspa_core.run.record import Block
from ...rspa_core.run.report_text import block_name, number, short, steps_words
from ...rspa_core.run.schedule import step_name
from . import (
    BACKGROUND,
    BAR_HIGH,
    DENSE,
    GRID,
    MUTED,
    TEXT,
    Box,
    Canvas,
    Color,
    CompactCanvas,
    fitted,
    text_width,
)

WIDTH = 1200
LEFT, RIGHT = 92, 1172
"""The columns of the charts, in pixels of the finished picture."""
HEADER_HEIGHT = 82
TITLE_HEIGHT, TITLE_OFFSET = 48, 25
COURSE_HEIGHT, COURSE_LABELS = 130, 24
COURSE_LINE = 2.5
COURSE_DOT = 0.3
"""Radius of a mark, in sizes of the text."""
ERROR_HEIGHT, SPARSITY_HEIGHT = 200, 150
SECTION_GAP = 34
GROUP_GAP = 14
"""Between main blocks and single blocks."""
DENSE_HEIGHT = 10
"""Of the strip that marks a dense block, which stands at 0."""
MAX_MAP_HEIGHT, MAX_ROW_HEIGHT = 400, 28
MIN_ROW_LABEL = 15
AXIS_HEIGHT = 52
LABEL_SIZE, VALUE_SIZE = 13, 12
MAX_COLUMN = 64.0
MAX_SCALE, MAX_OVER_MEDIAN = 12.0, 2.5
"""The error axis ends at this many times the wanted error, or the median; longer bars are cut."""

COMPACT_COURSE_HEIGHT, COMPACT_BLOCKS_HEIGHT = 94, 72
COMPACT_LEFT = 92
"""Left edge of both charts on the node."""

UNMEASURED: Color = (70, 73, 83)
LOW_ERROR: Color = (36, 60, 96)
ABOVE_WANTED: Color = (236, 178, 92)
HIGH_ERROR: Color = (196, 62, 58)
COLOR_RANGE = 4.0
"""The colours end at the wanted error divided, and multiplied, by this."""


@dataclass(frozen=True)
class _Columns:
    """Where the blocks stand: evenly spaced, with a gap between main and single blocks."""

    blocks: list[Block]
    gap: float

    @property
    def slot(self) -> float:
        return min((RIGHT - LEFT - self.gap) / len(self.blocks), MAX_COLUMN)

    def span(self, index: int, space: float = 0.0) -> tuple[float, float]:
        """Left and right edge of a column, with `space` left out between neighbours."""
        shift = self.gap if self.blocks[index][0] == "single" else 0.0
        left = LEFT + shift + index * self.slot
        return left + space / 2, left + self.slot - space / 2


def draw_probe(outcome: ProbeOutcome) -> Image.Image:
    """The finished RGB picture, 1200 pixels wide and as high as its charts."""
    model = outcome.profile.model
    columns = _Columns(outcome.blocks, GROUP_GAP if model.single_blocks else 0.0)
    names_height = _names_height(outcome)
    row = min(MAX_ROW_HEIGHT, MAX_MAP_HEIGHT / len(outcome.table.steps))
    map_height = row * len(outcome.table.steps)
    course_height = COURSE_HEIGHT + COURSE_LABELS
    charts = course_height + ERROR_HEIGHT + names_height + SPARSITY_HEIGHT + map_height
    height = HEADER_HEIGHT + charts + 4 * TITLE_HEIGHT + 3 * SECTION_GAP + AXIS_HEIGHT
    canvas = Canvas.empty(WIDTH, math.ceil(height))

    _draw_header(canvas, outcome)
    y: float = HEADER_HEIGHT + TITLE_HEIGHT
    _draw_course(canvas, outcome, y)
    y += course_height + SECTION_GAP + TITLE_HEIGHT
    _draw_errors(canvas, outcome, y, y + ERROR_HEIGHT)
    y += ERROR_HEIGHT + names_height + SECTION_GAP + TITLE_HEIGHT
    _draw_sparsities(canvas, outcome, columns, y, y + SPARSITY_HEIGHT)
    y += SPARSITY_HEIGHT + SECTION_GAP + TITLE_HEIGHT
    _draw_map(canvas, outcome, columns, y, row)
    _draw_block_axis(canvas, outcome, columns, y + map_height)
    return canvas.finished()


def error_color(error: float, wanted: float) -> Color:
    """Blue to green up to the wanted error, orange to red beyond it."""
    ratio = math.log(max(error, 1e-9) / wanted) / math.log(COLOR_RANGE)
    share = min(abs(ratio), 1.0)
    near, far = (BAR_HIGH, LOW_ERROR) if ratio <= 0.0 else (ABOVE_WANTED, HIGH_ERROR)
    return _blend(near, far, share)


def _blend(first: Color, second: Color, share: float) -> Color:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _draw_header(canvas: Canvas, outcome: ProbeOutcome) -> None:
    profile, table = outcome.profile, outcome.table
    title = "How far sparse attention is from full attention"
    canvas.text((LEFT, 40), title, 24, TEXT, "ls")
    steps = fitted(steps_words(table), 15, 340)
    words = [
        profile.model.describe(),
        steps,
        f"{' x '.join(map(str, profile.grid))} tokens",
        f"blocks of {profile.block_size}, {profile.rectification}",
    ]
    canvas.text((LEFT, 66), "  ·  ".join(words), 15, MUTED, "ls")
    if profile.name:
        canvas.text((RIGHT, 40), fitted(profile.name, 16, 420), 16, TEXT, "rs")


def _draw_course(canvas: Canvas, outcome: ProbeOutcome, top: float) -> None:
    title = "Wanted error by the share that is computed, from closest to fastest"
    canvas.text((LEFT, top - TITLE_OFFSET), title, 18, TEXT, "ls")
    draw_course_key(canvas, outcome, RIGHT, top - TITLE_OFFSET, 15)
    draw_course(canvas, outcome, (LEFT, top, RIGHT, top + COURSE_HEIGHT), 15)


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
        canvas.line(at(first), at(second), BAR_HIGH, COURSE_LINE)
    if alike:
        canvas.dot(at(alike), COURSE_DOT * size, DENSE)
    canvas.dot((x, y), 1.4 * COURSE_DOT * size, BACKGROUND)
    canvas.dot((x, y), COURSE_DOT * size, TEXT)
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
        canvas.dot((right, y - 0.35 * size), COURSE_DOT * size, color)
        right -= size


def _draw_errors(canvas: Canvas, outcome: ProbeOutcome, top: float, bottom: float) -> None:
    wanted = outcome.profile.wanted_error
    ranked = outcome.worst_first()
    sparsity = short(outcome.shown_sparsity)
    title = f"Error at sparsity {sparsity}, in the worst step"
    canvas.text((LEFT, top - TITLE_OFFSET), title, 18, TEXT, "ls")
    beyond = sum(error > wanted for _, error in ranked)
    x = _draw_line_key(canvas, RIGHT, top - TITLE_OFFSET, f"wanted error {short(wanted)}", TEXT)
    note = f"{beyond} of {len(ranked)} beyond it, worst first"
    canvas.text((x, top - TITLE_OFFSET), note, 15, MUTED, "rs")

    finite = [error for _, error in ranked if math.isfinite(error)] or [wanted]
    limit = max(MAX_SCALE * wanted, MAX_OVER_MEDIAN * median(finite))
    step, end = _axis(min(max(1.08 * finite[0], 1.2 * wanted), limit))
    scale = (bottom - top) / end
    for tick in range(round(end / step) + 1):
        y = bottom - tick * step * scale
        canvas.line((LEFT, y), (RIGHT, y), GRID, 1)
        canvas.text((LEFT - 10, y), _tick(tick * step, step), 15, MUTED, "rm")
    canvas.upright((26, (top + bottom) / 2), "relative error", 15, MUTED)

    slot = min((RIGHT - LEFT) / len(ranked), MAX_COLUMN)
    space = min(0.2 * slot, 8.0)
    names = [block_name(block, outcome.profile.model) for block, _ in ranked]
    upright = _needs_upright(names, slot)
    stride = math.ceil((LABEL_SIZE - 1) / slot)
    for index, (_, error) in enumerate(ranked):
        middle = LEFT + (index + 0.5) * slot
        left, right = middle - (slot - space) / 2, middle + (slot - space) / 2
        bar_top = max(bottom - error * scale, top)
        canvas.box((left, min(bar_top, bottom - 1), right, bottom), error_color(error, wanted))
        if bottom - error * scale < top:  # cut: a notch says that the bar goes on
            canvas.box((left - 1, top + 8, right + 1, top + 12), BACKGROUND)
        if index % stride == 0:
            _draw_name(canvas, middle, bottom + 8, names[index], upright)
    line = bottom - wanted * scale
    canvas.dashed((LEFT, line), (RIGHT, line), TEXT, 1.5)
    for index, (_, error) in enumerate(ranked):
        middle = LEFT + (index + 0.5) * slot
        y = max(bottom - error * scale, top) - 4
        if y - 10 < line < y + 4:  # would stand on the line: above it
            y = line - 4
        _draw_value(canvas, middle, y, digits(error), slot)
    canvas.line((LEFT, bottom), (RIGHT, bottom), MUTED, 1.5)


def _draw_sparsities(
    canvas: Canvas, outcome: ProbeOutcome, columns: _Columns, top: float, bottom: float
) -> None:
    title = f"Proposed sparsity for an error of {short(outcome.profile.wanted_error)}"
    canvas.text((LEFT, top - TITLE_OFFSET), title, 18, TEXT, "ls")
    _draw_sparsity_key(canvas, outcome, top - TITLE_OFFSET)
    for tick in range(5):
        y = bottom - tick / 4 * (bottom - top)
        canvas.line((LEFT, y), (RIGHT, y), GRID, 1)
        canvas.text((LEFT - 10, y), f"{tick / 4:.2f}", 15, MUTED, "rm")
    canvas.upright((26, (top + bottom) / 2), "sparsity", 15, MUTED)

    space = min(0.2 * columns.slot, 8.0)
    for index, block in enumerate(columns.blocks):
        left, right = columns.span(index, space)
        sparsity = outcome.sparsity(block)
        bar_top = bottom - sparsity * (bottom - top)
        if sparsity == 0.0:
            canvas.dense((left, bottom - DENSE_HEIGHT, right, bottom))
            continue
        if block in outcome.measured:
            canvas.bar((left, bar_top, right, bottom), sparsity)
        else:
            canvas.box((left, bar_top, right, bottom), UNMEASURED)
    y = bottom - outcome.configured * (bottom - top)
    canvas.dashed((LEFT, y), (RIGHT, y), TEXT, 1)
    for index, block in enumerate(columns.blocks):
        sparsity = outcome.sparsity(block)
        if sparsity > 0.0:
            left, right = columns.span(index)
            label = f"{sparsity:.2f}".removeprefix("0")
            y = bottom - sparsity * (bottom - top) - 4
            _draw_value(canvas, (left + right) / 2, y, label, columns.slot)
    canvas.line((LEFT, bottom), (RIGHT, bottom), MUTED, 1.5)


def _draw_sparsity_key(canvas: Canvas, outcome: ProbeOutcome, y: float) -> None:
    """From right to left: what the bars are, as far as it occurs, and the mean."""
    profile = outcome.profile
    x = _draw_line_key(canvas, RIGHT, y, f"configured {short(outcome.configured)}", TEXT)
    sparsities = [outcome.sparsity(block) for block in outcome.blocks]
    if any(block not in outcome.measured for block in outcome.blocks):
        x -= text_width("not measured", 15)
        canvas.text((x, y), "not measured", 15, MUTED, "ls")
        canvas.box((x - 30, y - 12, x - 8, y), UNMEASURED)
        x -= 52
    if 0.0 in (*profile.double, *profile.single):
        x -= text_width("full (dense)", 15)
        canvas.text((x, y), "full (dense)", 15, MUTED, "ls")
        canvas.dense((x - 30, y - 12, x - 8, y))
        x -= 52
    mean = sum(sparsities) / len(sparsities)
    canvas.text((x, y), f"{mean:.2f} on average", 15, MUTED, "rs")


def _draw_line_key(canvas: Canvas, right: float, y: float, label: str, color: Color) -> float:
    """A dashed line with what it means, right-aligned; returns where the next entry may end."""
    x = right - text_width(label, 15)
    canvas.text((x, y), label, 15, MUTED, "ls")
    canvas.dashed((x - 38, y - 5), (x - 8, y - 5), color, 1.5)
    return x - 60


def _draw_value(canvas: Canvas, middle: float, y: float, label: str, width: float) -> None:
    """A number above a bar, if it fits into `width`; lines behind it end at its sides."""
    half = text_width(label, VALUE_SIZE) / 2
    if 2 * half + 3 <= width:
        canvas.box((middle - half - 1, y - 10, middle + half + 1, y + 1), BACKGROUND)
        canvas.text((middle, y), label, VALUE_SIZE, TEXT, "ms")


def _draw_map(
    canvas: Canvas, outcome: ProbeOutcome, columns: _Columns, top: float, row: float
) -> None:
    wanted = outcome.profile.wanted_error
    title = f"Error at sparsity {short(outcome.shown_sparsity)} by block and step"
    canvas.text((LEFT, top - TITLE_OFFSET), title, 18, TEXT, "ls")
    _draw_color_key(canvas, wanted, top - TITLE_OFFSET)
    steps = outcome.table.steps
    stride = max(1, math.ceil(MIN_ROW_LABEL / row))
    space = 1.0 if row >= 8 else 0.0
    places = 2 if wanted >= 0.03 else 3
    label_width = text_width("." + "0" * places, VALUE_SIZE)
    has_labels = row >= 16 and label_width + 3 <= columns.slot
    for at, step in enumerate(steps):
        upper, lower = top + at * row, top + (at + 1) * row - space
        if at % stride == 0:
            canvas.text(
                (LEFT - 10, (upper + lower) / 2), f"step {step_name(step)}", 14, MUTED, "rm"
            )
        for index, block in enumerate(columns.blocks):
            left, right = columns.span(index, 1.0)
            error = outcome.error(block, step)
            if error is None:
                canvas.box((left, upper, right, lower), UNMEASURED)
                continue
            color = error_color(error, wanted)
            canvas.box((left, upper, right, lower), color)
            if has_labels:
                label = _fixed(error, places)
                ink = TEXT if sum(color) < 330 else BACKGROUND
                middle = ((left + right) / 2, (upper + lower) / 2)
                canvas.text(middle, label, VALUE_SIZE, ink, "mm")


def _draw_color_key(canvas: Canvas, wanted: float, y: float) -> None:
    """A strip of the colours with the errors at its ends and in its middle."""
    width = 200
    high = f"{COLOR_RANGE * wanted:.2g} or more"
    right = RIGHT - text_width(high, 14) - 8
    left = right - width
    canvas.text((right + 8, y), high, 14, MUTED, "ls")
    canvas.text((left - 8, y), f"{wanted / COLOR_RANGE:.2g} or less", 14, MUTED, "rs")
    for part in range(width // 2):
        ratio = COLOR_RANGE ** (2 * (part + 0.5) / (width / 2) - 1)
        at = left + 2 * part
        canvas.box((at, y - 12, at + 2, y), error_color(ratio * wanted, wanted))
    canvas.line((left + width / 2, y - 15), (left + width / 2, y + 1), TEXT, 1.5)
    canvas.text((left + width / 2, y - 18), f"wanted {short(wanted)}", 13, TEXT, "ms")


def _draw_block_axis(
    canvas: Canvas, outcome: ProbeOutcome, columns: _Columns, bottom: float
) -> None:
    """Block numbers below the shared columns, and what kind they are."""
    numbers = [str(index) for _, index in columns.blocks]
    widest = max(text_width(each, LABEL_SIZE) for each in numbers)
    stride = math.ceil((widest + 3) / columns.slot)
    for place, (_, index) in enumerate(columns.blocks):
        if index is not None and index % stride == 0:
            left, right = columns.span(place)
            canvas.text(((left + right) / 2, bottom + 16), str(index), LABEL_SIZE, MUTED, "ms")
    model = outcome.profile.model
    last = model.double_blocks - 1
    groups = [("block", columns.span(0)[0], columns.span(last)[1])]
    if model.single_blocks:
        first, end = columns.span(last + 1)[0], columns.span(len(columns.blocks) - 1)[1]
        groups = [("double block", *groups[0][1:]), ("single block", first, end)]
    for name, left, right in groups:
        canvas.text(((left + right) / 2, bottom + 38), name, 15, MUTED, "ms")


def _names_height(outcome: ProbeOutcome) -> float:
    """Room for the names below the first chart."""
    ranked = outcome.worst_first()
    names = [block_name(block, outcome.profile.model) for block, _ in ranked]
    if not _needs_upright(names, min((RIGHT - LEFT) / len(names), MAX_COLUMN)):
        return 24.0
    return 14.0 + max(text_width(name, LABEL_SIZE) for name in names)


def _needs_upright(names: list[str], slot: float) -> bool:
    return max(text_width(name, LABEL_SIZE) for name in names) + 3 > slot


def _draw_name(canvas: Canvas, middle: float, top: float, name: str, upright: bool) -> None:
    if upright:
        length = text_width(name, LABEL_SIZE)
        canvas.upright((middle, top + length / 2), name, LABEL_SIZE, MUTED)
    else:
        canvas.text((middle, top + 10), name, LABEL_SIZE, MUTED, "ms")


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


def _axis(highest: float) -> tuple[float, float]:
    """Step and end of an axis from 0 that holds `highest` and has about five intervals."""
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= 0.999 * rough)
    return step, step * math.ceil(highest / step - 1e-9)


def _tick(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += round(step * 10**digits, 6) % 1 != 0  # 0.025
    return f"{value:.{digits}f}"


def _fixed(error: float, places: int) -> str:
    """`digits` with a fixed number of places below 1: as wide in every cell."""
    return digits(error) if error >= 0.995 else f"{error:.{places}f}".removeprefix("0")


def draw_compact_probe(outcome: ProbeOutcome) -> Image.Image:
    """The finished RGB picture for the node, 640 pixels wide and as high as its parts."""
    canvas = CompactCanvas.blank()
    sparsities = [outcome.sparsity(block) for block in outcome.blocks]
    y = canvas.paragraph(10, f"sparsity {fmean(sparsities):.2f} on average", canvas.LARGE, TEXT)
    within = f"error up to {number(outcome.profile.wanted_error)}"
    y = canvas.paragraph(y, f"{within} · {outcome.density():.0%} computed", canvas.SIZE, MUTED)
    y += 38
    canvas.text((canvas.MARGIN, y), "error", canvas.SIZE, TEXT, "ls")
    draw_course_key(canvas, outcome, canvas.RIGHT, y, canvas.SIZE)
    y += 16
    plot = (COMPACT_LEFT, y, canvas.RIGHT, y + COMPACT_COURSE_HEIGHT)
    draw_course(canvas, outcome, plot, canvas.SIZE)
    y = _draw_compact_blocks(canvas, sparsities, plot[3] + canvas.LINE)
    return canvas.cut(y + canvas.MARGIN)


def _draw_compact_blocks(canvas: CompactCanvas, sparsities: Sequence[float], y: float) -> float:
    """A bar for the sparsity of each block, a hatched strip for a dense one; the lower edge."""
    y += 36
    canvas.text((canvas.MARGIN, y), "sparsity by block", canvas.SIZE, TEXT, "ls")
    if dense := sparsities.count(0.0):
        label = f"{dense} dense"
        canvas.text((canvas.RIGHT, y), label, canvas.SIZE, MUTED, "rs")
        x = canvas.RIGHT - text_width(label, canvas.SIZE) - 8
        canvas.dense((x - 20, y - 17, x, y + 1))
    bottom = y + 16 + COMPACT_BLOCKS_HEIGHT
    slot = (canvas.RIGHT - COMPACT_LEFT) / len(sparsities)
    gap = min(0.15 * slot, 4.0)
    for tick in (0.0, 0.5, 1.0):
        level = bottom - tick * COMPACT_BLOCKS_HEIGHT
        canvas.line((COMPACT_LEFT, level), (canvas.RIGHT, level), GRID, 1)
        canvas.text((COMPACT_LEFT - canvas.SIZE / 3, level), f"{tick:g}", canvas.SIZE, MUTED, "rm")
    for index, sparsity in enumerate(sparsities):
        left = COMPACT_LEFT + index * slot + gap / 2
        top = bottom - (sparsity * COMPACT_BLOCKS_HEIGHT or DENSE_HEIGHT)
        draw = partial(canvas.bar, value=sparsity) if sparsity else canvas.dense
        draw((left, top, left + slot - gap, bottom))
    canvas.line((COMPACT_LEFT, bottom), (canvas.RIGHT, bottom), MUTED, 1.5)
    return bottom + canvas.SIZE / 2
