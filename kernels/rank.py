"""Rank: what every q-block may find in every kv-block, and in the context, before the softmax.

    logits_ij = c q̄_i·k̄_j + ln n_j                                          paper, none
    accepted_ij = |q̄_i·k̄_j| > |mad_q,i·k̄_j| + |q̄_i·mad_k,j|                 paper (GAPR)

    t_isg = c q̄_is·k̄_g + ln n_g + min(|q̄_is|² ν_g, cap)                    precise, part s of
    logits_isj = log Σ_{g in j} exp(t_isg)                                   q-block i

    context_lse_i = log Σ_t exp(c q̄_i·k_t) over context tokens t            of q-blocks or parts

Statistics of 16-bit inputs come as pairs, x = high + low: three 16-bit products on the tensor
cores then give a product good to 2^-16 of its operands. The select kernel turns rows into
probabilities. arXiv 2511.19835; specification: rspa_core/ranking.py and rspa_core/rectification.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import run
from .devices import group_rank_tile, pooled_rank_tile
from .plan import Plan, Pooled, Scores, Statistic, Tail, strides

LN2 = tl.constexpr(0.6931471805599453)


def rank(q_pool: Pooled, k_pool: Pooled, tail: Tail | None, k: Tensor, plan: Plan) -> Scores:
    """Score all pairs of blocks: from the groups of `tail` where there is one, else from means.

    Args:
        q_pool: of q-blocks, with a tail of their parts.
        k_pool: of kv-blocks.
        tail: of the same keys.
        k: `[B, H, N, D]`, for the context tokens, which are not pooled.
        plan: see there.
    """
    accepted = None
    if tail is None:
        logits, accepted = _rank_means(q_pool, k_pool, plan)
    else:
        logits = _rank_groups(q_pool.mean, tail, plan)
    return Scores(logits, accepted, _context_scores(q_pool.mean, k, plan))


def _rank_means(q_pool: Pooled, k_pool: Pooled, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """Logits and, of "paper", the GAPR bit of all pairs of blocks."""
    q_mean, k_mean = q_pool.mean, k_pool.mean
    q_mad, k_mad = q_pool.mean_abs_dev, k_pool.mean_abs_dev
    sizes, paper = plan.sizes, plan.config.rectification == "paper"
    pairs = (plan.chunk_heads, sizes.num_q, sizes.num_k)
    logits = q_mean.high.new_empty(pairs, dtype=torch.float32)
    accepted = torch.empty_like(logits, dtype=torch.int8) if paper else None
    tile = pooled_rank_tile(q_mean.high.dtype)
    tiles = triton.cdiv(sizes.num_q, tile.tile_q), triton.cdiv(sizes.num_k, tile.tile_k)
    run(
        rank_means_kernel,
        (*tiles, plan.chunk_heads),
        q_mean=q_mean.high,
        q_mean_low=q_mean.low,
        q_mad=q_mad and q_mad.high,
        q_mad_low=q_mad and q_mad.low,
        k_mean=k_mean.high,
        k_mean_low=k_mean.low,
        k_mad=k_mad and k_mad.high,
        k_mad_low=k_mad and k_mad.low,
        logits=logits,
        accepted=accepted,
        num_q=sizes.num_q,
        num_k=sizes.num_k,
        video_length=sizes.video_length,
        scale=plan.scale,
        DP=sizes.padded_dim,
        KV_BLOCK=plan.config.kv_block,
        TILE_Q=tile.tile_q,
        TILE_K=tile.tile_k,
        STEP=min(tile.step, sizes.padded_dim),
        PAPER=paper,
        LOW=q_mean.low is not None,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return logits, accepted


def _rank_groups(q_mean: Statistic, tail: Tail, plan: Plan) -> Tensor:
    """Logits of the parts of q-blocks, whose means are `q_mean`, with kv-blocks."""
    sizes, groups = plan.sizes, plan.config.tail_keys
    num_parts = q_mean.high.shape[1]
    shape = (plan.chunk_heads, num_parts, sizes.num_k)
    logits = q_mean.high.new_empty(shape, dtype=torch.float32)
    tile = group_rank_tile(q_mean.high.dtype)
    tiles = triton.cdiv(num_parts, tile.tile_q), triton.cdiv(sizes.num_k * groups, tile.tile_k)
    run(
        rank_groups_kernel,
        (*tiles, plan.chunk_heads),
        q_mean=q_mean.high,
        q_mean_low=q_mean.low,
        k_mean=tail.mean.high,
        k_mean_low=tail.mean.low,
        tail_size=tail.size,
        tail_variance=tail.variance,
        logits=logits,
        num_parts=num_parts,
        num_k=sizes.num_k,
        tail_length=sizes.tail_length,
        scale=plan.scale,
        variance_cap=plan.variance_cap,
        DP=sizes.padded_dim,
        GROUPS=groups,
        TILE_Q=tile.tile_q,
        TILE_K=tile.tile_k,
        STEP=min(tile.step, sizes.padded_dim),
        LOW=q_mean.low is not None,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return logits


def _context_scores(q_mean: Statistic, k: Tensor, plan: Plan) -> Tensor | None:
    """Log-sum-exp of each row of `q_mean [HC, NQ * P, DP]` with the context keys; None without."""
    sizes = plan.sizes
    if not sizes.context_length:
        return None
    num_rows = q_mean.high.shape[1]
    context_lse = k.new_empty((plan.chunk_heads, num_rows), dtype=torch.float32)
    tile = pooled_rank_tile(q_mean.high.dtype)
    run(
        context_lse_kernel,
        (triton.cdiv(num_rows, tile.tile_q), plan.chunk_heads),
        q_mean=q_mean.high,
        q_mean_low=q_mean.low,
        k=k,
        source=plan.tables.kv_source[sizes.context_start :],
        context_lse=context_lse,
        first_head=plan.first_head,
        num_heads=plan.num_heads,
        num_rows=num_rows,
        context_length=sizes.context_length,
        **strides(k),
        scale=plan.scale,
        D=sizes.head_dim,
        DP=sizes.padded_dim,
        TILE=tile.tile_q,
        STEP=min(tile.step, sizes.padded_dim),
        LOW=q_mean.low is not None,
        num_warps=4,
        num_stages=tile.num_stages,
    )
    return context_lse


@triton.jit
def _load_pair(high, low, offsets, inside, HAS_LOW: tl.constexpr):
    """Both parts; without a low part the high one twice."""
    first = tl.load(high + offsets, mask=inside, other=0.0)
    second = first
    if HAS_LOW:
        second = tl.load(low + offsets, mask=inside, other=0.0)
    return first, second


@triton.jit
def _dot_pairs(a, a_low, b, b_low, acc, HAS_LOW: tl.constexpr):
    """acc + (a + a_low) (b + b_low) in fp32, but for the product of the low parts."""
    if HAS_LOW:
        acc = tl.dot(a_low, b, acc)
        acc = tl.dot(a, b_low, acc)
    acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit(
    do_not_specialize=[
        "num_q",
        "num_k",
        "video_length",
    ]
)
def rank_means_kernel(
    q_mean,  # [HC, NQ, DP] fp32 or 16 bits
    q_mean_low,  # or None
    q_mad,  # [HC, NQ, DP]: mean absolute deviation, read if PAPER
    q_mad_low,  # or None
    k_mean,  # [HC, NK, DP]
    k_mean_low,
    k_mad,  # [HC, NK, DP], read if PAPER
    k_mad_low,
    logits,  # [HC, NQ, NK] fp32, written
    accepted,  # [HC, NQ, NK] int8, written if PAPER
    num_q,
    num_k,
    video_length,
    scale,
    DP: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    STEP: tl.constexpr,  # channels per step, divides DP
    PAPER: tl.constexpr,
    LOW: tl.constexpr,
):
    head = tl.program_id(2).to(tl.int64)
    q_index = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    k_index = tl.program_id(1) * TILE_K + tl.arange(0, TILE_K)
    q_inside = (q_index < num_q)[:, None]
    k_inside = (k_index < num_k)[None, :]
    q_rows = (head * num_q + q_index)[:, None] * DP
    k_rows = (head * num_k + k_index)[None, :] * DP

    raw = tl.zeros([TILE_Q, TILE_K], tl.float32)  # q̄·k̄
    q_error = tl.zeros([TILE_Q, TILE_K], tl.float32)  # mad_q·k̄
    k_error = tl.zeros([TILE_Q, TILE_K], tl.float32)  # q̄·mad_k
    # A few channels at a time: with all of them the operands would spill.
    for start in range(0, DP, STEP):
        cols = start + tl.arange(0, STEP)
        q_offsets = q_rows + cols[None, :]
        k_offsets = k_rows + cols[:, None]
        q, q_low = _load_pair(q_mean, q_mean_low, q_offsets, q_inside, LOW)
        k, k_low = _load_pair(k_mean, k_mean_low, k_offsets, k_inside, LOW)
        raw = _dot_pairs(q, q_low, k, k_low, raw, LOW)
        if PAPER:
            q_dev, q_dev_low = _load_pair(q_mad, q_mad_low, q_offsets, q_inside, LOW)
            k_dev, k_dev_low = _load_pair(k_mad, k_mad_low, k_offsets, k_inside, LOW)
            q_error = _dot_pairs(q_dev, q_dev_low, k, k_low, q_error, LOW)
            k_error = _dot_pairs(q, q_low, k_dev, k_dev_low, k_error, LOW)

    length = tl.minimum(video_length - k_index * KV_BLOCK, KV_BLOCK)
    # Columns behind the last block have no length; they are not stored.
    logit = scale * raw + tl.log(tl.maximum(length, 1).to(tl.float32))[None, :]
    out = (head * num_q + q_index)[:, None] * num_k + k_index[None, :]
    stored = q_inside & k_inside
    if PAPER:
        error = tl.abs(q_error) + tl.abs(k_error)
        tl.store(accepted + out, (tl.abs(raw) > error).to(tl.int8), mask=stored)
    tl.store(logits + out, logit, mask=stored)


@triton.jit(do_not_specialize=["num_parts", "num_k", "tail_length"])
def rank_groups_kernel(
    q_mean,  # [HC, NQ * PARTS, DP] fp32 or 16 bits: mean query of each part
    q_mean_low,  # or None
    k_mean,  # [HC, tail_length, DP]: k̄_g at j G + g
    k_mean_low,
    tail_size,  # [HC, tail_length] fp32: log2 n_g
    tail_variance,  # [HC, tail_length] fp32: ν_g
    logits,  # [HC, NQ * PARTS, NK] fp32, written
    num_parts,  # NQ * PARTS
    num_k,
    tail_length,
    scale,
    variance_cap,
    DP: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    STEP: tl.constexpr,  # channels per step, divides DP
    LOW: tl.constexpr,
):
    head = tl.program_id(2).to(tl.int64)
    part = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    group = tl.program_id(1) * TILE_K + tl.arange(0, TILE_K)
    is_part = part < num_parts
    is_group = group < num_k * GROUPS
    q_rows = (head * num_parts + part)[:, None] * DP
    k_rows = (head * tail_length + group)[None, :] * DP

    raw = tl.zeros([TILE_Q, TILE_K], tl.float32)
    q_length = tl.zeros([TILE_Q], tl.float32)
    for start in range(0, DP, STEP):
        cols = start + tl.arange(0, STEP)
        q, q_low = _load_pair(q_mean, q_mean_low, q_rows + cols[None, :], is_part[:, None], LOW)
        k, k_low = _load_pair(k_mean, k_mean_low, k_rows + cols[:, None], is_group[None, :], LOW)
        raw = _dot_pairs(q, q_low, k, k_low, raw, LOW)
    # In a loop of its own: Triton 3.6 for Hopper overwrites an operand of a product that is also
    # read otherwise in the same pipelined loop before that has happened.
    for start in tl.range(0, DP, STEP, num_stages=1):
        cols = start + tl.arange(0, STEP)
        q, q_low = _load_pair(q_mean, q_mean_low, q_rows + cols[None, :], is_part[:, None], LOW)
        query = q.to(tl.float32)
        if LOW:
            query += q_low.to(tl.float32)
        q_length += tl.sum(query * query, 1)

    row = head * tail_length + group
    size = tl.load(tail_size + row, mask=is_group, other=float("-inf")) * LN2
    variance = tl.load(tail_variance + row, mask=is_group, other=0.0)
    logit = scale * raw + size[None, :]
    logit += tl.minimum(q_length[:, None] * variance[None, :], variance_cap)

    # A block has at least one key, so only columns behind the last block are -inf throughout.
    logit = tl.reshape(logit, [TILE_Q, TILE_K // GROUPS, GROUPS])
    highest = tl.maximum(tl.max(logit, 2), -1e30)
    total = tl.sum(tl.exp(logit - highest[:, :, None]), 2)
    block = tl.program_id(1) * (TILE_K // GROUPS) + tl.arange(0, TILE_K // GROUPS)
    stored = is_part[:, None] & (block < num_k)[None, :]
    out = (head * num_parts + part)[:, None] * num_k + block[None, :]
    tl.store(logits + out, highest + tl.log(tl.maximum(total, 1e-30)), mask=stored)


@triton.jit(
    do_not_specialize=[
        "first_head",
        "num_heads",
        "num_rows",
        "context_length",
    ]
)
def context_lse_kernel(
    q_mean,  # [HC, NQ * P, DP] fp32 or 16 bits
    q_mean_low,  # or None
    k,  # [B, H, N, D], any strides
    source,  # [context_length or more] int32: tokens of the context
    context_lse,  # [HC, NQ * P] fp32, written
    first_head,
    num_heads,
    num_rows,  # NQ * P
    context_length,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,  # channels per step, divides DP
    LOW: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    batch_head = first_head + head
    k_base = k + (batch_head // num_heads) * stride_b + (batch_head % num_heads) * stride_h
    q_index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    q_inside = q_index < num_rows
    q_rows = (head * num_rows + q_index)[:, None] * DP
    highest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, context_length, TILE):
        k_index = start + tl.arange(0, TILE)
        k_inside = k_index < context_length
        token = tl.load(source + k_index, mask=k_inside, other=0).to(tl.int64)
        raw = tl.zeros([TILE, TILE], tl.float32)
        for channel in range(0, DP, STEP):
            cols = channel + tl.arange(0, STEP)
            q, q_low = _load_pair(
                q_mean, q_mean_low, q_rows + cols[None, :], q_inside[:, None], LOW
            )
            k_offsets = token[None, :] * stride_n + cols.to(tl.int64)[:, None] * stride_d
            inside = k_inside[None, :] & (cols < D)[:, None]
            keys = tl.load(k_base + k_offsets, mask=inside, other=0.0)
            if LOW:
                raw = tl.dot(q_low, keys, raw)
            raw = tl.dot(q, keys.to(q.dtype), raw, input_precision="ieee")
        scores = tl.where(k_inside[None, :], scale * raw, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        total = total * tl.exp(highest - new_highest)
        total += tl.sum(tl.exp(scores - new_highest[:, None]), 1)
        highest = new_highest
    tl.store(context_lse + head * num_rows + q_index, highest + tl.log(total), mask=q_inside)
