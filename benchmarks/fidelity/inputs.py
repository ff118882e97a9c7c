"""Inputs of the fidelity benchmark: attention heads with a name for what they look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...rspa_core import TokenLayout
from ..calls.problem import Problem
from ..capture import load_calls
from ..synthetic import head_kind_of, synthetic_qkv


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
