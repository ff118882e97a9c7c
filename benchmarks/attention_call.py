"""What the benchmarks of one attention call share: shapes of models, dense torch, exact rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..rspa_core import TokenLayout

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Largest relative L2 difference of the kernels to the fp32 reference."""


@dataclass(frozen=True)
class Shape:
    """One attention call of a model: latent grid, heads, context tokens (all behind the video)."""

    grid: tuple[int, int, int]
    heads: int
    context: int = 0

    @property
    def layout(self) -> TokenLayout:
        video = self.grid[0] * self.grid[1] * self.grid[2]
        return TokenLayout(self.grid, video + self.context)


SHAPES = {
    "wan-480p": Shape((21, 30, 52), 40),
    "wan-720p": Shape((21, 45, 80), 40),
    "wan22-5b": Shape((31, 22, 40), 24),
    "hunyuan-720p": Shape((33, 45, 80), 24, context=256),
    "hunyuan15-720p": Shape((31, 45, 80), 16, context=256),
    "odd": Shape((7, 23, 37), 3, context=77),
}


def sdpa(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Torch's scaled dot product attention with this backend and no other."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return call


def exact_rows(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(c q k^T) v in fp32 with all scores in memory, for a few query rows.

    Args:
        q: `[B, H, R, D]`.
        k, v: `[B, H, N, D]`.
        allowed: keys that take part, bool, broadcast to `[B, H, R, N]`; None for all.

    Returns:
        `[B, H, R, D]` fp32.
    """
    scores = q.shape[-1] ** -0.5 * (q.float() @ k.float().mT)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ v.float()


def print_stages(label: str, call: Callable[[], object]) -> None:
    """Print the time of one call by kernel, from the CUDA profiler of torch."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    total: dict[str, float] = {}
    for event in profile.events():
        total[event.name] = total.get(event.name, 0.0) + event.device_time / 1e3
    print(f"stages of {label}:")
    for kernel, milliseconds in sorted(total.items(), key=lambda item: -item[1])[:9]:
        print(f"  {milliseconds:8.3f} ms  {kernel[:90]}")
