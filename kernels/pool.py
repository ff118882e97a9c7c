"""Pool and pack: one read of a tensor gives its block statistics and its copy in token order.

    mean_j = 1/n_j Σ_{t in j} x_t          mean_abs_dev_j = 1/n_j Σ |x_t - mean_j|

over the true n_j tokens of block j, in fp32. The copy may be rounded to int8, or scaled to fp16,
whose sums over a tile must stay below 65504. Specification: rspa_core/pooling.py and
rspa_core/quantisation.py.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rspa_core.quantisation import ROTATED_CHANNELS
from . import run
from .devices import pool_warps
from .plan import Plan, Pooled, Statistic, strides

HALF_RANGE = 256.0
"""Values of a block are scaled below this: 128 of them, weighted up to 1, sum up below 32768, and a
value is exact down to 2^-22 of the block's largest."""


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


@triton.jit
def rotate(x, rotation, RUN: tl.constexpr):
    """x H in fp32 of x `[M, DP]`, see rspa_core/quantisation.py; rotation: `[RUN, RUN]`, as x."""
    cols = tl.arange(0, RUN)
    turn = tl.load(rotation + cols[:, None] * RUN + cols[None, :])
    runs = tl.reshape(x, [x.shape[0] * x.shape[1] // RUN, RUN])
    turned = tl.dot(runs, turn, input_precision="ieee") * (1.0 / tl.sqrt(RUN * 1.0))
    return tl.reshape(turned, [x.shape[0], x.shape[1]])


@triton.jit
def power_below(x):
    """The power of two at or below x > 0 of fp32, inf of inf and NaN: what scales exactly."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def round_half(x, HALF_RANGE: tl.constexpr):
    """`x [M, DP]` as fp16 below `HALF_RANGE` in size, and the power of two it is to be taken times.

    Products with weights up to 1 are summed in fp16, up to 65504.
    """
    # The maximum drops NaN; the sum carries it into the scale, where it is seen.
    largest = tl.max(tl.max(tl.abs(x), 1), 0) + 0.0 * tl.sum(tl.sum(x, 1), 0)
    scale = power_below(tl.maximum(largest, 1e-30)) * (2.0 / HALF_RANGE)
    return (x * (1.0 / scale)).to(tl.float16), scale


@triton.jit(
    do_not_specialize=[
        "first_head",
        "num_heads",
        "num_blocks",
        "first_pooled",
        "num_pooled",
    ]
)
def pool_kernel(
    x,  # [B, H, N, D], any strides
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    shift,  # fp32, taken off: [B * H, DP] rotated if BLOCK_INT8, else [B * H, D] read if RADIUS
    rotation,  # [RUN, RUN] dtype of x, read if ROW_INT8 or BLOCK_INT8
    packed,  # [HC, NB * BLOCK, DP] dtype of x, int8 or fp16, written if PACK
    scale,  # fp32, of packed, written: [HC, NB] if BLOCK_INT8 or HALF, [HC, NB * BLOCK] if ROW_INT8
    mean,  # [HC, NV * PARTS, DP] fp32 or, with mean_low, 16 bits: mean + mean_low is the mean
    mean_low,  # or None
    mean_abs_dev,  # [HC, NV * PARTS, DP] like mean, written if MEAN_ABS_DEV
    mean_abs_dev_low,  # or None
    radius,  # [HC, NB] fp32: max |x_t - shift|, written if RADIUS
    squares,  # [HC, NV] fp32: sum of |x_t|², written if SQUARES
    first_head,
    num_heads,
    num_blocks,
    first_pooled,  # first block that has statistics; those before it are only packed
    num_pooled,  # NV: blocks that have statistics; those behind them are only packed
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    D: tl.constexpr,
    DP: tl.constexpr,  # D padded to a power of two; the padding is zero everywhere
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,  # of a block that have statistics of their own
    PACK: tl.constexpr,
    ROW_INT8: tl.constexpr,
    BLOCK_INT8: tl.constexpr,
    HALF: tl.constexpr,
    HALF_RANGE: tl.constexpr,
    RUN: tl.constexpr,
    RADIUS: tl.constexpr,
    SQUARES: tl.constexpr,
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
    values = tile.to(tl.float32)

    # Context blocks are packed but have no statistics: they are never pooled.
    pooled = block - first_pooled
    if (pooled >= 0) & (pooled < num_pooled):
        PART: tl.constexpr = BLOCK // PARTS
        parted = tl.reshape(values, [PARTS, PART, DP])
        in_part = tl.reshape(is_token, [PARTS, PART])
        # Of the parts of a ragged q-block some may have no token: their mean is 0.
        count = tl.maximum(tl.sum(in_part.to(tl.float32), 1), 1.0)[:, None]
        average = tl.sum(parted, 1) / count  # [PARTS, DP]
        out = ((head * num_pooled + pooled) * PARTS + tl.arange(0, PARTS))[:, None] * DP
        out += cols[None, :]
        _store_split(mean, mean_low, out, average, LOW)
        if SQUARES:
            total = tl.sum(tl.sum(values * values, 1), 0)
            tl.store(squares + head * num_pooled + pooled, total)
        if MEAN_ABS_DEV:
            deviation = tl.abs(parted - average[:, None, :])
            # Behind D both are zero.
            deviation = tl.where(in_part[:, :, None], deviation, 0.0)
            deviation = tl.sum(deviation, 1) / count
            _store_split(mean_abs_dev, mean_abs_dev_low, out, deviation, LOW)

    if BLOCK_INT8:
        moved = rotate(tile, rotation, RUN) - tl.load(shift + batch_head * DP + cols)[None, :]
        moved = tl.where(is_token[:, None], moved, 0.0)
    elif RADIUS:
        moved = values - tl.load(shift + batch_head * D + cols, mask=cols < D, other=0.0)[None, :]
        moved = tl.where(inside, moved, 0.0)
    if RADIUS:
        longest = tl.sqrt(tl.max(tl.sum(moved * moved, 1), 0))
        tl.store(radius + head * num_blocks + block, longest)
    if PACK:
        row = (head * num_blocks + block) * BLOCK + rows
        packed_offsets = row[:, None] * DP + cols[None, :]
        # Maxima drop NaN; sums carry it into the scales, where it is seen.
        if ROW_INT8:
            turned = rotate(tile, rotation, RUN)
            largest = tl.max(tl.abs(turned), 1) + 0.0 * tl.sum(turned, 1)
            steps = 127.0 / tl.maximum(largest, 1e-30)
            tl.store(packed + packed_offsets, tl.floor(turned * steps[:, None] + 0.5).to(tl.int8))
            tl.store(scale + row, largest / 127.0)
        elif BLOCK_INT8:
            largest = tl.max(tl.max(tl.abs(moved), 1), 0) + 0.0 * tl.sum(tl.sum(moved, 1), 0)
            steps = 127.0 / tl.maximum(largest, 1e-30)
            tl.store(packed + packed_offsets, tl.floor(moved * steps + 0.5).to(tl.int8))
            tl.store(scale + head * num_blocks + block, largest / 127.0)
        elif HALF:
            rounded, unit = round_half(values, HALF_RANGE)
            tl.store(packed + packed_offsets, rounded)
            tl.store(scale + head * num_blocks + block, unit)
        else:
            tl.store(packed + packed_offsets, tile)


def pool_queries(q: Tensor, plan: Plan) -> Pooled:
    """Statistics of the video's q-blocks, of "precise" those of their parts; int8 queries."""
    sizes, q_block = plan.sizes, plan.config.q_block
    source, first = plan.tables.q_source, sizes.num_context_q
    squares = plan.config.rectification == "precise"
    if plan.tile.int8:
        return _pool(
            q, plan, source, q_block, first, sizes.num_q, parts=sizes.q_parts, pack="rows",
            squares=squares,
        )  # fmt: skip
    # Nothing to pack: each part is a small program of its own.
    pooled = _pool(
        q, plan, source[first * q_block :], q_block // sizes.q_parts, 0,
        sizes.num_q * sizes.q_parts, squares=squares,
    )  # fmt: skip
    if pooled.squares is None:
        return pooled
    return replace(pooled, squares=pooled.squares.unflatten(1, (-1, sizes.q_parts)).sum(2))


def pool_keys(k: Tensor, plan: Plan) -> Pooled:
    """Statistics of the video's kv-blocks, and all keys packed as the attention reads them."""
    tile = plan.tile
    return _pool(
        k, plan, plan.tables.kv_source, plan.config.kv_block, 0, plan.sizes.num_k,
        pack="blocks" if tile.int8 else "plain", radius=tile.specialised,
    )  # fmt: skip


def pool_values(v: Tensor, plan: Plan) -> Pooled:
    """Means of the video's kv-blocks, and all values packed as the attention reads them."""
    return _pool(
        v, plan, plan.tables.kv_source, plan.config.kv_block, 0, plan.sizes.num_k,
        pack="half" if plan.tile.half_sums else "plain", deviations=False,
    )  # fmt: skip


def _pool(
    x: Tensor,
    plan: Plan,
    source: Tensor,
    block: int,
    first_pooled: int,
    num_pooled: int,
    parts: int = 1,
    pack: str | None = None,
    radius: bool = False,
    squares: bool = False,
    deviations: bool = True,
) -> Pooled:
    """Pool `x [B, H, N, D]` in blocks of `source`.

    Args:
        x: q, k or v.
        plan: see there.
        source: token of each packed position, see `IndexTables`.
        block: tokens per block.
        first_pooled, num_pooled: blocks that are pooled; the others are only packed.
        parts: of a block that have statistics of their own.
        pack: also copy the tokens in the order of `source`: "plain", rounded to int8 with a scale
            for "rows" or, less the shift, for "blocks", or to fp16 with a scale for blocks, "half".
        radius: also find the largest distance of a token from the shift.
        squares: also sum up squared lengths.
        deviations: also mean absolute deviations, where the rectification reads them.
    """
    num_blocks = len(source) // block
    heads, padded_dim = plan.chunk_heads, plan.sizes.padded_dim
    means = (heads, num_pooled * parts, padded_dim)
    mean = Statistic.empty(means, x.dtype, x.device)
    mean_abs_dev = packed = scale = None
    if deviations and plan.config.rectification == "paper":
        mean_abs_dev = Statistic.empty(means, x.dtype, x.device)
    if pack is not None:
        dtypes = {"rows": torch.int8, "blocks": torch.int8, "half": torch.float16}
        dtype = dtypes.get(pack, x.dtype)
        packed = x.new_empty((heads, len(source), padded_dim), dtype=dtype)
        if pack != "plain":
            scales = len(source) if pack == "rows" else num_blocks
            scale = x.new_empty((heads, scales), dtype=torch.float32)
    distances = x.new_empty((heads, num_blocks), dtype=torch.float32) if radius else None
    lengths = x.new_empty((heads, num_pooled), dtype=torch.float32) if squares else None
    run(
        pool_kernel,
        (heads, num_blocks),
        x=x,
        source=source,
        shift=plan.shift if radius or pack == "blocks" else None,
        rotation=plan.rotation if pack in ("rows", "blocks") else None,
        packed=packed,
        scale=scale,
        mean=mean.high,
        mean_low=mean.low,
        mean_abs_dev=mean_abs_dev and mean_abs_dev.high,
        mean_abs_dev_low=mean_abs_dev and mean_abs_dev.low,
        radius=distances,
        squares=lengths,
        first_head=plan.first_head,
        num_heads=plan.num_heads,
        num_blocks=num_blocks,
        first_pooled=first_pooled,
        num_pooled=num_pooled,
        **strides(x),
        D=plan.sizes.head_dim,
        DP=padded_dim,
        BLOCK=block,
        PARTS=parts,
        PACK=pack is not None,
        ROW_INT8=pack == "rows",
        BLOCK_INT8=pack == "blocks",
        HALF=pack == "half",
        HALF_RANGE=HALF_RANGE,
        RUN=ROTATED_CHANNELS,
        RADIUS=radius,
        SQUARES=squares,
        MEAN_ABS_DEV=mean_abs_dev is not None,
        LOW=mean.low is not None,
        num_warps=pool_warps(block),
    )
    farthest = None if distances is None else distances.amax(1)
    return Pooled(mean, mean_abs_dev, packed, scale, farthest, lengths)
