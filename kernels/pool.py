"""Pool and pack: one read of a tensor gives its block statistics and its copy in token order.

    mean_j = 1/n_j Σ_{t in j} x_t          mean_abs_dev_j = 1/n_j Σ |x_t - mean_j|
                                           variance_j     = 1/n_j Σ (x_t - mean_j)²

over the true n_j tokens of block j, in fp32. Specification: rspa_core/pooling.py.
"""

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "first_head",
        "num_heads",
        "num_blocks",
        "num_video_blocks",
    ]
)
def pool_kernel(
    x,  # [B, H, N, D], any strides
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    packed,  # [HC, NB * BLOCK, DP] dtype of x, written if PACK
    mean,  # [HC, NV, DP] fp32
    deviation,  # [HC, NV, DP] fp32, written if DEVIATION != "none"
    tail_mean,  # [HC, NV, DP] dtype of x, written if TAIL
    tail_deviation,  # [HC, NV, DP] dtype of x, half the variance, written if TAIL and variance
    first_head,
    num_heads,
    num_blocks,
    num_video_blocks,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    D: tl.constexpr,
    DP: tl.constexpr,  # D padded to a power of two; the padding is zero everywhere
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
    DEVIATION: tl.constexpr,  # "none" | "mean_abs_dev" | "variance"
    TAIL: tl.constexpr,
):
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    batch_head = first_head + head
    rows = tl.arange(0, BLOCK)
    cols = tl.arange(0, DP)

    token = tl.load(source + block * BLOCK + rows)
    inside = (token >= 0)[:, None] & (cols < D)[None, :]
    base = x + (batch_head // num_heads) * stride_b + (batch_head % num_heads) * stride_h
    offsets = token.to(tl.int64)[:, None] * stride_n + cols.to(tl.int64)[None, :] * stride_d
    tile = tl.load(base + offsets, mask=inside, other=0.0)  # [BLOCK, DP]

    if PACK:
        row = (head * num_blocks + block) * BLOCK + rows
        tl.store(packed + row[:, None] * DP + cols[None, :], tile)

    # Context blocks are packed but have no statistics: they are never pooled.
    if block < num_video_blocks:
        values = tile.to(tl.float32)
        count = tl.sum((token >= 0).to(tl.float32), 0)
        average = tl.sum(values, 0) / count  # [DP]
        out = (head * num_video_blocks + block) * DP + cols
        tl.store(mean + out, average)
        if TAIL:
            tl.store(tail_mean + out, average.to(tail_mean.dtype.element_ty))
        if DEVIATION != "none":
            centred = tl.where(inside, values - average[None, :], 0.0)
            if DEVIATION == "variance":
                spread = tl.sum(centred * centred, 0) / count
            else:
                spread = tl.sum(tl.abs(centred), 0) / count
            tl.store(deviation + out, spread)
            if TAIL:
                # 65504: largest fp16; a wider block is capped by the variance term anyway.
                half = tl.minimum(0.5 * spread, 65504.0)
                tl.store(tail_deviation + out, half.to(tail_deviation.dtype.element_ty))
