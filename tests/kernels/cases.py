"""Inputs shared by the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rectified_spaattn.rspa_core import SparseConfig, TokenLayout


@dataclass(frozen=True)
class Case:
    """One attention problem; `context` is the number of tokens before and after the video."""

    grid: tuple[int, int, int]
    config: SparseConfig
    context: tuple[int, int] = (0, 0)
    batch: int = 1
    heads: int = 1
    head_dim: int = 64
    strided: bool = False

    @property
    def layout(self) -> TokenLayout:
        before, after = self.context
        video = self.grid[0] * self.grid[1] * self.grid[2]
        return TokenLayout(self.grid, before + video + after, before)

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int) -> list[Tensor]:
        """Fresh q, k, v `[B, H, N, D]`; with `strided` views that are not contiguous."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.heads, self.layout.length, self.head_dim)
        tensors = []
        for _ in range(3):
            x = torch.randn(shape, generator=generator).to(device, dtype)
            if self.strided:
                # As Wan calls: stored [B, N, H, D + 8], every second token of a longer buffer.
                store = torch.zeros(
                    (self.batch, 2 * shape[2], self.heads, self.head_dim + 8),
                    dtype=dtype,
                    device=device,
                )
                view = store[:, ::2, :, : self.head_dim].transpose(1, 2)
                view.copy_(x)
                x = view
            tensors.append(x)
        return tensors
