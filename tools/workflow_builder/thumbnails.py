"""Thumbnails for the template browser: what the workflow makes, and where attention is sparse.

A picture shows three frames of a clip cut into tiles. One tile asks; the tiles it attends to
exactly keep their colour, the skipped ones are dimmed. Their share is the workflow's sparsity.
Below stands one cell per sampling step: dense steps are light, sparse ones filled as far as
they skip work.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from . import scenes

SIZE = 640
# Everything is drawn at this multiple of the final size and scaled down, which smooths the edges.
SCALE = 3
FRAMES, COLUMNS, ROWS = 3, 10, 6

BACKGROUND = ((24, 28, 40), (13, 15, 23))
TEXT, QUIET = (245, 247, 250), (160, 170, 188)
QUERY, INK = (255, 214, 74), (20, 28, 40)
DENSE, SPARSE, EMPTY = (228, 232, 240), (58, 178, 172), (44, 52, 70)


@dataclass(frozen=True)
class Picture:
    """What one thumbnail says.

    `sparsity` is the share of dimmed tiles, `steps` the sparsity of each sampling step (`None` is
    a dense step), `split` the number of steps of the first expert (0: there is one model).
    """

    family: str
    task: str
    detail: str
    scene: str
    sparsity: float
    steps: tuple[float | None, ...]
    split: int = 0


def draw(picture: Picture) -> Image.Image:
    """The finished thumbnail, RGB, `SIZE` x `SIZE`."""
    edge = SIZE * SCALE
    canvas = scenes.sky(edge, edge, *BACKGROUND)
    _clip(canvas, picture)
    pen = ImageDraw.Draw(canvas)
    # The template browser puts a badge over the upper left corner.
    _text(pen, (36, 130), picture.family, 52, TEXT, anchor="ls")
    _text(pen, (36, 170), picture.task, 27, TEXT, anchor="ls")
    _text(pen, (SIZE - 36, 170), picture.detail, 20, QUIET, anchor="rs")
    box = (36 * SCALE, 517 * SCALE, 54 * SCALE, 535 * SCALE)
    pen.rectangle(box, outline=QUERY, width=3 * SCALE)
    _text(pen, (64, 526), "attends exactly to the bright tiles", 18, QUIET, anchor="lm")
    _steps(pen, picture)
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _clip(canvas: Image.Image, picture: Picture) -> None:
    """Three frames, the first at the back on the left, the last in front."""
    width, height = 430 * SCALE, 258 * SCALE
    kept = _kept_tiles(picture.sparsity)
    for frame in range(FRAMES):
        image = scenes.render(picture.scene, width, height, frame / (FRAMES - 1))
        _dim_tiles(image, kept[frame], is_query=frame == FRAMES - 1)
        left, top = (36 + 69 * frame) * SCALE, (188 + 30 * frame) * SCALE
        shadow = Image.new("L", canvas.size, 0)
        ImageDraw.Draw(shadow).rectangle(
            (left - 4 * SCALE, top - 4 * SCALE, left + width + 4 * SCALE, top + height + 8 * SCALE),
            fill=170,
        )
        canvas.paste((0, 0, 0), mask=shadow.filter(ImageFilter.GaussianBlur(8 * SCALE)))
        mask = Image.new("L", image.size, 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), 10 * SCALE, fill=255)
        canvas.paste(image, (left, top), mask)


def _kept_tiles(sparsity: float) -> list[set[tuple[int, int]]]:
    """Per frame the tiles that stay exact: the query's surroundings, then chance, by budget."""
    rng = random.Random(11)
    query = _query_tile()
    scored = []
    for frame in range(FRAMES):
        for row in range(ROWS):
            for column in range(COLUMNS):
                near = abs(row - query[0]) + abs(column - query[1]) + 1.2 * (FRAMES - 1 - frame)
                scored.append((near + rng.uniform(0.0, 6.0), frame, (row, column)))
    budget = round((1 - sparsity) * len(scored))
    kept: list[set[tuple[int, int]]] = [set() for _ in range(FRAMES)]
    for _, frame, tile in sorted(scored)[:budget]:
        kept[frame].add(tile)
    kept[FRAMES - 1].add(query)
    return kept


def _query_tile() -> tuple[int, int]:
    return (3, 6)


def _dim_tiles(image: Image.Image, kept: set[tuple[int, int]], *, is_query: bool) -> None:
    """Darken the tiles that are not in `kept`, draw the tile grid, and mark the asking tile."""
    width, height = image.size
    veil = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(veil)
    boxes = {
        (row, column): (
            round(column * width / COLUMNS),
            round(row * height / ROWS),
            round((column + 1) * width / COLUMNS),
            round((row + 1) * height / ROWS),
        )
        for row in range(ROWS)
        for column in range(COLUMNS)
    }
    for tile, box in boxes.items():
        if tile not in kept:
            pen.rectangle(box, fill=132)
    image.paste((22, 27, 42), mask=veil)
    grid = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(grid)
    for box in boxes.values():
        pen.rectangle(box, outline=70, width=SCALE)
    image.paste((255, 255, 255), mask=grid)
    if is_query:
        ImageDraw.Draw(image).rectangle(boxes[_query_tile()], outline=QUERY, width=4 * SCALE)


def _steps(pen: ImageDraw.ImageDraw, picture: Picture) -> None:
    """The step strip at the bottom, with a legend above it."""
    left, right, top, bottom = 36, SIZE - 36, 556, 596
    count = len(picture.steps)
    gap = 6 if count <= 8 else 3
    split_gap = 14 if picture.split else 0
    cell = (right - left - gap * (count - 1) - split_gap) / count
    x: float = left
    for index, sparsity in enumerate(picture.steps):
        if picture.split and index == picture.split:
            x += split_gap
        box = (x * SCALE, top * SCALE, (x + cell) * SCALE, bottom * SCALE)
        radius = (6 if cell > 20 else 3) * SCALE
        if sparsity is None:
            pen.rounded_rectangle(box, radius, fill=DENSE)
        else:
            pen.rounded_rectangle(box, radius, fill=EMPTY)
            fill_top = bottom - (bottom - top) * sparsity
            pen.rounded_rectangle((box[0], fill_top * SCALE, box[2], box[3]), radius, fill=SPARSE)
        if cell > 60:
            label = "dense" if sparsity is None else f"{sparsity:.0%} sparse"
            # Near the bottom, where even a low fill is behind the letters.
            _text(pen, (x + cell / 2, bottom - 13), label, 19, INK, anchor="mm")
        x += cell + gap
    first, last = picture.steps[0], picture.steps[-1]
    if picture.split:
        before = (count - picture.split) / count
        middle = left + (right - left) * (1 - before)
        _text(pen, ((left + middle) / 2, bottom + 8), "high noise", 18, QUIET, anchor="ma")
        _text(pen, ((middle + right) / 2, bottom + 8), "low noise", 18, QUIET, anchor="ma")
    elif first is None and last is not None:
        dense = sum(step is None for step in picture.steps)
        word = "step" if dense == 1 else "steps"
        _text(pen, (left, bottom + 8), f"{dense} dense {word}", 18, QUIET)
        _text(
            pen,
            (right, bottom + 8),
            f"{count - dense} steps {last:.0%} sparse",
            18,
            SPARSE,
            anchor="ra",
        )


def _text(
    pen: ImageDraw.ImageDraw,
    position: tuple[float, float],
    text: str,
    size: int,
    color: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    # Pillow's built-in font: no font file to depend on.
    font = ImageFont.load_default(size * SCALE)
    pen.text((position[0] * SCALE, position[1] * SCALE), text, fill=color, font=font, anchor=anchor)
