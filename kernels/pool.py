"""Pool and pack: one read of a tensor gives its block statistics and its copy in token order.

    mean_j = 1/n_j Σ_{t in j} x_t          mean_abs_dev_j = 1/n_j Σ |x_t - mean_j|

over the true n_j tokens of block j, in fp32; optionally the copy is rounded to int8. Specification:
rspa_core/pooling.py and rspa_core/quantisation.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .devices import pool_warps
from .plan import Plan, Pooled, Statistic, strides


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
        "num_pooled",
    ]
)
def pool_kernel(
    x,  # [B, H, N, D], any strides
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    shift,  # [B * H, D] fp32, taken off before rounding, read if INT8 or RADIUS
    packed,  # [HC, NB * BLOCK, DP] dtype of x or int8, written if PACK
    packed_scale,  # [HC, NB] fp32, written if PACK and INT8
    mean,  # [HC, NV, DP] fp32 or, with mean_low, 16 bits: mean + mean_low is the mean
    mean_low,  # or None
    mean_abs_dev,  # [HC, NV, DP] like mean, written if MEAN_ABS_DEV
    mean_abs_dev_low,  # or None
    radius,  # [HC, NB] fp32: max |x_t - shift|, written if RADIUS
    first_head,
    num_heads,
    num_blocks,
    num_pooled,  # NV: blocks that have statistics; those behind them are only packed
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    D: tl.constexpr,
    DP: tl.constexpr,  # D padded to a power of two; the padding is zero everywhere
    BLOCK: tl.constexpr,
    PACK: tl.constexpr,
    INT8: tl.constexpr,
    RADIUS: tl.constexpr,
    MEAN_ABS_DEV: tl.constexpr,
    LOW: tl.constexpr,
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
    if block < num_pooled:
        values = tile.to(tl.float32)
        # Of the parts of a ragged q-block some may have no token: their mean is 0.
        count = tl.maximum(tl.sum(is_token.to(tl.float32), 0), 1.0)
        average = tl.sum(values, 0) / count  # [DP]
        out = (head * num_pooled + block) * DP + cols
        _store_split(mean, mean_low, out, average, LOW)
        if MEAN_ABS_DEV:
            deviation = tl.where(inside, values - average[None, :], 0.0)
            deviation = tl.sum(tl.abs(deviation), 0) / count
            _store_split(mean_abs_dev, mean_abs_dev_low, out, deviation, LOW)


def pool_queries(q: Tensor, plan: Plan) -> Pooled:
    """Statistics of the video's q-blocks, of "precise" those of their parts."""
    sizes, q_block = plan.sizes, plan.config.q_block
    source = plan.tables.q_source[sizes.num_context_q * q_block :]
    return _pool(q, plan, source, q_block // sizes.q_parts, sizes.num_q * sizes.q_parts)


def pool_keys(k: Tensor, plan: Plan) -> Pooled:
    """Statistics of the video's kv-blocks, and all keys packed as the attention reads them."""
    config, tile = plan.config, plan.tile
    return _pool(
        k, plan, plan.tables.kv_source, config.kv_block, plan.sizes.num_k,
        pack=True, int8=tile.int8, radius=tile.specialised,
    )  # fmt: skip


def pool_values(v: Tensor, plan: Plan) -> Pooled:
    """Means of the video's kv-blocks, and all values packed as the attention reads them."""
    source, kv_block = plan.tables.kv_source, plan.config.kv_block
    return _pool(v, plan, source, kv_block, plan.sizes.num_k, pack=True, deviations=False)


def _pool(
    x: Tensor,
    plan: Plan,
    source: Tensor,
    block: int,
    num_pooled: int,
    pack: bool = False,
    int8: bool = False,
    radius: bool = False,
    deviations: bool = True,
) -> Pooled:
    """Pool `x [B, H, N, D]` in blocks of `source`.

    Args:
        x: q, k or v.
        plan: see there.
        source: token of each packed position, see `IndexTables`.
        block: tokens per block.
        num_pooled: blocks that are pooled; those behind them are only packed.
        pack: also copy the tokens in the order of `source`.
        int8: round the copy to int8 after the shift has been taken off.
        radius: also find the largest distance of a token from the shift.
        deviations: also mean absolute deviations, where the rectification reads them.
    """
    num_blocks = len(source) // block
    heads, padded_dim = plan.chunk_heads, plan.sizes.padded_dim
    mean = Statistic.empty((heads, num_pooled, padded_dim), x.dtype, x.device)
    mean_abs_dev = packed = packed_scale = distances = None
    if deviations and plan.config.rectification == "paper":
        mean_abs_dev = Statistic.empty((heads, num_pooled, padded_dim), x.dtype, x.device)
    if pack:
        packed = x.new_empty(
            (heads, len(source), padded_dim), dtype=torch.int8 if int8 else x.dtype
        )
    if int8:
        packed_scale = x.new_empty((heads, num_blocks), dtype=torch.float32)
    if radius:
        distances = x.new_empty((heads, num_blocks), dtype=torch.float32)
    pool_kernel[(heads, num_blocks)](
        x=x,
        source=source,
        shift=plan.shift if int8 or radius else None,
        packed=packed,
        packed_scale=packed_scale,
        mean=mean.high,
        mean_low=mean.low,
        mean_abs_dev=mean_abs_dev and mean_abs_dev.high,
        mean_abs_dev_low=mean_abs_dev and mean_abs_dev.low,
        radius=distances,
        first_head=plan.first_head,
        num_heads=plan.num_heads,
        num_blocks=num_blocks,
        num_pooled=num_pooled,
        **strides(x),
        D=plan.sizes.head_dim,
        DP=padded_dim,
        BLOCK=block,
        PACK=pack,
        INT8=int8,
        RADIUS=radius,
        MEAN_ABS_DEV=mean_abs_dev is not None,
        LOW=mean.low is not None,
        num_warps=pool_warps(block, int8),
    )
    farthest = None if distances is None else distances.amax(1)
    return Pooled(mean, mean_abs_dev, packed, packed_scale, farthest)
