"""Pictures that the nodes draw: their canvas, colours and font."""

from __future__ import annotations

from functools import cached_property
from typing import Self

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

OVERSAMPLING = 2
"""Drawn at this scale and reduced, which smooths the lines and the text."""
HATCH_PITCH = 6
DASH = 6
LINE_HEIGHT = 22
MAX_LINES = 6
"""Of one text; the whole of it is in the summary."""
KNOWN_CHARACTERS = "·…"
"""Beyond ASCII, what Pillow's own font has of the characters we use."""

BACKGROUND = (30, 31, 36)
GRID = (56, 58, 66)
TEXT = (232, 233, 237)
MUTED = (158, 161, 172)
BAR_LOW, BAR_HIGH = (38, 112, 138), (72, 202, 196)
DENSE = (222, 160, 74)
DENSE_FILL = (52, 46, 38)

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


class Canvas:
    """Drawing in pixels of the finished picture on the larger one.

    A picture whose height depends on what is drawn starts too high and is `cut` at the end.
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)

    @classmethod
    def empty(cls, width: int, height: int) -> Self:
        """A canvas for a finished picture of `width` x `height` pixels."""
        size = (width * OVERSAMPLING, height * OVERSAMPLING)
        return cls(Image.new("RGB", size, BACKGROUND))

    def finished(self) -> Image.Image:
        """The picture, reduced to its finished size."""
        size = (self.image.width // OVERSAMPLING, self.image.height // OVERSAMPLING)
        return self.image.resize(size, Image.Resampling.LANCZOS)

    def text(self, at: Point, text: str, size: int, color: Color, anchor: str) -> None:
        x, y = at
        at = (x * OVERSAMPLING, y * OVERSAMPLING)
        self._draw.text(at, text, fill=color, font=font(size), anchor=anchor)

    def upright(self, center: Point, text: str, size: int, color: Color) -> None:
        """Text that reads from bottom to top."""
        face = font(size)
        left, top, right, bottom = (round(edge) for edge in face.getbbox(text))
        label = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(label).text((-left, -top), text, fill=255, font=face)
        label = label.rotate(90, expand=True)
        x, y = self._scaled(center)
        self.image.paste(color, (x - label.width // 2, y - label.height // 2), label)

    def line(self, start: Point, end: Point, color: Color, width: float) -> None:
        ends = [self._scaled(start), self._scaled(end)]
        self._draw.line(ends, fill=color, width=round(width * OVERSAMPLING))

    def dashed(self, start: Point, end: Point, color: Color, width: float) -> None:
        """A level line of dashes."""
        (left, y), (right, _) = start, end
        while left < right:
            self.line((left, y), (min(left + DASH, right), y), color, width)
            left += 2 * DASH

    def box(self, box: Box, color: Color) -> None:
        """A filled rectangle."""
        self._draw.rectangle(self._scaled(box), fill=color)

    def bar(self, box: Box, value: float) -> None:
        """A bar whose color follows its value."""
        blend = zip(BAR_LOW, BAR_HIGH, strict=True)
        red, green, blue = (round(low + value * (high - low)) for low, high in blend)
        self.box(box, (red, green, blue))

    def dot(self, center: Point, radius: float, color: Color) -> None:
        """A filled circle."""
        x, y = center
        edges = self._scaled((x - radius, y - radius, x + radius, y + radius))
        self._draw.ellipse(edges, fill=color)

    def fill(self, box: Box, color: Color) -> None:
        """A box of one color, at least as wide and high as a pixel of the larger picture."""
        self.image.paste(color, _pixels(box))

    def dense(self, box: Box) -> None:
        """A box of full attention: diagonal lines, which run on from box to box."""
        scaled = _pixels(box)
        self.image.paste(self._hatch.crop(scaled), scaled[:2])

    def note(self, at: Point, text: str, size: int, fill: Color, color: Color) -> None:
        """Text centered above `at` on a ground of its own, readable on lines and bars."""
        half = text_width(text, size) / 2 + 2
        x, y = at
        self.fill((x - half, y - size + 1, x + half, y + 1), fill)
        self.text((x, y), text, size, color, "ms")

    def lines(
        self, left: float, y: float, text: str, size: int, color: Color, right: float
    ) -> float:
        """Text below `y` in as many lines as it needs, up to `MAX_LINES`; the last baseline."""
        lines = wrapped(text, size, right - left)
        if len(lines) > MAX_LINES:
            lines[MAX_LINES - 1 :] = ["…"]
        for line in lines:
            y += LINE_HEIGHT
            self.text((left, y), line, size, color, "ls")
        return y

    def cut(self, height: float) -> Image.Image:
        """The finished picture down to `height`."""
        bottom = min(round(height) * OVERSAMPLING, self.image.height)
        self.image = self.image.crop((0, 0, self.image.width, bottom))
        return self.finished()

    @cached_property
    def _hatch(self) -> Image.Image:
        """Lines over the whole picture, so that they run on from cell to cell."""
        image = Image.new("RGB", self.image.size, DENSE_FILL)
        draw = ImageDraw.Draw(image)
        for offset in range(-image.height, image.width, HATCH_PITCH * OVERSAMPLING):
            draw.line((offset, image.height, offset + image.height, 0), DENSE, OVERSAMPLING)
        return image

    def _scaled(self, values: tuple[float, ...]) -> tuple[int, ...]:
        return tuple(round(value * OVERSAMPLING) for value in values)


class CompactCanvas(Canvas):
    """The same for the picture that a small node shows of itself, 320 pixels wide on the screen."""

    WIDTH, MAX_HEIGHT = 640, 1200
    MARGIN, RIGHT = 20, 620
    """Left and right edge of the text."""
    SIZE, LARGE = 24, 36
    """Of the text, in pixels: 12 and 18 on the screen."""
    LINE = 32
    MAX_LINES = 4

    @classmethod
    def blank(cls) -> Self:
        """As high as any picture may become."""
        return cls.empty(cls.WIDTH, cls.MAX_HEIGHT)

    def paragraph(self, y: float, text: str, size: int, color: Color) -> float:
        """Text below `y` in up to `MAX_LINES` lines; the bottom of the last one."""
        lines = wrapped(text, size, self.RIGHT - self.MARGIN)
        if len(lines) > self.MAX_LINES:
            lines[self.MAX_LINES - 1 :] = ["…"]
        height = self.LINE * size / self.SIZE
        for line in lines:
            y += height
            self.text((self.MARGIN, y - height / 4), line, size, color, "ls")
        return y


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same picture on every machine."""
    return ImageFont.load_default(size * OVERSAMPLING)


def text_width(text: str, size: int) -> float:
    """Width of a line of text in pixels of the finished picture."""
    return font(size).getlength(text) / OVERSAMPLING


def as_tensor(picture: Image.Image) -> Tensor:
    """ComfyUI's IMAGE of an RGB picture: `[1, H, W, 3]` fp32, 0 to 1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0).unsqueeze(0)


def drawable(text: str) -> str:
    """`text` with a question mark for every character that would be drawn as an empty box."""
    known = (each if each.isascii() or each in KNOWN_CHARACTERS else "?" for each in text)
    return "".join(known)


def wrapped(text: str, size: int, width: float) -> list[str]:
    """Lines of at most `width` pixels; items between "·" stay together where they fit."""
    pieces: list[str] = []
    for item in drawable(text).split(" · "):
        fits = " · " in text and text_width(item, size) <= width
        pieces += [item] if fits else item.split()
        pieces.append("·")
    lines = [""]
    for piece in pieces[:-1]:
        longer = f"{lines[-1]} {piece}".strip()
        if not lines[-1] or text_width(longer, size) <= width:
            lines[-1] = longer
        elif piece != "·":
            lines.append(piece)
    return [fitted(line.rstrip(" ·"), size, width) for line in lines]


def fitted(text: str, size: int, width: float) -> str:
    """`text`, cut off with "…" where it is longer than `width` pixels."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def _pixels(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(edge * OVERSAMPLING) for edge in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)
