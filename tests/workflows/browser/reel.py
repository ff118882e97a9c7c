"""Puts pictures of a page together to a film: mouse pointer, a line below, animated WebP."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BAR = 48
"""Height of the line below the picture, pixels."""
LETTERS = 22
NOTE_LETTERS = 16
BACKGROUND = "#15161c"
WHITE = "#f2f2f2"
GREY = "#9a9aa4"
ACCENT = "#45c8c1"
MAX_BYTES = 3_000_000
QUALITY = 72
# An arrow with its tip at 0, 0.
ARROW = ((0, 0), (0, 22), (5, 17), (9, 26), (13, 24), (9, 16), (16, 16))
RING = 18
"""Radius of the circle around a pointer that is pressed."""

Place = tuple[float, float]


class Reel:
    """The frames of a film, each with the time it stays.

    Attributes:
        caption: (number, words) below the frames that are added from now on.
        note: small print at the end of that line.
    """

    def __init__(self, note: str) -> None:
        self.caption = ("", "")
        self.note = note
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    @property
    def seconds(self) -> float:
        """Length of the film."""
        return sum(self.times) / 1000

    def add(
        self, picture: Image.Image, ms: int, pointer: Place | None, is_pressed: bool = False
    ) -> None:
        """Append a picture of the page; one that equals the last only makes that stay longer."""
        frame = Image.new("RGB", (picture.width, picture.height + BAR), BACKGROUND)
        frame.paste(picture, (0, 0))
        draw = ImageDraw.Draw(frame)
        if pointer is not None:
            draw_pointer(draw, pointer, is_pressed)
        # What the pointer draws below the picture goes under the line.
        draw.rectangle((0, picture.height, frame.width, frame.height), fill=BACKGROUND)
        middle = picture.height + BAR // 2
        number, words = self.caption
        large = ImageFont.load_default(LETTERS)
        draw.text((20, middle), number, ACCENT, large, anchor="lm")
        draw.text((46 if number else 20, middle), words, WHITE, large, anchor="lm")
        small = ImageFont.load_default(NOTE_LETTERS)
        draw.text((frame.width - 20, middle), self.note, GREY, small, anchor="rm")
        if self.frames and frame.tobytes() == self.frames[-1].tobytes():
            self.times[-1] += ms
            return
        self.frames.append(frame)
        self.times.append(ms)

    def save(self, path: Path, quality: int = QUALITY, max_bytes: int = MAX_BYTES) -> None:
        """Write the film, which starts again when it is over.

        Raises:
            ValueError: the file is larger than `max_bytes`; it is there all the same.
        """
        first, *others = self.frames
        first.save(
            path,
            save_all=True,
            append_images=others,
            duration=self.times,
            loop=0,
            quality=quality,
            method=6,
        )
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size:,} bytes, at most {max_bytes:,}")


def draw_pointer(draw: ImageDraw.ImageDraw, place: Place, is_pressed: bool) -> None:
    """Draw the mouse pointer with its tip at `place`."""
    x, y = place
    if is_pressed:
        box = (x - RING, y - RING, x + RING, y + RING)
        draw.ellipse(box, outline=ACCENT, width=4)
    draw.polygon([(x + dx, y + dy) for dx, dy in ARROW], fill="white", outline="black", width=2)
