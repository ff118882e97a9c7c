"""One attention call, some heads at a time, so that its scratch memory stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from ..rspa_core.quantisation import smoothing_shift
from .scores import rank, score
from .stages import Chunk, Result, Sizes, Tail, attend, pool, select
from .stand_ins import ask, group, weigh
from .tables import IndexTables, index_tables
from .tiles import Tile

WORKSPACE_BYTES = 512 * 1024**2
"""Scratch memory one call may take: heads are processed in as many chunks as that needs."""

_STATISTICS = {
    "paper": ("mean_abs_dev", "mean_abs_dev"),
    "precise": ("mean_square", "variance"),
    "none": ("none", "none"),
}
"""Second statistic of q and of k that a rectification needs."""


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    tile: Tile,
    keep_mask: bool,
    chunk_heads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rectified block-sparse attention with one given tile.

    Args:
        q, k, v: `[B, H, N, D]`, any strides; D up to 128.
        layout, config: see there.
        tile: launch configuration of the attention kernel.
        keep_mask: also return the critical set.
        chunk_heads: heads processed together; None for as many as the workspace holds.

    Returns:
        Output `[B, H, N, D]` (stored as `[B, N, H, D]`, so that heads merge without a copy),
        kv_counts `[B, H, NQ]` int32, critical set `[B, H, NQ, NK]` int8 (empty unless kept).
    """
    batch, heads, length, head_dim = q.shape
    tables = index_tables(
        layout, config.order, config.q_block, config.kv_block, config.neighbours, q.device
    )
    sizes = Sizes.of(q, layout, config, tables, tile)
    pairs = (batch, heads, sizes.num_q, sizes.num_k) if keep_mask else (0,)
    result = Result(
        out=q.new_empty((batch, length, heads, head_dim)),
        kv_counts=q.new_empty((batch, heads, sizes.num_q), dtype=torch.int32),
        mask=q.new_empty(pairs, dtype=torch.int8),
    )
    shift = smoothing_shift(k) if tile.int8 or tile.specialised else None
    queries = ask(q, sizes, tables) if config.tail_keys > 1 else None
    step = chunk_heads or sizes.heads_per_chunk(batch * heads, q.element_size(), WORKSPACE_BYTES)
    for first in range(0, batch * heads, step):
        chunk = Chunk(first, min(step, batch * heads - first), heads)
        _run_chunk(q, k, v, queries, config, tile, sizes, tables, chunk, shift, result)
    return result.out.transpose(1, 2), result.kv_counts, result.mask


def _run_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor | None,
    config: SparseConfig,
    tile: Tile,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
    shift: Tensor | None,
    result: Result,
) -> None:
    q_statistic, k_statistic = _STATISTICS[config.rectification]
    q_source = tables.q_source[sizes.num_context_q * config.q_block :]
    if queries is not None:
        q_statistic = k_statistic = "none"
    tail = config.rectification == "precise" and queries is None
    q_pool = pool(
        q, q_source, config.q_block // sizes.q_parts, sizes.num_q * sizes.q_parts, sizes, chunk,
        q_statistic,
    )  # fmt: skip
    k_pool = pool(
        k, tables.kv_source, config.kv_block, sizes.num_k, sizes, chunk, k_statistic,
        pack=True, tail=tail, shift=shift, int8=tile.int8, radius=tile.specialised,
    )  # fmt: skip
    v_pool = pool(
        v, tables.kv_source, config.kv_block, sizes.num_k, sizes, chunk, "none",
        pack=True, tail=tail,
    )  # fmt: skip
    stand_ins = None
    if queries is not None:
        moved = shift if tile.int8 else None
        stand_ins, group_mean = group(queries, k, v, config, sizes, tables, chunk, moved)
        scores = rank(q_pool, stand_ins, group_mean, k, config, sizes, tables, chunk)
    else:
        scores = score(q_pool, k_pool, k, config, sizes, tables, chunk)
    selection = select(scores, config, sizes, tables, chunk, result)
    if queries is not None and stand_ins is not None:
        weigh(queries, k_pool, v_pool, stand_ins, scores, config, sizes, tables, chunk)
    compensation = None
    if selection.weights is not None:
        compensation = torch.bmm(selection.weights, v_pool.mean.high)  # C = W v̄
    if tail:
        stand_ins = Tail(k_pool.tail_mean, v_pool.tail_mean, None, None)
    attend(
        q, k_pool, v_pool, stand_ins, scores, selection, compensation,
        config, tile, sizes, tables, chunk, shift, result,
    )  # fmt: skip
