"""What stands for the blocks that `precise` leaves out, where that is more than their means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.key_groups import LARGEST_GAIN, ROUNDS, SAMPLED_QUERIES, sampled_places
from ..rspa_core.rectification import TAIL_VARIANCE_CAP
from ..rspa_core.tail_weight import LARGEST, SMALLEST, STEPS, TINY, WORSE
from .group import group_mean_kernel, label_kernel
from .stages import WEIGH_SPLITS, Chunk, Pooled, Scores, Sizes, Statistic, Tail
from .tables import IndexTables
from .weigh import sums_kernel, weigh_kernel

WEIGH_TILE = 64
"""Keys per step of the kernels in weigh.py."""


def ask(q: Tensor, config: SparseConfig, sizes: Sizes, tables: IndexTables) -> Tensor:
    """The sampled queries of every head of `q [B, H, N, D]`: `[B * H, R, DP]`."""
    video = sizes.num_context_q * config.q_block
    places = sampled_places(sizes.video_length).to(q.device)
    queries = q[:, :, tables.q_source[video + places].long()].flatten(0, 1)
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
    num_blocks = len(tables.kv_source) // config.kv_block
    rows = (chunk.count, WEIGH_SPLITS, 2, SAMPLED_QUERIES)
    assert tail.size is not None
    weight = torch.empty_like(tail.size[:, 0])
    mass, sums = tail.size.new_empty(rows), tail.size.new_empty((*rows, sizes.padded_dim))
    highest = torch.empty_like(mass)
    constants: dict[str, Any] = {
        "DP": sizes.padded_dim, "Q_BLOCK": config.q_block, "R": SAMPLED_QUERIES, "TILE": WEIGH_TILE,
        "PRECISION": "tf32x3" if queries.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    scale = sizes.head_dim**-0.5
    sums_kernel[(chunk.count, WEIGH_SPLITS)](
        k_pool.packed, k_pool.packed_scale, v_pool.packed, tables.kv_source, queries,
        scores.tail_spread, highest, mass, sums,
        chunk.first, sizes.num_q, sizes.num_k, num_blocks, sizes.video_length, scale,
        BLOCK=config.kv_block, INT8=k_pool.packed_scale is not None,
        num_warps=8, num_stages=1 if queries.dtype == torch.float32 else 2, **constants,
    )  # fmt: skip
    weigh_kernel[(chunk.count,)](
        queries, tail.keys, tail.values, tail.size, tail.variance, scores.tail_spread,
        highest, mass, sums, weight,
        chunk.first, sizes.num_q, sizes.num_k, sizes.tail_length, sizes.video_length, scale,
        TAIL_VARIANCE_CAP, SMALLEST, LARGEST, TINY, WORSE,
        GROUPS=config.tail_keys, SPLITS=WEIGH_SPLITS, STEPS=STEPS, num_warps=8, num_stages=1,
        **constants,
    )  # fmt: skip
    tail.size.add_(weight.log2()[:, None])
