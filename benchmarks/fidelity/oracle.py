"""Exact attention of some query rows in fp32, and how far an output is from it, head by head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...rspa_core import inverse_order, token_order
from ...rspa_core.pooling import split_blocks
from .inputs import Inputs

CHUNK_BYTES = {"cpu": 1 << 25, "cuda": 1 << 29}
"""Scores held at a time: bounds the memory, does not change the result."""

SMALLEST_BLOCK = 64


class Oracle:
    """Full attention of the chosen rows, and where its mass lies.

    Attributes:
        rows: `[R]` int64, raster indices of the query rows, ascending.
        out: `[H, R, D]` fp32.
    """

    def __init__(self, inputs: Inputs, rows: int, orders: tuple[str, ...], seed: int = 0) -> None:
        """Compute it; on a GPU products in tf32 have to be off (they are by default).

        Args:
            inputs: the heads.
            rows: how many query rows, drawn at random; 0 for all. All variants get the same ones.
            orders: token orders for which `recall` will be asked.
            seed: of the rows.

        Raises:
            ValueError: `rows` is negative, or tf32 is on.
        """
        if rows < 0:
            raise ValueError(f"rows = {rows} is not allowed: 0 (all) or more")
        device = inputs.q.device
        if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
            raise ValueError("allow_tf32 = True is not allowed: the oracle needs fp32 products")
        self.layout = inputs.layout
        length = inputs.layout.length
        chosen = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
        self.rows = chosen[: rows or length].sort().values.to(device)
        indices = {order: token_order(self.layout.grid, order).to(device) for order in orders}
        outputs = []
        masses: dict[str, list[Tensor]] = {order: [] for order in orders}
        for q, k, v in heads_of(inputs):
            parts = []
            for part in row_chunks(q[self.rows], length):
                probs = (q.shape[-1] ** -0.5 * (part @ k.mT)).softmax(-1)
                parts.append(probs @ v)
                for order, index in indices.items():
                    blocks = split_blocks(probs[:, index, None], SMALLEST_BLOCK)
                    masses[order].append(blocks.sum((-1, -2)))
            outputs.append(torch.cat(parts))
        self.out = torch.stack(outputs)
        # [H, R, blocks]: what every row gives to every smallest block.
        self._mass = {
            order: torch.cat(found).unflatten(0, (len(outputs), -1))
            for order, found in masses.items()
        }

    def row_blocks(self, order: str, q_block: int) -> Tensor:
        """Q-block of every chosen row, `[R]` int64."""
        position = inverse_order(self.layout.grid, order).to(self.rows.device)
        return position[self.rows] // q_block

    def recall(self, mask: Tensor, order: str, q_block: int, kv_block: int) -> list[float]:
        """Share of the true attention mass that lies on the blocks of a critical set, by head.

        Args:
            mask: `[H, NQ, NK]` bool, in the token order.
            order, q_block, kv_block: how blocks are cut; `kv_block` a multiple of 64.
        """
        mass = self._mass[order]
        mass = split_blocks(mass[..., None], kv_block // SMALLEST_BLOCK).sum((-1, -2))
        kept = mask[:, self.row_blocks(order, q_block)]
        return (mass * kept).sum(-1).mean(-1).tolist()


def heads_of(inputs: Inputs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """q, k, v `[N, D]` fp32 of every head."""
    for head in range(inputs.q.shape[1]):
        q, k, v = (x[0, head].float() for x in inputs.qkv)
        yield q, k, v


def row_chunks(rows: Tensor, keys: int) -> Iterator[Tensor]:
    """`rows [R, D]` in parts whose scores with `keys` keys fit into memory."""
    yield from rows.split(max(1, CHUNK_BYTES.get(rows.device.type, 1 << 28) // (4 * keys)))


def head_metrics(out: Tensor, exact: Tensor) -> dict[str, list[float]]:
    """How far every head's output is from the exact one.

    relative_l2 ‖o - d‖₂ / ‖d‖₂, relative_l1 Σ|o - d| / Σ|d|, cosine <o, d> / (‖o‖ ‖d‖) and gain
    <o, d> / <d, d>, which is below 1 where an output is too small.

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
    difference = o - d
    product = (o * d).sum(-1)
    return {
        "relative_l2": (difference.norm(dim=-1) / d.norm(dim=-1)).tolist(),
        "relative_l1": (difference.abs().sum(-1) / d.abs().sum(-1)).tolist(),
        "cosine": (product / (o.norm(dim=-1) * d.norm(dim=-1))).tolist(),
        "gain": (product / d.square().sum(-1)).tolist(),
    }
