"""What ranks the kv-blocks of every q-block: pooled blocks, or parts of q-blocks and key groups."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.rectification import TAIL_VARIANCE_CAP
from .rank import rank_kernel
from .score import context_lse_kernel, score_kernel
from .stages import Chunk, Pooled, Scores, Sizes, Statistic, Tail
from .tables import IndexTables
from .tiles import rank_tile, score_tile


def score(
    q_pool: Pooled,
    k_pool: Pooled,
    k: Tensor,
    config: SparseConfig,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
) -> Scores:
    """Score all block pairs; `k [B, H, N, D]` gives the context tokens, which are not pooled."""
    q_mean, k_mean, q_spread, k_spread = q_pool.mean, k_pool.mean, q_pool.spread, k_pool.spread
    pairs = (chunk.count, sizes.num_q, sizes.num_k)
    logits = torch.empty(pairs, dtype=torch.float32, device=k.device)
    mode = config.rectification
    scores = Scores(
        logits=logits,
        accepted=torch.empty_like(logits, dtype=torch.int8) if mode == "paper" else None,
        tail_spread=torch.empty_like(logits) if mode == "precise" else None,
        context_lse=context_scores(q_mean, k, sizes, tables, chunk),
    )
    tile = score_tile(q_mean.high.dtype)
    step = min(tile.step, sizes.padded_dim)
    tiles = triton.cdiv(sizes.num_q, tile.tile_q), triton.cdiv(sizes.num_k, tile.tile_k)
    score_kernel[(*tiles, chunk.count)](
        q_mean.high, q_mean.low, q_spread and q_spread.high, q_spread and q_spread.low,
        k_mean.high, k_mean.low, k_spread and k_spread.high, k_spread and k_spread.low,
        logits, scores.accepted, scores.tail_spread,
        sizes.num_q, sizes.num_k, sizes.video_length, sizes.head_dim**-0.5, TAIL_VARIANCE_CAP,
        DP=sizes.padded_dim, KV_BLOCK=config.kv_block,
        TILE_Q=tile.tile_q, TILE_K=tile.tile_k, STEP=step, RECTIFICATION=mode,
        MEAN_LOW=q_mean.low is not None,
        SPREAD_LOW=q_spread is not None and q_spread.low is not None,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return scores


def context_scores(
    q_mean: Statistic, k: Tensor, sizes: Sizes, tables: IndexTables, chunk: Chunk
) -> Tensor | None:
    """Log-sum-exp of each row of `q_mean [HC, R, DP]` with the context keys, `[HC, R]` fp32."""
    if not sizes.context_length:
        return None
    rows = q_mean.high.shape[1]
    context_lse = torch.empty((chunk.count, rows), dtype=torch.float32, device=k.device)
    tile = score_tile(q_mean.high.dtype)
    source = tables.kv_source[sizes.context_start :]
    context_lse_kernel[(triton.cdiv(rows, tile.tile_q), chunk.count)](
        q_mean.high, q_mean.low, k, source, context_lse,
        chunk.first, chunk.num_heads, rows, sizes.context_length, *k.stride(),
        sizes.head_dim**-0.5, D=sizes.head_dim, DP=sizes.padded_dim, TILE=tile.tile_q,
        STEP=min(tile.step, sizes.padded_dim), MEAN_LOW=q_mean.low is not None,
        num_warps=4, num_stages=tile.num_stages,
    )  # fmt: skip
    return context_lse


def rank(
    q_pool: Pooled,
    groups: Tail,
    group_mean: Statistic,
    k: Tensor,
    config: SparseConfig,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
) -> Scores:
    """Logits of the parts of q-blocks, `q_pool`, with kv-blocks, from the groups of their keys."""
    num_parts = q_pool.mean.high.shape[1]
    logits = k.new_empty((chunk.count, num_parts, sizes.num_k), dtype=torch.float32)
    tile = rank_tile(k.dtype)
    grid = (
        triton.cdiv(num_parts, tile.tile_q),
        triton.cdiv(sizes.num_k * config.tail_keys, tile.tile_k),
    )
    rank_kernel[(*grid, chunk.count)](
        q_pool.mean.high, q_pool.mean.low, group_mean.high, group_mean.low,
        groups.size, groups.variance, logits, num_parts, sizes.num_k, sizes.tail_length,
        sizes.head_dim**-0.5, TAIL_VARIANCE_CAP, DP=sizes.padded_dim, GROUPS=config.tail_keys,
        TILE_Q=tile.tile_q, TILE_K=tile.tile_k, STEP=min(tile.step, sizes.padded_dim),
        MEAN_LOW=group_mean.low is not None,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return Scores(
        logits=logits,
        accepted=None,
        tail_spread=logits.new_empty((chunk.count, sizes.num_q, sizes.num_k)),
        context_lse=context_scores(q_pool.mean, k, sizes, tables, chunk),
    )
