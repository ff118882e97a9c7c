"""Pool and pack: one read of a tensor gives its block statistics and its copy in token order.

    mean_j = 1/n_j Σ_{t in j} x_t          mean_abs_dev_j = 1/n_j Σ |x_t - mean_j|
    variance_j = 1/n_j Σ (x_t - mean_j)²   mean_square_j  = 1/n_j Σ x_t²

over the true n_j tokens of block j, in fp32; optionally the copy is rounded to int8. Specification:
rspa_core/pooling.py and rspa_core/quantisation.py.
"""

import triton
import triton.language as tl


@triton.jit
def load_block(
    x,  # [B, H, N, D], any strides
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    batch_head,
    block,
    num_heads,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of one block in token order, `[BLOCK, DP]`, zero behind its last token and behind D.

    Returns them, which rows are tokens `[BLOCK]` and which elements are of x `[BLOCK, DP]`.
    """
    cols = tl.arange(0, DP)
    token = tl.load(source + block * BLOCK + tl.arange(0, BLOCK))
    is_token = token >= 0
    base = x + (batch_head // num_heads) * stride_b + (batch_head % num_heads) * stride_h
    offsets = token.to(tl.int64)[:, None] * stride_n + cols.to(tl.int64)[None, :] * stride_d
    inside = is_token[:, None] & (cols < D)[None, :]
    return tl.load(base + offsets, mask=inside, other=0.0), is_token, inside


@triton.jit
def _store_split(high, low, offsets, value, HAS_LOW: tl.constexpr):
    """Store fp32 `value` as the sum of two numbers of the dtype of `high`, or as one."""
    rounded = value.to(high.dtype.element_ty)
    tl.store(high + offsets, rounded)
    if HAS_LOW:
        tl.store(low + offsets, (value - rounded.to(tl.float32)).to(low.dtype.element_ty))


@triton.jit(
    do_not_specialize=[
        "first_head",
        "num_heads",
        "num_blocks",
        "num_video_blocks",
        "tail_length",
    ]
)
def pool_kernel(
    x,  # [B, H, N, D], any strides
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    shift,  # [B * H, D] fp32, taken off before rounding and off tail_mean, read if INT8 or RADIUS
    packed,  # [HC, NB * BLOCK, DP] dtype of x or int8, written if PACK
    packed_scale,  # [HC, NB] fp32, written if PACK and INT8
    mean,  # [HC, NV, DP] fp32 or, with mean_low, 16 bits: mean + mean_low is the mean
    mean_low,  # or None
    spread,  # [HC, NV, DP] like mean, written if STATISTIC != "none"
    spread_low,  # or None
    tail_mean,  # [HC, tail_length, DP] dtype of x, the first NV rows written if TAIL
    radius,  # [HC, NB] fp32: max |x_t - shift|, written if RADIUS
    first_head,
    num_heads,
    num_blocks,
    num_video_blocks,
    tail_length,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    D: tl.constexpr,
    DP: tl.constexpr,  # D padded to a power of two; the padding is zero everywhere
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
    INT8: tl.constexpr,
    STATISTIC: tl.constexpr,  # "none" | "mean_abs_dev" | "variance" | "mean_square"
    TAIL: tl.constexpr,
    RADIUS: tl.constexpr,
    MEAN_LOW: tl.constexpr,
    SPREAD_LOW: tl.constexpr,
):
    # In models the heads of one token lie beside each other in memory: they are read together.
    head = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    batch_head = first_head + head
    rows = tl.arange(0, BLOCK)
    cols = tl.arange(0, DP)
    tile, is_token, inside = load_block(
        x, source, batch_head, block, num_heads, stride_b, stride_h, stride_n, stride_d,
        D, DP, BLOCK,
    )  # fmt: skip

    if INT8 or RADIUS:
        moved = tl.load(shift + batch_head * D + cols, mask=cols < D, other=0.0)
        centred = tl.where(inside, tile.to(tl.float32) - moved[None, :], 0.0)
    if RADIUS:
        longest = tl.sqrt(tl.max(tl.sum(centred * centred, 1), 0))
        tl.store(radius + head * num_blocks + block, longest)
    if PACK:
        row = (head * num_blocks + block) * BLOCK + rows
        packed_offsets = row[:, None] * DP + cols[None, :]
        if INT8:
            # The maximum drops NaN; the sum carries it into the scale, where it is seen.
            largest = tl.max(tl.max(tl.abs(centred), 1), 0) + 0.0 * tl.sum(tl.sum(centred, 1), 0)
            steps = 127.0 / tl.maximum(largest, 1e-30)
            tl.store(packed + packed_offsets, tl.floor(centred * steps + 0.5).to(tl.int8))
            tl.store(packed_scale + head * num_blocks + block, largest / 127.0)
        else:
            tl.store(packed + packed_offsets, tile)

    # Context blocks are packed but have no statistics: they are never pooled.
    if block < num_video_blocks:
        values = tile.to(tl.float32)
        # Of the parts of a ragged q-block some may have no token: their mean is 0.
        count = tl.maximum(tl.sum(is_token.to(tl.float32), 0), 1.0)
        average = tl.sum(values, 0) / count  # [DP]
        out = (head * num_video_blocks + block) * DP + cols
        _store_split(mean, mean_low, out, average, MEAN_LOW)
        if TAIL:
            tail = average
            if INT8:
                tail -= moved
            tail_row = head * tail_length + block
            tl.store(tail_mean + tail_row * DP + cols, tail.to(tail_mean.dtype.element_ty))
        if STATISTIC != "none":
            if STATISTIC == "mean_square":
                statistic = tl.sum(values * values, 0) / count
            else:
                deviation = tl.where(inside, values - average[None, :], 0.0)
                if STATISTIC == "variance":
                    statistic = tl.sum(deviation * deviation, 0) / count
                else:
                    statistic = tl.sum(tl.abs(deviation), 0) / count
            _store_split(spread, spread_low, out, statistic, SPREAD_LOW)
