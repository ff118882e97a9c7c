"""Score: pooled logits of all block pairs, the GAPR bit, and the context column.

    logits_ij = c q̄_i·k̄_j + ln n_j                                          paper, none
              + min(½ c² Σ_d q̄_id² var_k,jd, cap)                           precise
    accepted_ij = |q̄_i·k̄_j| > |mad_q,i·k̄_j| + |q̄_i·mad_k,j|                 paper (GAPR)
    context_lse_i = log Σ_t exp(c q̄_i·k_t) over context tokens t              (IPAR)

arXiv 2511.19835; specification: rspa_core/selection.py and rspa_core/rectification.py.
"""

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "num_q",
        "num_k",
        "video_length",
    ]
)
def score_kernel(
    q_mean,  # [HC, NQ, DP] fp32
    q_deviation,  # [HC, NQ, DP] fp32, mean absolute deviation, read if RECTIFICATION == "paper"
    k_mean,  # [HC, NK, DP] fp32
    k_deviation,  # [HC, NK, DP] fp32, mean absolute deviation (paper) or variance (precise)
    logits,  # [HC, NQ, NK] fp32, written
    accepted,  # [HC, NQ, NK] int8, written if RECTIFICATION == "paper"
    num_q,
    num_k,
    video_length,
    scale,
    variance_cap,
    DP: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,  # channels per step, divides DP
    RECTIFICATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(2).to(tl.int64)
    q_index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k_index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    q_inside = (q_index < num_q)[:, None]
    k_inside = (k_index < num_k)[None, :]
    q_rows = (head * num_q + q_index)[:, None] * DP
    k_rows = (head * num_k + k_index)[None, :] * DP

    raw = tl.zeros([TILE, TILE], tl.float32)  # q̄·k̄
    second = tl.zeros([TILE, TILE], tl.float32)  # Σ q̄² var, or the first pooling error term
    third = tl.zeros([TILE, TILE], tl.float32)  # the second pooling error term
    # A few channels at a time: with all of them the operands would spill.
    for start in range(0, DP, STEP):
        cols = start + tl.arange(0, STEP)
        q_offsets = q_rows + cols[None, :]
        k_offsets = k_rows + cols[:, None]
        q = tl.load(q_mean + q_offsets, mask=q_inside, other=0.0)  # [TILE, STEP]
        k = tl.load(k_mean + k_offsets, mask=k_inside, other=0.0)  # [STEP, TILE]
        raw = tl.dot(q, k, raw, input_precision=PRECISION)
        if RECTIFICATION == "precise":
            variance = tl.load(k_deviation + k_offsets, mask=k_inside, other=0.0)
            second = tl.dot(q * q, variance, second, input_precision=PRECISION)
        if RECTIFICATION == "paper":
            q_dev = tl.load(q_deviation + q_offsets, mask=q_inside, other=0.0)
            k_dev = tl.load(k_deviation + k_offsets, mask=k_inside, other=0.0)
            second = tl.dot(q_dev, k, second, input_precision=PRECISION)
            third = tl.dot(q, k_dev, third, input_precision=PRECISION)

    length = tl.minimum(video_length - k_index * KV_BLOCK, KV_BLOCK)
    # Columns behind the last block have no length; they are not stored.
    logit = scale * raw + tl.log(tl.maximum(length, 1).to(tl.float32))[None, :]
    out = (head * num_q + q_index)[:, None] * num_k + k_index[None, :]
    stored = q_inside & k_inside
    if RECTIFICATION == "precise":
        logit += tl.minimum(0.5 * scale * scale * second, variance_cap)
    if RECTIFICATION == "paper":
        error = tl.abs(second) + tl.abs(third)
        tl.store(accepted + out, (tl.abs(raw) > error).to(tl.int8), mask=stored)
    tl.store(logits + out, logit, mask=stored)


@triton.jit(
    do_not_specialize=[
        "num_q",
        "packed_length",
        "context_start",
        "context_length",
    ]
)
def context_lse_kernel(
    q_mean,  # [HC, NQ, DP] fp32
    packed_k,  # [HC, packed_length, DP]: context keys stand behind the video blocks
    context_lse,  # [HC, NQ] fp32, written
    num_q,
    packed_length,
    context_start,  # packed position of the first context key
    context_length,
    scale,
    DP: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,  # channels per step, divides DP
    PRECISION: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    q_index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    q_inside = q_index < num_q
    q_rows = (head * num_q + q_index)[:, None] * DP
    highest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, context_length, TILE):
        k_index = start + tl.arange(0, TILE)
        k_inside = k_index < context_length
        k_rows = (head * packed_length + context_start + k_index)[None, :] * DP
        raw = tl.zeros([TILE, TILE], tl.float32)
        for channel in range(0, DP, STEP):
            cols = channel + tl.arange(0, STEP)
            q = tl.load(q_mean + q_rows + cols[None, :], mask=q_inside[:, None], other=0.0)
            k = tl.load(packed_k + k_rows + cols[:, None], mask=k_inside[None, :], other=0.0)
            raw = tl.dot(q, k.to(tl.float32), raw, input_precision=PRECISION)
        scores = tl.where(k_inside[None, :], scale * raw, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        total = total * tl.exp(highest - new_highest)
        total += tl.sum(tl.exp(scores - new_highest[:, None]), 1)
        highest = new_highest
    tl.store(context_lse + head * num_q + q_index, highest + tl.log(total), mask=q_inside)
