"""Attention calls of one forward, counted by the thread that runs it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor

from .run_record import Block


class ForwardTally:
    """Attention calls of one forward. Nothing here waits for the GPU except `finish`.

    Attributes:
        sparse: sparse calls by block.
        dense: dense calls by (block, reason); only calls that could have been sparse.
        other_lengths: (query tokens, key tokens) of the calls that are not over the video tokens.
    """

    def __init__(self, device: torch.device, step: int | None) -> None:
        self.step = step
        self.sparse: Counter[Block] = Counter()
        self.dense: Counter[tuple[Block, str]] = Counter()
        self.other_lengths: set[tuple[int, int]] = set()
        self._densities: list[tuple[Block, Tensor]] = []
        # Allocated here, before the transformer runs: newer cores may record the allocations of a
        # block for replay, and this tensor outlives the block that writes to it.
        self._probe = torch.zeros((), dtype=torch.float32, device=device)

    def add_sparse(self, block: Block, out: Tensor, density: Tensor) -> None:
        """Count a sparse call; `density` is a 0-dim tensor on the device, read later."""
        if out.dtype == torch.float16:
            # HunyuanVideo blocks run nan_to_num in fp16, so the forward's result cannot tell.
            self._probe.add_(out.sum(dtype=torch.float32))
        self._densities.append((block, density))
        self.sparse[block] += 1

    def add_dense(self, block: Block, reason: str) -> None:
        """Count a dense call and why it was dense."""
        self.dense[block, reason] += 1

    @property
    def seen(self) -> bool:
        """Whether any call over the video tokens came by."""
        return bool(self.sparse or self.dense)

    def finish(self, output: Any) -> tuple[dict[Block, float], bool]:
        """Wait for the device once: (sums of densities by block, whether all values are finite)."""
        probe = self._probe
        if isinstance(output, Tensor):
            # A sum is finite only if every addend is, and reads the latent once.
            probe = probe + output.sum(dtype=torch.float32).to(probe.device)
        densities = [density.to(probe.device, torch.float32) for _, density in self._densities]
        *values, probed = torch.stack([*densities, probe]).tolist()
        sums: defaultdict[Block, float] = defaultdict(float)
        for (block, _), value in zip(self._densities, values, strict=True):
            sums[block] += value
        return dict(sums), math.isfinite(probed)
