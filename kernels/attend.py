"""Attend: flash attention over a list of kv-blocks, with the rectification in its epilogue.

    none      O_r = softmax_{keys in C_i, context}(c q_r·k) V
    paper     O_r = R_i * softmax_{keys in C_i, context}(c q_r·k) V + compensation_i
    precise   every block j not in C_i is one more key of the same softmax, with value v̄_j and
              logit c q_r·k̄_j + ln n_j + min(½ c² Σ_d q_rd² var_k,jd, cap)

Softmax in fp32 with exp2, scale applied to the scores and not rounded into q. Rows are read and
stored through the token order, so nothing is permuted outside. Specification:
rspa_core/reference.py; arXiv 2511.19835 for R and the compensation.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _absorb(acc, highest, total, scores, unit, values, PRECISION: tl.constexpr):
    """One step of the online softmax: scores [M, N], `unit` brings them to log2, values [N, DP]."""
    # Scaling after the maximum leaves one fused multiply-add per score.
    new_highest = tl.maximum(highest, tl.max(scores, 1) * unit)
    rescale = tl.exp2(highest - new_highest)
    probs = tl.exp2(scores * unit - new_highest[:, None])
    total = total * rescale + tl.sum(probs, 1)
    acc = acc * rescale[:, None]
    acc = tl.dot(probs.to(values.dtype), values, acc, input_precision=PRECISION)
    return acc, new_highest, total


@triton.jit
def _load_tile(packed, row, DP: tl.constexpr, TILE_N: tl.constexpr, TMA: tl.constexpr):
    """Rows `row .. row + TILE_N` of a packed tensor, [TILE_N, DP]; `row` is int32."""
    if TMA:
        tile = packed.load([row, 0])
    else:
        offsets = tl.arange(0, TILE_N)[:, None] * DP + tl.arange(0, DP)[None, :]
        tile = tl.load(packed + row.to(tl.int64) * DP + offsets)
    return tile


@triton.jit
def _ragged_block(
    acc, highest, total, q, packed_k, packed_v, first_row, length, unit,
    DP: tl.constexpr, TILE_N: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend the first `length` keys of the block that starts at packed row `first_row`."""
    rows = tl.arange(0, TILE_N)
    for start in range(0, length, TILE_N):
        k = _load_tile(packed_k, first_row + start, DP, TILE_N, TMA)
        v = _load_tile(packed_v, first_row + start, DP, TILE_N, TMA)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = tl.where((start + rows < length)[None, :], scores, float("-inf"))
        acc, highest, total = _absorb(acc, highest, total, scores, unit, v, PRECISION)
    return acc, highest, total


@triton.jit(
    do_not_specialize=[
        "first_head",
        "num_heads",
        "length",
        "packed_length",
        "num_q",
        "num_context_q",
        "num_k",
        "video_length",
        "context_length",
        "width",
        "all_blocks_start",
        "num_all_blocks",
    ]
)
def attend_kernel(
    q,  # [B, H, N, D], any strides
    q_source,  # [(NCQ + NQ) * Q_BLOCK] int32: token of each row, context rows first, -1 padding
    packed_k,  # [HC, packed_length, DP]: video blocks, then context blocks, zeros behind each;
    packed_v,  # with TMA a tensor descriptor of [HC * packed_length, DP] in tiles of TILE_N rows
    kv_indices,  # [HC * NQ * width + NK + NCK] int32; the end lists all full blocks
    list_lengths,  # [HC, NQ] int32
    ragged_kept,  # [HC, NQ] int32
    rectify_scale,  # [HC, NQ] fp32, paper
    compensation,  # [HC, NQ, DP] fp32, paper
    critical,  # [HC, NQ, NK] int8, precise
    tail_k,  # [HC, NK, DP] dtype of k: block means, precise
    tail_variance,  # [HC, NK, DP] dtype of k: half the variance, precise
    tail_v,  # [HC, NK, DP] dtype of v: block means, precise
    out,  # [B, N, H, D] contiguous
    first_head,
    num_heads,
    length,  # N
    packed_length,
    num_q,
    num_context_q,  # q-blocks of context rows; they attend everything
    num_k,
    video_length,
    context_length,
    width,
    all_blocks_start,  # where the list of all full blocks starts in kv_indices, int64
    num_all_blocks,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    scale,
    variance_cap,
    D: tl.constexpr,
    DP: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    TILE_N: tl.constexpr,
    TAIL_TILE: tl.constexpr,
    TAIL_STAGES: tl.constexpr,
    TMA: tl.constexpr,
    RECTIFICATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Context blocks first: they are the longest and must not start last.
    block = tl.program_id(0)
    q_block = block - num_context_q
    is_video = q_block >= 0
    head = tl.program_id(1).to(tl.int64)
    batch = (first_head + head) // num_heads
    head_in_batch = (first_head + head) % num_heads
    row = head * num_q + tl.maximum(q_block, 0)
    cols = tl.arange(0, DP)

    token = tl.load(q_source + block * Q_BLOCK + tl.arange(0, Q_BLOCK)).to(tl.int64)
    stored = (token >= 0)[:, None] & (cols < D)[None, :]
    q_offsets = token[:, None] * stride_n + cols.to(tl.int64)[None, :] * stride_d
    q_base = q + batch * stride_b + head_in_batch * stride_h
    q_tile = tl.load(q_base + q_offsets, mask=stored, other=0.0)  # [Q_BLOCK, DP]

    head_row = (head * packed_length).to(tl.int32)  # of this chunk's heads: far below 2^31
    unit = scale * LOG2E  # from raw scores to exponents of 2
    acc = tl.zeros([Q_BLOCK, DP], tl.float32)
    highest = tl.full([Q_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([Q_BLOCK], tl.float32)

    # Full blocks: no mask. The next entry is loaded one step ahead, so that the address of the
    # next tile is known when its prefetch is issued.
    TILES: tl.constexpr = KV_BLOCK // TILE_N
    entries = kv_indices + tl.where(is_video, row * width, all_blocks_start)
    num_entries = tl.where(is_video, tl.load(list_lengths + row), num_all_blocks)
    num_tiles = num_entries * TILES
    entry = tl.load(entries, mask=num_entries > 0, other=0)
    for i in range(0, num_tiles):
        first_row = head_row + entry * KV_BLOCK + (i % TILES) * TILE_N
        entry = tl.load(entries + (i + 1) // TILES, mask=i + 1 < num_tiles, other=0)
        k = _load_tile(packed_k, first_row, DP, TILE_N, TMA)
        v = _load_tile(packed_v, first_row, DP, TILE_N, TMA)
        scores = tl.dot(q_tile, tl.trans(k), input_precision=PRECISION)
        acc, highest, total = _absorb(acc, highest, total, scores, unit, v, PRECISION)

    # At most two ragged blocks: the end of the video and the end of the context.
    # A length of 0 skips one.
    kept = (is_video == 0) | (tl.load(ragged_kept + row) > 0)
    last_video = head_row + (num_k - 1) * KV_BLOCK
    last_context = head_row + (num_k + context_length // KV_BLOCK) * KV_BLOCK
    acc, highest, total = _ragged_block(
        acc, highest, total, q_tile, packed_k, packed_v, last_video,
        tl.where(kept, video_length % KV_BLOCK, 0), unit, DP, TILE_N, TMA, PRECISION,
    )  # fmt: skip
    acc, highest, total = _ragged_block(
        acc, highest, total, q_tile, packed_k, packed_v, last_context,
        context_length % KV_BLOCK, unit, DP, TILE_N, TMA, PRECISION,
    )  # fmt: skip

    if RECTIFICATION == "precise":
        scaled_q = q_tile.to(tl.float32) * scale
        squared_q = scaled_q * scaled_q
        if q_tile.dtype == tl.float16:
            squared_q = tl.minimum(squared_q, 65504.0)  # the largest fp16: inf * 0 would be NaN
        squared_q = squared_q.to(q_tile.dtype)
        num_tail = tl.where(is_video, num_k, 0)
        tail_rows = tl.arange(0, TAIL_TILE)
        for start in tl.range(0, num_tail, TAIL_TILE, num_stages=TAIL_STAGES):
            index = start + tail_rows
            inside = index < num_k
            offsets = (head * num_k + index)[:, None] * DP + cols[None, :]
            k = tl.load(tail_k + offsets, mask=inside[:, None], other=0.0)
            variance = tl.load(tail_variance + offsets, mask=inside[:, None], other=0.0)
            v = tl.load(tail_v + offsets, mask=inside[:, None], other=0.0)
            is_critical = tl.load(critical + row * num_k + index, mask=inside, other=1)
            size = tl.minimum(video_length - index * KV_BLOCK, KV_BLOCK)
            bias = tl.log(tl.maximum(size, 1).to(tl.float32))
            bias = tl.where(is_critical == 0, bias, float("-inf"))
            second = tl.dot(squared_q, tl.trans(variance), input_precision=PRECISION)
            scores = tl.dot(q_tile, tl.trans(k), input_precision=PRECISION) * scale
            scores += tl.minimum(second, variance_cap) + bias[None, :]
            acc, highest, total = _absorb(acc, highest, total, scores, LOG2E, v, PRECISION)

    result = acc / total[:, None]
    if RECTIFICATION == "paper":
        result *= tl.load(rectify_scale + row, mask=is_video, other=1.0)
        result += tl.load(compensation + row * DP + cols, mask=is_video, other=0.0)[None, :]
    out_rows = (batch * length + token) * num_heads + head_in_batch
    out_offsets = out_rows[:, None] * D + cols[None, :]
    tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=stored)
