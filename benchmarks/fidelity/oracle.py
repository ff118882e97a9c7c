"""Full attention of some query rows in fp32, and how far an output is from it, head by head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..calls.problem import exact_rows
from .inputs import Inputs

CHUNK_BYTES = {"cpu": 1 << 25, "cuda": 1 << 29}
"""Scores held at a time: bounds the memory, does not change the result."""


class Oracle:
    """Full attention of the chosen rows.

    Attributes:
        rows: `[R]` int64, raster indices of the query rows, ascending.
        out: `[H, R, D]` fp32.
    """

    def __init__(self, inputs: Inputs, rows: int, seed: int = 0) -> None:
        """Compute it; on a GPU products in tf32 have to be off (they are by default).

        Args:
            inputs: the heads.
            rows: how many query rows, drawn at random; 0 for all. All variants get the same ones.
            seed: of the rows.

        Raises:
            ValueError: `rows` is negative, or tf32 is on.
        """
        if rows < 0:
            raise ValueError(f"rows = {rows} is not allowed: 0 (all) or more")
        device, length = inputs.q.device, inputs.layout.length
        if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
            raise ValueError("allow_tf32 = True is not allowed: the oracle needs fp32 products")
        chosen = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
        self.rows = chosen[: rows or length].sort().values.to(device)
        outputs = []
        for q, k, v in heads_of(inputs):
            parts = row_chunks(q[self.rows], length)
            outputs.append(torch.cat([exact_rows(part, k, v) for part in parts]))
        self.out = torch.stack(outputs)


def heads_of(inputs: Inputs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """q, k, v `[N, D]` fp32 of every head."""
    for head in range(inputs.q.shape[1]):
        q, k, v = (x[0, head].float() for x in inputs.qkv)
        yield q, k, v


def row_chunks(rows: Tensor, keys: int) -> Iterator[Tensor]:
    """`rows [R, ...]` in parts whose scores with `keys` keys fit into memory."""
    yield from rows.split(max(1, CHUNK_BYTES.get(rows.device.type, 1 << 28) // (4 * keys)))


def head_metrics(out: Tensor, exact: Tensor) -> dict[str, list[float]]:
    """How far every head's output is from the exact one.

    relative_l2 ‖o - d‖₂ / ‖d‖₂, and gain <o, d> / <d, d>, which is below 1 where an output is too
    small: steps of the sampler add that up, where errors of no direction average out.

    Args:
        out, exact: `[H, R, D]`, any float dtype.

    Returns:
        By name, one number per head.

    Raises:
        ValueError: shapes differ.
    """
    if out.shape != exact.shape:
        raise ValueError(
            f"shape of out = {tuple(out.shape)} is not allowed: that of exact, {tuple(exact.shape)}"
        )
    o, d = out.flatten(1).double(), exact.flatten(1).double()
    return {
        "relative_l2": ((o - d).norm(dim=-1) / d.norm(dim=-1)).tolist(),
        "gain": ((o * d).sum(-1) / d.square().sum(-1)).tolist(),
    }
