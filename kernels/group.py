"""Group: keys of a block by what sampled queries score, and what stands for each group.

    f_t = c (q_1·k_t, ..., q_R·k_t)     k-means on f: farthest-first seeds, `ROUNDS` of Lloyd
    r_g = 1/R Σ_s ln( 1/n_g Σ_{t in g} exp(min(f_ts - f̄_gs, limit)) ) / (1/R Σ_s |q_s|²)
    k̄_g, v̄_g, log2 n_g                  over the tokens of group g
    ν_g = √(½ c² v_g r_g)               v_g: mean variance of k

Three kernels: labels and what comes of f, and means of keys or of values, a kv-block per program;
then the means in narrow types. A group without tokens has log2 n_g = -inf. Specification:
rspa_core/key_groups.py and rspa_core/quantisation.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rspa_core.key_groups import LARGEST_GAIN, ROUNDS, SAMPLED_QUERIES
from ..rspa_core.quantisation import ROTATED_CHANNELS, TAIL_SCALE_GROUPS
from . import run
from .devices import label_registers
from .plan import Plan, Statistic, Tail, strides
from .pool import HALF_RANGE, load_block, rotate, round_half

GROUP_ROWS = tl.constexpr(16)  # of products over the members of groups: no smaller one exists


@triton.jit
def _sums(member_of, x, GROUPS: tl.constexpr):
    """Sums of `x [BLOCK, R]` over the members of each group, `[GROUP_ROWS, R]`.

    Not a product with the members: in three parts of tf32 each it would take all registers.
    """
    numbers = tl.arange(0, GROUP_ROWS)
    sums = tl.zeros([GROUP_ROWS, x.shape[1]], tl.float32)
    for group in tl.static_range(GROUPS):
        total = tl.sum(tl.where((member_of == group)[:, None], x, 0.0), 0)
        sums = tl.where((numbers == group)[:, None], total[None, :], sums)
    return sums


@triton.jit
def _nearest(features, centres, GROUPS: tl.constexpr):
    """Number of the nearest of `centres [GROUP_ROWS, R]` for every key, the lowest of equals."""
    # |f - c|² less |f|², which is the same for all centres.
    product = tl.dot(features, tl.trans(centres), input_precision="tf32x3")  # [BLOCK, GROUP_ROWS]
    distance = tl.sum(centres * centres, 1)[None, :] - 2.0 * product
    is_group = tl.arange(0, GROUP_ROWS)[None, :] < GROUPS
    return tl.argmin(tl.where(is_group, distance, float("inf")), 1)


@triton.jit(do_not_specialize=["first_head", "num_heads", "tail_length"])
def label_kernel(
    k,  # [B, H, N, D], any strides
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    queries,  # [B * H, R, DP] dtype of k: the sampled queries, zeros behind D
    labels,  # [HC, NB * BLOCK] int8: group of each packed key, -1 for padding, written
    tail_size,  # [HC, tail_length] fp32: log2 n_g at j G + g, written
    tail_gain,  # [HC, tail_length] fp32: r_g, written
    first_head,
    num_heads,
    tail_length,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    scale,
    limit,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    R: tl.constexpr,
    ROUNDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    batch_head = first_head + head
    rows = tl.arange(0, BLOCK)
    cols = tl.arange(0, DP)
    keys, is_token, _ = load_block(
        k, source, batch_head, block, num_heads, stride_b, stride_h, stride_n, stride_d,
        D, DP, BLOCK,
    )  # fmt: skip

    asked = tl.arange(0, R)[:, None] * DP + cols[None, :]
    asked = tl.load(queries + batch_head * R * DP + asked)  # [R, DP]
    features = scale * tl.dot(keys, tl.trans(asked), input_precision=PRECISION)  # [BLOCK, R]
    # Rows behind the last token are zero. Less the mean, distances keep their digits.
    length = tl.sum(is_token.to(tl.float32), 0)
    features -= (tl.sum(features, 0) / length)[None, :]
    distance = tl.sum(features * features, 1)
    numbers = tl.arange(0, GROUP_ROWS)
    centres = tl.zeros([GROUP_ROWS, R], tl.float32)
    member_of = tl.where(is_token, 0, -1)
    for group in tl.static_range(GROUPS):
        seed = tl.argmax(tl.where(is_token, distance, -1.0), 0)
        centre = tl.sum(tl.where((rows == seed)[:, None], features, 0.0), 0)
        centres = tl.where((numbers == group)[:, None], centre[None, :], centres)
        from_seed = features - centre[None, :]
        from_seed = tl.sum(from_seed * from_seed, 1)
        if group == 0:
            distance = from_seed
        else:
            member_of = tl.where(is_token & (from_seed < distance), group, member_of)
            distance = tl.minimum(distance, from_seed)
    for _ in tl.static_range(ROUNDS):
        counts = tl.sum((member_of[None, :] == numbers[:, None]).to(tl.float32), 1)
        sums = _sums(member_of, features, GROUPS)
        # A group without keys keeps its centre.
        averages = sums / tl.maximum(counts, 1.0)[:, None]
        centres = tl.where((counts > 0)[:, None], averages, centres)
        member_of = tl.where(is_token, _nearest(features, centres, GROUPS), -1)
    tl.store(labels + (head * tl.num_programs(1) + block) * BLOCK + rows, member_of.to(tl.int8))

    member = (member_of[None, :] == numbers[:, None]).to(tl.float32)  # [GROUP_ROWS, BLOCK]
    counts = tl.sum(member, 1)
    share = 1.0 / tl.maximum(counts, 1.0)
    centres = _sums(member_of, features, GROUPS) * share[:, None]
    apart = features - tl.dot(tl.trans(member), centres, input_precision="tf32x3")
    # A key at or above the mean bounds the sum from below, the limit from above.
    gain = _sums(member_of, tl.exp(tl.minimum(apart, limit)), GROUPS) * share[:, None]
    gain = tl.sum(tl.log(tl.maximum(gain, 1.0)), 1) / R
    query = asked.to(tl.float32)
    query_length = tl.sum(tl.sum(query * query, 1), 0) / R
    out = head * tail_length + block * GROUPS + numbers
    written = numbers < GROUPS
    size = tl.where(counts > 0, tl.log2(tl.maximum(counts, 1.0)), float("-inf"))
    tl.store(tail_size + out, size, mask=written)
    tl.store(tail_gain + out, gain / tl.maximum(query_length, 1e-30), mask=written)


@triton.jit(do_not_specialize=["first_head", "num_heads", "tail_length"])
def group_mean_kernel(
    x,  # [B, H, N, D], any strides: k or v
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    labels,  # [HC, NB * BLOCK] int8
    mean,  # [HC, tail_length, DP] dtype of x: mean of group g of block j at j G + g, written
    mean_low,  # what mean lacks, written, or None
    tail_variance,  # [HC, tail_length] fp32: r_g, overwritten by ν_g if VARIANCE
    first_head,
    num_heads,
    tail_length,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    VARIANCE: tl.constexpr,
    MEAN_LOW: tl.constexpr,
    PRECISION: tl.constexpr,
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
    member_of = tl.load(labels + (head * tl.num_programs(1) + block) * BLOCK + rows).to(tl.int32)

    # All groups at once: a product with the 0/1 matrix of the members is exact.
    numbers = tl.arange(0, GROUP_ROWS)
    member = member_of[None, :] == numbers[:, None]  # [GROUP_ROWS, BLOCK]
    counts = tl.sum(member.to(tl.float32), 1)
    averages = tl.dot(member.to(tile.dtype), tile, input_precision=PRECISION)
    share = 1.0 / tl.maximum(counts, 1.0)
    averages *= share[:, None]
    if VARIANCE:
        # The spread about the block's mean less that of the group's: the digits are kept.
        length = tl.sum(is_token.to(tl.float32), 0)
        block_mean = tl.sum(tile.to(tl.float32), 0) / length
        centred = tl.where(inside, tile.to(tl.float32) - block_mean[None, :], 0.0)
        squares = tl.sum(centred * centred, 1)
        squares = tl.sum(tl.where(member, squares[None, :], 0.0), 1) * share
        apart = tl.where((cols < D)[None, :], averages - block_mean[None, :], 0.0)
        variance = tl.maximum(squares - tl.sum(apart * apart, 1), 0.0) / D
        row = head * tail_length + block * GROUPS + numbers
        gain = tl.load(tail_variance + row, mask=numbers < GROUPS, other=0.0)
        spread = tl.where(counts > 0, tl.sqrt(0.5 * scale * scale * variance * gain), 0.0)
        tl.store(tail_variance + row, spread, mask=numbers < GROUPS)
    out = (head * tail_length + block * GROUPS + numbers)[:, None] * DP + cols[None, :]
    written = (numbers < GROUPS)[:, None]
    rounded = averages.to(mean.dtype.element_ty)
    tl.store(mean + out, rounded, mask=written)
    if MEAN_LOW:
        rest = averages - rounded.to(tl.float32)
        tl.store(mean_low + out, rest.to(mean_low.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["first_head", "num_rows", "tail_length"])
def narrow_kernel(
    mean,  # [HC, tail_length, DP]: means of groups of keys, read if INT8
    mean_low,  # or None
    values,  # [HC, tail_length, DP]: means of their values, read if HALF
    shift,  # [B * H, DP] fp32: rotated, taken off the rotated keys
    rotation,  # [RUN, RUN] dtype of mean
    keys,  # [HC, tail_length, DP] int8, written if INT8
    key_scale,  # [HC, tail_length / ROWS] fp32, written if INT8
    half_values,  # [HC, tail_length, DP] fp16, written if HALF
    value_scale,  # [HC, tail_length / ROWS] fp32, written if HALF
    first_head,
    num_rows,  # groups of a head
    tail_length,
    DP: tl.constexpr,
    ROWS: tl.constexpr,  # groups that share a scale
    INT8: tl.constexpr,
    HALF: tl.constexpr,
    HALF_RANGE: tl.constexpr,
    RUN: tl.constexpr,
    LOW: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    rows = part * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, DP)
    offsets = (head * tail_length + rows)[:, None] * DP + cols[None, :]
    place = head * (tail_length // ROWS) + part
    if INT8:
        turned = rotate(tl.load(mean + offsets), rotation, RUN)
        if LOW:
            turned += rotate(tl.load(mean_low + offsets), rotation, RUN)
        turned -= tl.load(shift + (first_head + head) * DP + cols)[None, :]
        turned = tl.where((rows < num_rows)[:, None], turned, 0.0)
        # The maximum drops NaN; the sum carries it into the scale, where it is seen.
        largest = tl.max(tl.max(tl.abs(turned), 1), 0) + 0.0 * tl.sum(tl.sum(turned, 1), 0)
        steps = 127.0 / tl.maximum(largest, 1e-30)
        tl.store(keys + offsets, tl.floor(turned * steps + 0.5).to(tl.int8))
        tl.store(key_scale + place, largest / 127.0)
    if HALF:
        rounded, unit = round_half(tl.load(values + offsets).to(tl.float32), HALF_RANGE)
        tl.store(half_values + offsets, rounded)
        tl.store(value_scale + place, unit)


def group_keys(k: Tensor, v: Tensor, plan: Plan) -> Tail:
    """What stands for the blocks that are left out: groups of their keys, and the values there."""
    sizes, config = plan.sizes, plan.config
    shape = (plan.chunk_heads, sizes.tail_length)
    size = k.new_full(shape, float("-inf"), dtype=torch.float32)
    variance = torch.zeros_like(size)
    labels = k.new_empty((plan.chunk_heads, sizes.num_k * config.kv_block), dtype=torch.int8)
    common: dict[str, Any] = {
        "source": plan.tables.kv_source,
        "labels": labels,
        "first_head": plan.first_head,
        "num_heads": plan.num_heads,
        "tail_length": sizes.tail_length,
        "scale": plan.scale,
        "D": sizes.head_dim,
        "DP": sizes.padded_dim,
        "BLOCK": config.kv_block,
        "GROUPS": config.tail_keys,
        "PRECISION": "ieee" if k.dtype == torch.float32 else "tf32",
    }
    grid = (plan.chunk_heads, sizes.num_k)
    registers = label_registers(k.device, config.kv_block)
    limits = {} if registers is None else {"maxnreg": registers}
    run(
        label_kernel,
        grid,
        k=k,
        queries=plan.queries,
        tail_size=size,
        tail_gain=variance,
        **strides(k),
        limit=LARGEST_GAIN,
        R=SAMPLED_QUERIES,
        ROUNDS=ROUNDS,
        num_warps=config.kv_block // 32,
        **limits,
        **common,
    )

    values = k.new_zeros((*shape, sizes.padded_dim))
    low = None if k.dtype == torch.float32 else torch.zeros_like(values)
    mean = Statistic(torch.zeros_like(values), low)
    run(
        group_mean_kernel,
        grid,
        x=k,
        mean=mean.high,
        mean_low=mean.low,
        tail_variance=variance,
        **strides(k),
        VARIANCE=True,
        MEAN_LOW=mean.low is not None,
        num_warps=config.kv_block // 32,
        **common,
    )
    run(
        group_mean_kernel,
        grid,
        x=v,
        mean=values,
        mean_low=None,
        tail_variance=None,
        **strides(v),
        VARIANCE=False,
        MEAN_LOW=False,
        num_warps=config.kv_block // 32,
        **common,
    )
    return _narrow(mean, values, size, variance, plan)


def _narrow(mean: Statistic, values: Tensor, size: Tensor, variance: Tensor, plan: Plan) -> Tail:
    """The tail in the types in which the attention reads it."""
    tile, sizes = plan.tile, plan.sizes
    keys, half_values, key_scale, value_scale = mean.high, values, None, None
    grid = (plan.chunk_heads, sizes.tail_length // TAIL_SCALE_GROUPS)
    if tile.int8:
        keys, key_scale = torch.empty_like(keys, dtype=torch.int8), size.new_empty(grid)
    if tile.half_sums:
        half_values = torch.empty_like(values, dtype=torch.float16)
        value_scale = size.new_empty(grid)
    if tile.int8 or tile.half_sums:
        run(
            narrow_kernel,
            grid,
            mean=mean.high,
            mean_low=mean.low,
            values=values,
            shift=plan.shift,
            rotation=plan.rotation,
            keys=keys,
            key_scale=key_scale,
            half_values=half_values,
            value_scale=value_scale,
            first_head=plan.first_head,
            num_rows=sizes.num_k * plan.config.tail_keys,
            tail_length=sizes.tail_length,
            DP=sizes.padded_dim,
            ROWS=TAIL_SCALE_GROUPS,
            INT8=tile.int8,
            HALF=tile.half_sums,
            HALF_RANGE=HALF_RANGE,
            RUN=ROTATED_CHANNELS,
            LOW=mean.low is not None,
            num_warps=8,
        )
    return Tail(keys, half_values, key_scale, value_scale, size, variance, mean, None)
