"""Rank: logits of every part of a q-block with every kv-block, from the groups of its keys.

    t_isg = c q̄_is·k̄_g + ln n_g + min(|q̄_is|² ν_g, cap)
    logits_isj = log Σ_{g in j} exp(t_isg)

The select kernel turns the rows of one q-block's parts into probabilities. Specification:
`group_probs` in rspa_core/selection.py.
"""

import triton
import triton.language as tl

from .score import _dot_pairs, _load_pair

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["num_parts", "num_k", "tail_length"])
def rank_kernel(
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
    MEAN_LOW: tl.constexpr,
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
        q, q_low = _load_pair(
            q_mean, q_mean_low, q_rows + cols[None, :], is_part[:, None], MEAN_LOW
        )
        k, k_low = _load_pair(
            k_mean, k_mean_low, k_rows + cols[:, None], is_group[None, :], MEAN_LOW
        )
        raw = _dot_pairs(q, q_low, k, k_low, raw, MEAN_LOW)
    # In a loop of its own: Triton 3.6 for Hopper overwrites an operand of a product that is also
    # read otherwise in the same pipelined loop before that has happened.
    for start in tl.range(0, DP, STEP, num_stages=1):
        cols = start + tl.arange(0, STEP)
        q, q_low = _load_pair(
            q_mean, q_mean_low, q_rows + cols[None, :], is_part[:, None], MEAN_LOW
        )
        query = q.to(tl.float32)
        if MEAN_LOW:
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
