"""Where the video sits in the token sequence, and how it is cut into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import ConfigError, check_integer


@dataclass(frozen=True)
class TokenLayout:
    """One attention call's sequence: context tokens, the video span, context tokens.

    Attributes:
        grid: latent grid (T, H, W) in tokens; the span holds it in raster order.
        length: tokens in the whole sequence.
        video_start: index of the first video token.

    Raises:
        ConfigError: the grid is empty or the span does not fit into the sequence.
    """

    grid: tuple[int, int, int]
    length: int
    video_start: int = 0

    def __post_init__(self) -> None:
        check_grid(self.grid)
        check_integer("length", self.length, 1)
        check_integer("video_start", self.video_start, 0)
        if self.video_end > self.length:
            raise ConfigError(
                "length",
                self.length,
                f"at least video_start + T*H*W = {self.video_start} + {self.video_length}",
            )

    @property
    def video_length(self) -> int:
        return math.prod(self.grid)

    @property
    def video_end(self) -> int:
        return self.video_start + self.video_length

    @property
    def context_length(self) -> int:
        return self.length - self.video_length

    def num_blocks(self, block: int) -> int:
        """Blocks of `block` tokens that cover the video span; the last one may be ragged."""
        return -(-self.video_length // block)


def check_grid(grid: object) -> None:
    """Raise `ConfigError` unless `grid` is three whole numbers of 1 or more."""
    if isinstance(grid, tuple) and len(grid) == 3:
        if all(type(size) is int and size >= 1 for size in grid):
            return
    raise ConfigError("grid", grid, "a tuple (T, H, W) of three whole numbers, 1 or more")
