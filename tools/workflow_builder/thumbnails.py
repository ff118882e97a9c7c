"""Thumbnails for the template browser: a real clip, and which steps are sparse.

The upper part is one frame that the small trained model rendered twice from the same noise, with
full attention and with the workflow's settings: see `tools/render_thumbnails.py`. The workflow with
the probe shows measured errors instead. Below stands one cell per sampling step of the workflow:
dense steps are light, sparse ones filled as far as they skip work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent / "renders"
RECORDS = FOLDER / "renders.json"

SIZE = 640
# Everything is drawn at this multiple of the final size and scaled down, which smooths the edges.
SCALE = 3
PICTURE_HEIGHT = 356
LEFT, RIGHT = 36, SIZE - 36

BACKGROUND, BAND = (16, 19, 28), (24, 28, 40)
TEXT, QUIET, INK = (245, 247, 250), (160, 170, 188), (20, 28, 40)
DENSE, SPARSE, EMPTY = (228, 232, 240), (58, 178, 172), (44, 52, 70)
# Told apart by colour-blind readers.
CURVES = ((86, 180, 233), (230, 159, 0), (0, 200, 150))
WANTED = (255, 214, 74)
WANTED_ERROR = 0.1  # tells the three layers of the small model apart

Color = tuple[int, int, int]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """What one thumbnail says.

    `seed` and `frame` say which clip and which of its frames are shown, `split` the number of steps
    of the first of two samplers (0: there is one), `halves` what the two are. `layout` is "pair" (a
    frame, dense and sparse) or "chart" (errors that the probe measured).
    """

    family: str
    task: str
    detail: str
    seed: int
    frame: int = 0
    split: int = 0
    layout: str = "pair"
    halves: tuple[str, str] = ("high noise", "low noise")

    @property
    def is_chart(self) -> bool:
        return self.layout == "chart"


def load_records() -> dict[str, dict[str, Any]]:
    """Settings and measurements by the workflow's stem."""
    return json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}


def save_records(records: dict[str, dict[str, Any]]) -> None:
    """Write them, in order of their stems."""
    text = json.dumps(dict(sorted(records.items())), indent=1)
    RECORDS.write_text(text + "\n", encoding="utf-8")


def load_pair(stem: str) -> tuple[Image.Image, Image.Image]:
    """The dense and the sparse frame of a workflow, RGB."""
    with Image.open(FOLDER / f"{stem}.jpg") as pair:
        picture = pair.convert("RGB")
    half = picture.width // 2
    return (
        picture.crop((0, 0, half, picture.height)),
        picture.crop((half, 0, picture.width, picture.height)),
    )


def draw(
    picture: Picture,
    steps: Sequence[float | None],
    record: Record,
    frames: tuple[Image.Image, Image.Image] | None,
    chosen: Sequence[float] = (),
) -> Image.Image:
    """The finished thumbnail, RGB, `SIZE` x `SIZE`.

    Args:
        picture: words and layout.
        steps: sparsity of each step of the workflow, None is dense.
        record: what `renders.json` says of this workflow.
        frames: dense and sparse; None for a chart.
        chosen: for a chart, the sparsity that each curve's layer gets.
    """
    canvas = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    if frames is None:
        _chart(pen, record, chosen)
        caption = "measured on"
    else:
        _pair(canvas, frames, record)
        caption = "rendered by"
    caption += " this project's small test model: "
    caption += f"{record['sampled_steps']} steps, {record['tokens']:,} tokens"
    _text(pen, (LEFT, 412), picture.family, 46, TEXT, anchor="ls")
    _text(pen, (LEFT, 448), picture.task, 25, TEXT, anchor="ls")
    _text(pen, (RIGHT, 448), picture.detail, 18, QUIET, anchor="rs")
    if picture.is_chart:
        _choices(pen, chosen)
    else:
        _steps(pen, steps, picture)
    _text(pen, (LEFT, 616), caption, 16, QUIET, anchor="ls")
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _pair(canvas: Image.Image, frames: tuple[Image.Image, Image.Image], record: Record) -> None:
    """The dense frame on the left, the sparse one on the right, each with a label."""
    middle, height = SIZE * SCALE // 2, PICTURE_HEIGHT * SCALE
    for index, frame in enumerate(frames):
        canvas.paste(_covering(frame, (middle, height)), (index * middle, 0))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((middle - SCALE, 0, middle + SCALE, height), fill=TEXT)
    skipped = 1 - record["density"]
    _pill(pen, (SIZE / 2 - 14, PICTURE_HEIGHT - 28), "full attention", DENSE, anchor="rm")
    _pill(pen, (SIZE / 2 + 14, PICTURE_HEIGHT - 28), f"{skipped:.0%} skipped", SPARSE, anchor="lm")
    _pill(pen, (RIGHT + 16, 28), f"PSNR {record['psnr']:.1f} dB", TEXT, anchor="rm")


def _covering(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of `frame`, scaled so that it fills `size`."""
    width, height = size
    scale = max(width / frame.width, height / frame.height)
    scaled = frame.resize(
        (math.ceil(frame.width * scale), math.ceil(frame.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def _chart(pen: ImageDraw.ImageDraw, record: Record, chosen: Sequence[float]) -> None:
    """Error over skipped share, a curve for each layer; dots where they meet the wanted error."""
    left, right, top, bottom = 96, SIZE - 44, 60, PICTURE_HEIGHT - 54
    pen.rectangle((0, 0, SIZE * SCALE, PICTURE_HEIGHT * SCALE), fill=BAND)
    sparsities = record["sparsities"]
    curves = record["worst_errors"]
    every = [error for curve in curves for error in curve] + [WANTED_ERROR]
    low, high = math.log(min(every) / 1.3), math.log(max(every) * 1.3)

    def at(sparsity: float, error: float) -> tuple[float, float]:
        across = (sparsity - sparsities[0]) / (sparsities[-1] - sparsities[0])
        up = (math.log(max(error, 1e-9)) - low) / (high - low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for tick in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if low <= math.log(tick) <= high:
            y = at(sparsities[0], tick)[1]
            _line(pen, [(left, y), (right, y)], EMPTY, 1)
            _text(pen, (left - 10, y), f"{tick:.1%}".replace(".0%", "%"), 16, QUIET, anchor="rm")
    for sparsity in sparsities:
        _text(pen, (at(sparsity, 1)[0], bottom + 10), f"{sparsity:.0%}", 16, QUIET, anchor="ma")
    _text(pen, ((left + right) / 2, bottom + 30), "skipped", 16, QUIET, anchor="ma")
    wanted_y = at(sparsities[0], WANTED_ERROR)[1]
    for dash in range(left, right, 16):
        _line(pen, [(dash, wanted_y), (min(dash + 9, right), wanted_y)], WANTED, 2.5)
    label = f"error up to {WANTED_ERROR:.0%}"
    _text(pen, (right, wanted_y + 18), label, 18, WANTED, anchor="rm")
    for color, curve in zip(CURVES, curves, strict=False):
        _line(pen, [at(s, e) for s, e in zip(sparsities, curve, strict=True)], color, 4)
    for color, sparsity, curve in zip(CURVES, chosen, curves, strict=False):
        if sparsity:
            is_last = sparsity >= sparsities[-1] and curve[-1] < WANTED_ERROR
            x, y = at(sparsity, curve[-1] if is_last else WANTED_ERROR)
            _dot(pen, (x, y), 9, TEXT)
            _dot(pen, (x, y), 6, color)


def _choices(pen: ImageDraw.ImageDraw, chosen: Sequence[float]) -> None:
    """What each layer of the chart gets, in place of the steps."""
    top, bottom, gap = 480, 540, 14
    cell = (RIGHT - LEFT - gap * (len(chosen) - 1)) / len(chosen)
    for index, (sparsity, color) in enumerate(zip(chosen, CURVES, strict=False)):
        x = LEFT + index * (cell + gap)
        box = [x * SCALE, top * SCALE, (x + cell) * SCALE, bottom * SCALE]
        pen.rounded_rectangle(box, 6 * SCALE, fill=EMPTY)
        if sparsity:
            box[2] = (x + sparsity * cell) * SCALE
            pen.rounded_rectangle(box, 6 * SCALE, fill=color)
        label = f"layer {index}: {sparsity:.0%}" if sparsity else f"layer {index}: dense"
        ink = INK if sparsity else color
        _text(pen, (x + 8, (top + bottom) / 2), label, 17, ink, anchor="lm")
    _text(pen, (LEFT, 552), "skipped share of each layer, saved as a profile", 18, QUIET)


def _steps(pen: ImageDraw.ImageDraw, steps: Sequence[float | None], picture: Picture) -> None:
    """The strip of steps with its captions."""
    split = picture.split
    top, bottom = 482, 534
    count = len(steps)
    gap = 6 if count <= 8 else 3
    split_gap = 14 if split else 0
    cell = (RIGHT - LEFT - gap * (count - 1) - split_gap) / count
    x: float = LEFT
    for index, sparsity in enumerate(steps):
        if split and index == split:
            x += split_gap
        box = (x * SCALE, top * SCALE, (x + cell) * SCALE, bottom * SCALE)
        radius = (6 if cell > 20 else 3) * SCALE
        pen.rounded_rectangle(box, radius, fill=DENSE if sparsity is None else EMPTY)
        if sparsity is not None:
            fill_top = bottom - (bottom - top) * sparsity
            pen.rounded_rectangle((box[0], fill_top * SCALE, box[2], box[3]), radius, fill=SPARSE)
        if cell > 120:  # else it does not fit
            label = "dense" if sparsity is None else f"{sparsity:.0%} sparse"
            # Near the bottom, where even a low fill is behind the letters.
            _text(pen, (x + cell / 2, bottom - 15), label, 19, INK, anchor="mm")
        x += cell + gap
    below = bottom + 10
    if split:
        middle = LEFT + (RIGHT - LEFT) * split / count
        first, second = picture.halves
        _text(pen, ((LEFT + middle) / 2, below), first, 18, QUIET, anchor="ma")
        _text(pen, ((middle + RIGHT) / 2, below), second, 18, QUIET, anchor="ma")
        return
    dense = sum(step is None for step in steps)
    word = "step" if dense == 1 else "steps"
    _text(pen, (LEFT, below), f"{dense} dense {word}", 18, QUIET)
    _text(
        pen,
        (RIGHT, below),
        f"{count - dense} steps {steps[-1] or 0:.0%} sparse",
        18,
        SPARSE,
        anchor="ra",
    )


def _pill(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, color: Color, anchor: str
) -> None:
    """A word on a dark rounded plate; `at` is its inner edge, at mid height."""
    width = ImageFont.load_default(18 * SCALE).getlength(text) / SCALE + 24
    left = at[0] if anchor[0] == "l" else at[0] - width
    box = (left * SCALE, (at[1] - 17) * SCALE, (left + width) * SCALE, (at[1] + 17) * SCALE)
    pen.rounded_rectangle(box, 17 * SCALE, fill=BACKGROUND)
    _text(pen, (left + width / 2, at[1]), text, 18, color, anchor="mm")


def _line(
    pen: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], color: Color, width: float
) -> None:
    scaled = [(x * SCALE, y * SCALE) for x, y in points]
    pen.line(scaled, fill=color, width=round(width * SCALE), joint="curve")


def _dot(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, color: Color) -> None:
    x, y, r = at[0] * SCALE, at[1] * SCALE, radius * SCALE
    pen.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _text(
    pen: ImageDraw.ImageDraw,
    position: tuple[float, float],
    text: str,
    size: int,
    color: Color,
    anchor: str = "la",
) -> None:
    # Pillow's built-in font: no font file to depend on.
    font = ImageFont.load_default(size * SCALE)
    pen.text((position[0] * SCALE, position[1] * SCALE), text, fill=color, font=font, anchor=anchor)
