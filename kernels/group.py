"""Group: keys of a block by what sampled queries score, and what stands for each group.

    f_t = c (q_1·k_t, ..., q_R·k_t)     k-means on f: farthest-first seeds, `ROUNDS` of Lloyd
    r_g = 1/R Σ_s ln( 1/n_g Σ_{t in g} exp(min(f_ts - f̄_gs, limit)) ) / (1/R Σ_s |q_s|²)
    k̄_g, v̄_g, log2 n_g                  over the tokens of group g
    ν_g = √(½ c² v_g r_g)               v_g: mean variance of k

Two kernels, one program per kv-block: labels and what comes of f; means of keys or of values. A
group without tokens has log2 n_g = -inf. Specification: rspa_core/key_groups.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rspa_core.key_groups import LARGEST_GAIN, ROUNDS, SAMPLED_QUERIES
from .plan import Plan, Statistic, Tail, strides
from .pool import load_block

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
    shift,  # [B * H, D] fp32, read if SHIFTED
    mean,  # [HC, tail_length, DP] dtype of x: mean of group g of block j at j G + g, written
    mean_low,  # what mean lacks, written, or None
    shifted,  # [HC, tail_length, DP] dtype of x: the mean less the shift, written if SHIFTED
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
    SHIFTED: tl.constexpr,
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
    if SHIFTED:
        averages -= tl.load(shift + batch_head * D + cols, mask=cols < D, other=0.0)[None, :]
        tl.store(shifted + out, averages.to(shifted.dtype.element_ty), mask=written)


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
    label_kernel[grid](
        k=k,
        queries=plan.queries,
        tail_size=size,
        tail_gain=variance,
        **strides(k),
        limit=LARGEST_GAIN,
        R=SAMPLED_QUERIES,
        ROUNDS=ROUNDS,
        num_warps=config.kv_block // 32,
        **common,
    )

    values = k.new_zeros((*shape, sizes.padded_dim))
    low = None if k.dtype == torch.float32 else torch.zeros_like(values)
    mean = Statistic(torch.zeros_like(values), low)
    # Only int8 keys have lost the shift.
    shift = plan.shift if plan.tile.int8 else None
    keys = mean.high if shift is None else torch.zeros_like(values)
    group_mean_kernel[grid](
        x=k,
        shift=shift,
        mean=mean.high,
        mean_low=mean.low,
        shifted=keys,
        tail_variance=variance,
        **strides(k),
        VARIANCE=True,
        SHIFTED=shift is not None,
        MEAN_LOW=mean.low is not None,
        num_warps=config.kv_block // 16,
        **common,
    )
    group_mean_kernel[grid](
        x=v,
        shift=None,
        mean=values,
        mean_low=None,
        shifted=None,
        tail_variance=None,
        **strides(v),
        VARIANCE=False,
        SHIFTED=False,
        MEAN_LOW=False,
        num_warps=config.kv_block // 16,
        **common,
    )
    return Tail(keys, values, size, variance, mean)
