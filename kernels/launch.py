"""One attention call: its stages in order, some heads at a time.

pool      blocks of q, k and v: statistics, and copies in token order
group     keys of a block that the same queries like, with "precise"
rank      every kv-block for every q-block
select    the critical ones
weigh     how much the tail counts, with "precise"
attend    the critical blocks exactly, the others as the rectification says
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from ..rspa_core.quantisation import smoothing_shift
from .attend import attend
from .devices import Tile
from .group import group_keys
from .plan import Plan, Result
from .pool import pool_keys, pool_queries, pool_values
from .rank import rank
from .select import select
from .tail_weight import weigh_tail


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    tile: Tile,
    keep_mask: bool,
    chunk_heads: int | None = None,
    keep_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rectified block-sparse attention with one given tile.

    Args:
        q, k, v: `[B, H, N, D]`, any strides; D up to 128.
        layout, config: see there.
        tile: launch configuration of the attention kernel.
        keep_mask: also return the critical set.
        chunk_heads: heads processed together; None for as many as the workspace holds.
        keep_lse: also return the logarithm of the sum of each row's weights.

    Returns:
        Output `[B, H, N, D]` (stored as `[B, N, H, D]`, so that heads merge without a copy),
        kv_counts `[B, H, NQ]` int32, critical set `[B, H, NQ, NK]` int8 and logarithms `[B, H, N]`
        fp32 (each empty unless kept).
    """
    whole = Plan.of(q, k, layout, config, tile)
    result = Result.empty(q, whole, keep_mask, keep_lse)
    for plan in whole.in_chunks(chunk_heads, q.element_size()):
        q_pool, k_pool, v_pool = pool_queries(q, plan), pool_keys(k, plan), pool_values(v, plan)
        tail = group_keys(k, v, plan) if config.rectification == "precise" else None
        scores = rank(q_pool, k_pool, tail, k, plan)
        selection = select(scores, q_pool, tail, plan, result)
        if tail is not None:
            tail = weigh_tail(tail, k_pool, v_pool, selection, plan)
        attend(q, q_pool, k_pool, v_pool, tail, selection, plan, result)
    lse = result.lse
    if lse is None:
        lse = q.new_empty((0,), dtype=torch.float32)
    elif tile.int8:
        add_shift(lse, q, smoothing_shift(k), whole.scale)
    return result.out.transpose(1, 2), result.kv_counts, result.mask, lse


def add_shift(lse: Tensor, q: Tensor, shift: Tensor, scale: float) -> None:
    """Add to `lse [B, H, N]`, in place, what a `shift [B, H, D]` of the keys takes off each logit.

    Head by head: the products are of fp32, and so would be a copy of all queries.
    """
    for batch, head in product(range(q.shape[0]), range(q.shape[1])):
        lse[batch, head] += scale * (q[batch, head].float() @ shift[batch, head])
