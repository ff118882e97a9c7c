"""One attention call: its sizes in real models, its inputs, and what its output is held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...rspa_core import TokenLayout, relative_l2
from ..synthetic import synthetic_qkv

HEAD_DIM = 128


@dataclass(frozen=True)
class Shape:
    """One attention call of a model: latent grid, heads, context tokens (all behind the video)."""

    grid: tuple[int, int, int]
    heads: int
    context: int = 0

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(self.grid, math.prod(self.grid) + self.context)


SHAPES = {
    "wan-480p": Shape((21, 30, 52), 40),
    "wan-720p": Shape((21, 45, 80), 40),
    "wan22-5b": Shape((31, 22, 40), 24),
    "hunyuan-720p": Shape((33, 45, 80), 24, context=256),
    "hunyuan15-720p": Shape((31, 45, 80), 16, context=256),
    "odd": Shape((7, 23, 37), 3, context=77),
}


@dataclass(frozen=True)
class Problem:
    """`q, k, v [B, H, N, D]` and where the video is among the N tokens."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def dense_flops(self) -> float:
        batch, heads, length, head_dim = self.q.shape
        return 4.0 * batch * heads * length**2 * head_dim

    def pair_density(self, video_density: float) -> float:
        """Share of all query-key pairs if that of the video pairs is this; context is exact."""
        video, length = self.layout.video_length, self.layout.length
        return (video_density * video**2 + length**2 - video**2) / length**2


def make_problem(shape: Shape, dtype: torch.dtype, device: torch.device) -> Problem:
    """Synthetic heads of all kinds in turn at this shape."""
    qkv = synthetic_qkv("mixed", shape.grid, shape.heads, HEAD_DIM, shape.context, dtype, device)
    return Problem(*qkv, shape.layout)


def sdpa(*backends: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Torch's scaled dot product attention with the first of these backends that takes a call."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(list(backends), set_priority=True):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return call


def exact_rows(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(c q k^T) v in fp32 with all scores in memory, for a few query rows.

    Args:
        q: `[..., R, D]`.
        k, v: `[..., N, D]`.
        allowed: keys that take part, bool, broadcast to `[..., R, N]`; None for all.

    Returns:
        `[..., R, D]` fp32.
    """
    scores = q.shape[-1] ** -0.5 * (q.float() @ k.float().mT)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ v.float()


def difference_reason(out: Tensor, expected: Tensor, limit: float, what: str) -> str:
    """What is wrong with `out`: not finite or too far from `expected`; "" if nothing."""
    if not out.isfinite().all():
        return "output is not finite"
    difference = relative_l2(out, expected)
    # Also false for NaN.
    return "" if difference < limit else f"{difference:.1e} from {what}, allowed is {limit:g}"
