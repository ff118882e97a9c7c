"""What stands for the blocks that `precise` leaves out, where that is more than their means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.key_groups import LARGEST_GAIN, ROUNDS, SAMPLED_QUERIES
from ..rspa_core.rectification import TAIL_VARIANCE_CAP
from ..rspa_core.tail_weight import LARGEST, SMALLEST, STEPS, TINY, WORSE
from .group import group_mean_kernel, label_kernel
from .stages import Chunk, Pooled, Scores, Sizes, Statistic, Tail
from .tables import IndexTables
from .weigh import join_kernel, sums_kernel, weigh_kernel

WEIGH_TILE = 64
"""Keys per step of weigh.py's `sums_kernel`."""


def ask(q: Tensor, sizes: Sizes, tables: IndexTables) -> Tensor:
    """The sampled queries of every head of `q [B, H, N, D]`: `[B * H, R, DP]`."""
    queries = q[:, :, tables.sampled].flatten(0, 1)
    return torch.nn.functional.pad(queries, (0, sizes.padded_dim - sizes.head_dim)).contiguous()


def group(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    config: SparseConfig,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
    shift: Tensor | None,
) -> tuple[Tail, Statistic]:
    """Groups of keys in place of block means, and their means `[HC, tail_length, DP]` with all
    digits; `shift` is what int8 keys have lost.
    """
    shape = (chunk.count, sizes.tail_length)
    size = k.new_full(shape, float("-inf"), dtype=torch.float32)
    variance = torch.zeros_like(size)
    labels = k.new_empty((chunk.count, sizes.num_k * config.kv_block), dtype=torch.int8)
    constants: dict[str, Any] = {
        "D": sizes.head_dim, "DP": sizes.padded_dim, "BLOCK": config.kv_block,
        "GROUPS": config.tail_keys,
        "PRECISION": "ieee" if k.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    grid = (chunk.count, sizes.num_k)
    scale = sizes.head_dim**-0.5
    heads = (chunk.first, chunk.num_heads, sizes.tail_length)
    label_kernel[grid](
        k, tables.kv_source, queries, labels, size, variance, *heads, *k.stride(),
        scale, LARGEST_GAIN, R=SAMPLED_QUERIES, ROUNDS=ROUNDS,
        num_warps=config.kv_block // 32, **constants,
    )  # fmt: skip

    values = k.new_zeros((*shape, sizes.padded_dim))
    mean = Statistic(
        torch.zeros_like(values), None if k.dtype == torch.float32 else torch.zeros_like(values)
    )
    keys = mean.high if shift is None else torch.zeros_like(values)
    group_mean_kernel[grid](
        k, tables.kv_source, labels, shift, mean.high, mean.low, keys, variance,
        *heads, *k.stride(), scale, VARIANCE=True, SHIFTED=shift is not None,
        MEAN_LOW=mean.low is not None, num_warps=config.kv_block // 16, **constants,
    )  # fmt: skip
    group_mean_kernel[grid](
        v, tables.kv_source, labels, None, values, None, None, None, *heads, *v.stride(),
        scale, VARIANCE=False, SHIFTED=False, MEAN_LOW=False,
        num_warps=config.kv_block // 16, **constants,
    )  # fmt: skip
    return Tail(keys, values, size, variance), mean


def weigh(
    queries: Tensor,
    k_pool: Pooled,
    v_pool: Pooled,
    tail: Tail,
    scores: Scores,
    config: SparseConfig,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
) -> None:
    """Let the tail of every head count for what its sampled queries say; changes `tail.size`."""
    assert tail.size is not None
    num_blocks = len(tables.kv_source) // config.kv_block
    splits = sizes.weigh_splits
    parts = (chunk.count, splits, 3, SAMPLED_QUERIES)
    mass, sums = tail.size.new_empty(parts), tail.size.new_empty((*parts, sizes.padded_dim))
    highest = torch.empty_like(mass)
    joined_mass, joined = torch.empty_like(mass[:, 0]), torch.empty_like(sums[:, 0])
    joined_highest = torch.empty_like(joined_mass)
    weight = torch.empty_like(tail.size[:, 0])
    exact = queries.dtype == torch.float32
    common: dict[str, Any] = {"DP": sizes.padded_dim, "R": SAMPLED_QUERIES}
    sums_kernel[(chunk.count, splits)](
        k_pool.packed, k_pool.packed_scale, v_pool.packed, tables.kv_source, queries,
        tail.keys, tail.values, tail.size, tail.variance, scores.tail_spread,
        highest, mass, sums,
        chunk.first, sizes.num_q, sizes.num_k, num_blocks, sizes.tail_length, sizes.video_length,
        sizes.head_dim**-0.5, TAIL_VARIANCE_CAP,
        Q_BLOCK=config.q_block, BLOCK=config.kv_block, GROUPS=config.tail_keys, TILE=WEIGH_TILE,
        INT8=k_pool.packed_scale is not None, PRECISION="tf32x3" if exact else "tf32",
        num_warps=4, num_stages=1 if exact else 3, **common,
    )  # fmt: skip
    join_kernel[(chunk.count, 3 * SAMPLED_QUERIES)](
        highest, mass, sums, joined_highest, joined_mass, joined, SPLITS=splits, **common
    )
    weigh_kernel[(chunk.count,)](
        joined_highest, joined_mass, joined, weight, SMALLEST, LARGEST, TINY, WORSE,
        STEPS=STEPS, num_warps=8, **common,
    )  # fmt: skip
    tail.size.add_(weight.log2()[:, None])
