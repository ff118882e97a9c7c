"""Canvas of the report: filled boxes, hatching that runs on from box to box, wrapped text."""

from __future__ import annotations

from functools import cached_property

from PIL import Image, ImageDraw

from .canvas import DENSE, DENSE_FILL, OVERSAMPLING, Box, Canvas, Color, Point, font

HATCH_PITCH = 6
LINE_HEIGHT = 22
MAX_LINES = 6
"""Of one text; the whole of it is in the summary."""
KNOWN_CHARACTERS = "·…"
"""Beyond ASCII, what Pillow's own font has of the characters we use."""


class ReportCanvas(Canvas):
    """Drawing in pixels of the finished picture; it starts too high and is cut at the end."""

    @classmethod
    def empty(cls, width: int, height: int) -> ReportCanvas:
        return cls(super().empty(width, height).image)

    def fill(self, box: Box, color: Color) -> None:
        """A box of one color, at least as wide and high as a pixel of the larger picture."""
        self.image.paste(color, _pixels(box))

    def dense(self, box: Box) -> None:
        """A box of full attention: diagonal lines."""
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


def text_width(text: str, size: int) -> float:
    """Width of a line in pixels of the finished picture."""
    return font(size).getlength(text) / OVERSAMPLING


def _pixels(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(edge * OVERSAMPLING) for edge in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)
