"""Score: pooled logits of all block pairs, the GAPR bit, and the context column.

    logits_ij = c q̄_i·k̄_j + ln n_j                                          paper, none
              + min(S_ij, cap),  S_ij = ½ c² Σ_d <q_d²>_i var_k,jd           precise
    accepted_ij = |q̄_i·k̄_j| > |mad_q,i·k̄_j| + |q̄_i·mad_k,j|                 paper (GAPR)
    context_lse_i = log Σ_t exp(c q̄_i·k_t) over context tokens t              (IPAR)

Statistics of 16-bit inputs come as pairs, x = high + low: three 16-bit products on the tensor
cores then give a product good to 2^-16 of its operands. arXiv 2511.19835; specification:
rspa_core/selection.py and rspa_core/rectification.py.
"""

import triton
import triton.language as tl


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
def score_kernel(
    q_mean,  # [HC, NQ, DP] fp32 or 16 bits
    q_mean_low,  # or None
    q_spread,  # [HC, NQ, DP]: mean absolute deviation (paper), mean square (precise)
    q_spread_low,  # or None
    k_mean,  # [HC, NK, DP]
    k_mean_low,
    k_spread,  # [HC, NK, DP]: mean absolute deviation (paper), variance (precise)
    k_spread_low,
    logits,  # [HC, NQ, NK] fp32, written
    accepted,  # [HC, NQ, NK] int8, written if RECTIFICATION == "paper"
    tail_spread,  # [HC, NQ, NK] fp32, S_ij / <|q|²>_i, written if RECTIFICATION == "precise"
    num_q,
    num_k,
    video_length,
    scale,
    variance_cap,
    DP: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    STEP: tl.constexpr,  # channels per step, divides DP
    RECTIFICATION: tl.constexpr,
    MEAN_LOW: tl.constexpr,
    SPREAD_LOW: tl.constexpr,
):
    head = tl.program_id(2).to(tl.int64)
    q_index = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    k_index = tl.program_id(1) * TILE_K + tl.arange(0, TILE_K)
    q_inside = (q_index < num_q)[:, None]
    k_inside = (k_index < num_k)[None, :]
    q_rows = (head * num_q + q_index)[:, None] * DP
    k_rows = (head * num_k + k_index)[None, :] * DP

    raw = tl.zeros([TILE_Q, TILE_K], tl.float32)  # q̄·k̄
    second = tl.zeros([TILE_Q, TILE_K], tl.float32)  # Σ <q²> var, or the first pooling error term
    third = tl.zeros([TILE_Q, TILE_K], tl.float32)  # the second pooling error term
    q_length = tl.zeros([TILE_Q], tl.float32)  # <|q|²>
    # A few channels at a time: with all of them the operands would spill.
    for start in range(0, DP, STEP):
        cols = start + tl.arange(0, STEP)
        q_offsets = q_rows + cols[None, :]
        k_offsets = k_rows + cols[:, None]
        q, q_low = _load_pair(q_mean, q_mean_low, q_offsets, q_inside, MEAN_LOW)
        k, k_low = _load_pair(k_mean, k_mean_low, k_offsets, k_inside, MEAN_LOW)
        raw = _dot_pairs(q, q_low, k, k_low, raw, MEAN_LOW)
        if RECTIFICATION != "none":
            q_dev, q_dev_low = _load_pair(q_spread, q_spread_low, q_offsets, q_inside, SPREAD_LOW)
            k_dev, k_dev_low = _load_pair(k_spread, k_spread_low, k_offsets, k_inside, SPREAD_LOW)
            if RECTIFICATION == "precise":
                second = _dot_pairs(q_dev, q_dev_low, k_dev, k_dev_low, second, SPREAD_LOW)
            else:
                second = _dot_pairs(q_dev, q_dev_low, k, k_low, second, SPREAD_LOW)
                third = _dot_pairs(q, q_low, k_dev, k_dev_low, third, SPREAD_LOW)

    if RECTIFICATION == "precise":
        # In a loop of its own, see rank.py.
        for start in tl.range(0, DP, STEP, num_stages=1):
            cols = start + tl.arange(0, STEP)
            q_dev, q_dev_low = _load_pair(
                q_spread, q_spread_low, q_rows + cols[None, :], q_inside, SPREAD_LOW
            )
            q_length += tl.sum(q_dev.to(tl.float32), 1)
            if SPREAD_LOW:
                q_length += tl.sum(q_dev_low.to(tl.float32), 1)

    length = tl.minimum(video_length - k_index * KV_BLOCK, KV_BLOCK)
    # Columns behind the last block have no length; they are not stored.
    logit = scale * raw + tl.log(tl.maximum(length, 1).to(tl.float32))[None, :]
    out = (head * num_q + q_index)[:, None] * num_k + k_index[None, :]
    stored = q_inside & k_inside
    if RECTIFICATION == "precise":
        variance_term = 0.5 * scale * scale * second
        logit += tl.minimum(variance_term, variance_cap)
        # Per unit of |q|²: the tail multiplies it by that of each row.
        per_length = variance_term / tl.maximum(q_length, 1e-30)[:, None]
        tl.store(tail_spread + out, per_length, mask=stored)
    if RECTIFICATION == "paper":
        error = tl.abs(second) + tl.abs(third)
        tl.store(accepted + out, (tl.abs(raw) > error).to(tl.int8), mask=stored)
    tl.store(logits + out, logit, mask=stored)


@triton.jit(
    do_not_specialize=[
        "first_head",
        "num_heads",
        "num_q",
        "context_length",
    ]
)
def context_lse_kernel(
    q_mean,  # [HC, NQ, DP] fp32 or 16 bits
    q_mean_low,  # or None
    k,  # [B, H, N, D], any strides
    source,  # [context_length or more] int32: tokens of the context
    context_lse,  # [HC, NQ] fp32, written
    first_head,
    num_heads,
    num_q,
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
    MEAN_LOW: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    batch_head = first_head + head
    k_base = k + (batch_head // num_heads) * stride_b + (batch_head % num_heads) * stride_h
    q_index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    q_inside = q_index < num_q
    q_rows = (head * num_q + q_index)[:, None] * DP
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
                q_mean, q_mean_low, q_rows + cols[None, :], q_inside[:, None], MEAN_LOW
            )
            k_offsets = token[None, :] * stride_n + cols.to(tl.int64)[:, None] * stride_d
            inside = k_inside[None, :] & (cols < D)[:, None]
            keys = tl.load(k_base + k_offsets, mask=inside, other=0.0)
            if MEAN_LOW:
                raw = tl.dot(q_low, keys, raw)
            raw = tl.dot(q, keys.to(q.dtype), raw, input_precision="ieee")
        scores = tl.where(k_inside[None, :], scale * raw, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        total = total * tl.exp(highest - new_highest)
        total += tl.sum(tl.exp(scores - new_highest[:, None]), 1)
        highest = new_highest
    tl.store(context_lse + head * num_q + q_index, highest + tl.log(total), mask=q_inside)
