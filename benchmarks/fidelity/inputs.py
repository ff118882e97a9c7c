"""Attention heads with a name for what they look at, their full attention in fp32, and how far an
output is from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...rspa_core import TokenLayout
from ..calls.problem import Problem, exact_rows
from ..capture import load_calls
from ..synthetic import head_kind_of, synthetic_qkv

CHUNK_BYTES = {"cpu": 1 << 25, "cuda": 1 << 29}
"""Scores held at a time: bounds the memory, does not change the result."""


@dataclass(frozen=True)
class Inputs(Problem):
    """Heads of one grid, stacked into one attention call; video tokens only.

    Attributes:
        q, k, v: `[1, H, N, D]`, tokens in raster order.
        layout: the grid.
        name: "synthetic" or "captured".
        kinds: for each head the group that it is averaged in: the kind of a synthetic head, the
            layer of a captured one.
        heads: for each head its full name.
    """

    name: str
    kinds: tuple[str, ...]
    heads: tuple[str, ...]


def synthetic_inputs(
    grid: tuple[int, int, int],
    heads: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    head_dim: int = 128,
) -> Inputs:
    """Heads of all kinds in turn, see `synthetic`.

    Raises:
        ValueError: an argument out of range; the message names it.
    """
    q, k, v = synthetic_qkv("mixed", grid, heads, head_dim, dtype=dtype, device=device, seed=seed)
    kinds = tuple(head_kind_of("mixed", head) for head in range(heads))
    names = tuple(f"{kind} {head}" for head, kind in enumerate(kinds))
    return Inputs(q, k, v, TokenLayout(grid, math.prod(grid)), "synthetic", kinds, names)


def captured_inputs(
    paths: Sequence[Path], dtype: torch.dtype, device: torch.device
) -> list[Inputs]:
    """Calls that `capture` recorded, one `Inputs` for each grid among them.

    Args:
        paths: files.
        dtype, device: what the tensors become and where they go.

    Raises:
        ValueError: a file is not one of `capture`.
    """
    by_grid: dict[tuple[int, int, int], list[tuple[str, str, tuple[Tensor, Tensor, Tensor]]]] = {}
    for path in paths:
        for call, (q, k, v) in load_calls(path):
            kind = f"layer {call.layer}"
            where = f"{kind} step {call.step} {call.branch} scene {call.scene} seed {call.seed}"
            by_grid.setdefault(call.grid, []).extend(
                (kind, f"{where} head {head}", (q[head], k[head], v[head]))
                for head in range(len(q))
            )
    found = []
    for grid, heads in by_grid.items():
        heads.sort(key=lambda head: head[0])  # layer by layer
        kinds, names, qkv = zip(*heads, strict=True)
        q, k, v = (torch.stack(each)[None].to(device, dtype) for each in zip(*qkv, strict=True))
        name = "captured" if len(by_grid) == 1 else "captured " + "x".join(map(str, grid))
        found.append(Inputs(q, k, v, TokenLayout(grid, math.prod(grid)), name, kinds, names))
    return found


class Oracle:
    """Full attention of some query rows.

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
