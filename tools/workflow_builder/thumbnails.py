"""Thumbnails for the template browser: a real clip, and which steps are sparse.

The upper part is one frame that the small trained model rendered twice from the same noise: on the
left as with full attention, on the right as with the workflow's settings (see
`tools/render_thumbnails.py`). Below stand what the workflow saves, and one cell per sampling step:
dense steps are light, sparse ones filled as far as they skip work. The workflow with the probe has
a cell for each layer of the small model instead, filled as far as the probe proposed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent / "renders"
RECORDS = FOLDER / "renders.json"

SIZE = 640
# Everything is drawn at this multiple of the final size and scaled down, which smooths the edges.
SCALE = 3
PICTURE_HEIGHT = 384
LEFT, RIGHT = 36, SIZE - 36

BACKGROUND = (16, 19, 28)
TEXT, QUIET = (245, 247, 250), (160, 170, 188)
DENSE, SPARSE, EMPTY = (228, 232, 240), (58, 178, 172), (44, 52, 70)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """What one thumbnail says.

    `scene`, `seed` and `frame` say which clip and which of its frames are shown, `split` the number
    of steps of the first of two samplers (0: there is one), `halves` what the two are. `is_tuned`:
    each layer has a sparsity of its own, which the probe proposes.
    """

    family: str
    task: str
    detail: str
    scene: int
    seed: int
    frame: int = 0
    split: int = 0
    halves: tuple[str, str] = ("high noise", "low noise")
    is_tuned: bool = False


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
    frames: tuple[Image.Image, Image.Image],
    layers: Sequence[float] = (),
) -> Image.Image:
    """The finished thumbnail, RGB, `SIZE` x `SIZE`.

    Args:
        picture: words and layout.
        steps: sparsity of each step of the workflow, None is dense.
        frames: dense and sparse.
        layers: sparsity of each layer, where they have their own.
    """
    canvas = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    _pair(canvas, frames)
    _text(pen, (LEFT, 428), picture.family, 34, TEXT, anchor="ls")
    _text(pen, (RIGHT, 428), picture.task, 23, TEXT, anchor="rs")
    sparse = [step for step in steps if step is not None]
    number = f"{sum(sparse) / len(sparse):.0%}"
    _text(pen, (LEFT - 4, 514), number, 92, SPARSE, anchor="ls")
    beside = LEFT + ImageFont.load_default(92 * SCALE).getlength(number) / SCALE + 18
    _text(pen, (beside, 478), "less attention", 38, SPARSE, anchor="ls")
    where = f"in {len(sparse)} of {len(steps)} steps"
    where += ", shared out" if layers else ""
    _text(pen, (beside, 512), where, 24, TEXT, anchor="ls")
    _cells(pen, layers or steps, picture)
    _text(pen, (LEFT, 622), "picture: this project's small test model", 15, QUIET, anchor="ls")
    _text(pen, (RIGHT, 622), f"workflow: {picture.detail}", 15, QUIET, anchor="rs")
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _pair(canvas: Image.Image, frames: tuple[Image.Image, Image.Image]) -> None:
    """One picture whose left half is of the dense frame, whose right half of the sparse one."""
    width, middle, height = SIZE * SCALE, SIZE * SCALE // 2, PICTURE_HEIGHT * SCALE
    dense, sparse = (_covering(frame, (width, height)) for frame in frames)
    canvas.paste(dense, (0, 0))
    canvas.paste(sparse.crop((middle, 0, width, height)), (middle, 0))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((middle - 2 * SCALE, 0, middle + 2 * SCALE, height), fill=TEXT)
    center, radius = height / 2, 19 * SCALE
    pen.ellipse((middle - radius, center - radius, middle + radius, center + radius), fill=TEXT)
    for side in (-1, 1):
        tip, foot = middle + side * 12 * SCALE, middle + side * 5 * SCALE
        corners = [(tip, center), (foot, center - 7 * SCALE), (foot, center + 7 * SCALE)]
        pen.polygon(corners, fill=BACKGROUND)
    _pill(pen, (16, PICTURE_HEIGHT - 30), "full attention", DENSE, anchor="lm")
    _pill(pen, (SIZE - 16, PICTURE_HEIGHT - 30), "sparse", SPARSE, anchor="rm")


def _covering(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of `frame`, scaled so that it fills `size`."""
    width, height = size
    scale = max(width / frame.width, height / frame.height)
    scaled = frame.resize(
        (math.ceil(frame.width * scale), math.ceil(frame.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def _cells(pen: ImageDraw.ImageDraw, shares: Sequence[float | None], picture: Picture) -> None:
    """The strip of steps or layers with its captions."""
    split = picture.split
    top, bottom = 534, 576
    count = len(shares)
    gap = 6 if count <= 8 else 3
    split_gap = 14 if split else 0
    cell = (RIGHT - LEFT - gap * (count - 1) - split_gap) / count
    x: float = LEFT
    for index, sparsity in enumerate(shares):
        if split and index == split:
            x += split_gap
        box = (x * SCALE, top * SCALE, (x + cell) * SCALE, bottom * SCALE)
        radius = (6 if cell > 20 else 3) * SCALE
        pen.rounded_rectangle(box, radius, fill=EMPTY if sparsity else DENSE)
        if sparsity:
            fill_top = bottom - (bottom - top) * sparsity
            pen.rounded_rectangle((box[0], fill_top * SCALE, box[2], box[3]), radius, fill=SPARSE)
        x += cell + gap
    below = bottom + 5
    if picture.is_tuned:
        _text(pen, (LEFT, below), "first layer", 16, QUIET)
        _text(pen, (RIGHT, below), "last layer", 16, QUIET, anchor="ra")
    elif split:
        middle = LEFT + (RIGHT - LEFT) * split / count
        for start, end, half in zip((LEFT, middle), (middle, RIGHT), picture.halves, strict=True):
            _text(pen, ((start + end) / 2, below), half, 16, QUIET, anchor="ma")
    else:
        _text(pen, (LEFT, below), "first step", 16, QUIET)
        _text(pen, (RIGHT, below), "last step", 16, QUIET, anchor="ra")


def _pill(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, color: Color, anchor: str
) -> None:
    """A word on a dark rounded plate; `at` is its inner edge, at mid height."""
    width = ImageFont.load_default(18 * SCALE).getlength(text) / SCALE + 24
    left = at[0] if anchor[0] == "l" else at[0] - width
    box = (left * SCALE, (at[1] - 17) * SCALE, (left + width) * SCALE, (at[1] + 17) * SCALE)
    pen.rounded_rectangle(box, 17 * SCALE, fill=BACKGROUND)
    _text(pen, (left + width / 2, at[1]), text, 18, color, anchor="mm")


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
