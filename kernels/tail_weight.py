"""Weigh: how much the tail of a head counts, asked of its sampled queries.

    Z_s, N_s    sums of weights and of weighted values over the keys that are attended exactly
    Y_s, L_s    the same over those that are left out;  o_s = (N_s + L_s) / (Z_s + Y_s)
    W_s, M_s    the same over the tail
    τ           of the least Σ_s |(N_s + τ M_s) / (Z_s + τ W_s) - o_s|²

Three kernels: the sums, of all heads and runs of kv-blocks side by side; their runs joined, a
sampled query and kind of key per program; then τ, a head per program.
Specification: rspa_core/tail_weight.py.
"""

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from ..rspa_core.key_groups import SAMPLED_QUERIES
from ..rspa_core.quantisation import TAIL_SCALE_GROUPS
from ..rspa_core.tail_weight import LARGEST, SMALLEST, STEPS, TINY, WORSE
from . import run
from .plan import WEIGH_SPLITS, Plan, Pooled, Selection, Tail

LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e30)
KEYS_PER_STEP = 64
"""Of `sums_kernel`."""


@triton.jit
def _sampled_rows(head, num_q, video_length, Q_BLOCK: tl.constexpr, R: tl.constexpr):
    """Row of `[HC, NQ]` of each sampled query's q-block, `[R]`."""
    place = ((2 * tl.arange(0, R) + 1).to(tl.int64) * video_length) // (2 * R)
    return head * num_q + place // Q_BLOCK


@triton.jit(
    do_not_specialize=["first_head", "num_q", "num_k", "num_blocks", "tail_length", "video_length"]
)
def sums_kernel(
    k,  # [HC, NB * BLOCK, DP] packed keys, dtype of the input or int8
    k_scale,  # [HC, NB] fp32, read if INT8
    v,  # [HC, NB * BLOCK, DP] packed values, dtype of the input or fp16
    v_scale,  # [HC, NB] fp32, read if HALF
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    queries,  # [B * H, R, DP] dtype of the input: the sampled queries, rotated if INT8
    tail_k,  # [HC, tail_length, DP] like k
    tail_v,  # [HC, tail_length, DP] like v
    tail_k_scale,  # [HC, tail_length / SCALE_GROUPS] fp32, read if INT8
    tail_v_scale,  # [HC, tail_length / SCALE_GROUPS] fp32, read if HALF
    tail_bias,  # [HC, NQ, tail_length] fp32: see select.py
    critical,  # [HC, NQ, NK] int8
    highest,  # [HC, SPLITS, 3, R] fp32, written: largest score of each kind: kept, left out, tail
    mass,  # [HC, SPLITS, 3, R] fp32, written: Z, Y and W, relative to these
    sums,  # [HC, SPLITS, 3, R, DP] fp32, written: N, L and M
    first_head,
    num_q,
    num_k,
    num_blocks,  # NB: the video's and the context's
    tail_length,
    video_length,
    scale,
    DP: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE: tl.constexpr,  # keys per step, divides BLOCK
    R: tl.constexpr,
    SCALE_GROUPS: tl.constexpr,
    INT8: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    rows = tl.arange(0, R)
    cols = tl.arange(0, DP)
    keys = tl.arange(0, TILE)
    q = tl.load(queries + ((first_head + head) * R + rows)[:, None] * DP + cols[None, :])
    q_row = _sampled_rows(head, num_q, video_length, Q_BLOCK, R)

    # Two softmaxes: what is left out may outweigh the rest so far that nothing of it would remain.
    kept_top = tl.full([R], LOWEST, tl.float32)
    left_top = tl.full([R], LOWEST, tl.float32)
    kept_mass = tl.zeros([R], tl.float32)
    left_mass = tl.zeros([R], tl.float32)
    kept_sum = tl.zeros([R, DP], tl.float32)
    left_sum = tl.zeros([R, DP], tl.float32)
    tiles = num_blocks * (BLOCK // TILE)
    for index in range(split * tiles // splits, (split + 1) * tiles // splits):
        block = index // (BLOCK // TILE)
        offsets = ((head * tiles + index) * TILE + keys)[:, None] * DP + cols[None, :]
        tile = tl.load(k + offsets).to(q.dtype)  # [TILE, DP]
        scores = scale * tl.dot(q, tl.trans(tile), input_precision=PRECISION)
        if INT8:
            scores *= tl.load(k_scale + head * num_blocks + block)
        is_token = tl.load(source + index * TILE + keys) >= 0
        scores = tl.where(is_token[None, :], scores, float("-inf"))
        # Context blocks, behind the video's, are attended by all.
        is_kept = tl.load(critical + q_row * num_k + block, mask=block < num_k, other=1) != 0
        top = tl.max(scores, 1)
        new_kept = tl.maximum(kept_top, tl.where(is_kept, top, LOWEST))
        new_left = tl.maximum(left_top, tl.where(is_kept, LOWEST, top))
        weights = tl.exp(scores - tl.where(is_kept, new_kept, new_left)[:, None])
        kept = tl.where(is_kept[:, None], weights, 0.0)
        left = tl.where(is_kept[:, None], 0.0, weights)
        values = tl.load(v + offsets)
        kept_shrink = tl.exp(kept_top - new_kept)
        left_shrink = tl.exp(left_top - new_left)
        kept_mass = kept_mass * kept_shrink + tl.sum(kept, 1)
        left_mass = left_mass * left_shrink + tl.sum(left, 1)
        kept_sum *= kept_shrink[:, None]
        left_sum *= left_shrink[:, None]
        kept_part = tl.dot(kept.to(values.dtype), values, input_precision=PRECISION)
        left_part = tl.dot(left.to(values.dtype), values, input_precision=PRECISION)
        if HALF:
            unit = tl.load(v_scale + head * num_blocks + block)
            kept_part *= unit
            left_part *= unit
        kept_sum += kept_part
        left_sum += left_part
        kept_top = new_kept
        left_top = new_left

    out = 3 * (head * splits + split)
    tl.store(highest + out * R + rows, kept_top)
    tl.store(highest + (out + 1) * R + rows, left_top)
    tl.store(mass + out * R + rows, kept_mass)
    tl.store(mass + (out + 1) * R + rows, left_mass)
    written = rows[:, None] * DP + cols[None, :]
    tl.store(sums + out * R * DP + written, kept_sum)
    tl.store(sums + (out + 1) * R * DP + written, left_sum)

    top = tl.full([R], LOWEST, tl.float32)
    total = tl.zeros([R], tl.float32)
    acc = tl.zeros([R, DP], tl.float32)
    groups = num_k * GROUPS
    tail_tiles = tl.cdiv(groups, TILE)
    for index in range(split * tail_tiles // splits, (split + 1) * tail_tiles // splits):
        column = index * TILE + keys
        inside = column < groups
        place = head * tail_length + column
        at = place[:, None] * DP + cols[None, :]
        tile = tl.load(tail_k + at, mask=inside[:, None], other=0.0).to(q.dtype)
        logits = scale * tl.dot(q, tl.trans(tile), input_precision=PRECISION)
        part = head * (tail_length // SCALE_GROUPS) + index * TILE // SCALE_GROUPS
        if INT8:
            logits *= tl.load(tail_k_scale + part)
        bias = q_row[:, None] * tail_length + column[None, :]
        bias = tl.load(tail_bias + bias, mask=inside[None, :], other=float("-inf"))
        logits += bias * LN2
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp(logits - new_top[:, None])
        values = tl.load(tail_v + at, mask=inside[:, None], other=0.0)
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        acc *= shrink[:, None]
        tail_part = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        if HALF:
            tail_part *= tl.load(tail_v_scale + part)
        acc += tail_part
        top = new_top

    tl.store(highest + (out + 2) * R + rows, top)
    tl.store(mass + (out + 2) * R + rows, total)
    tl.store(sums + (out + 2) * R * DP + written, acc)


@triton.jit
def join_kernel(
    highest,  # [HC, SPLITS, 3, R] fp32: see sums_kernel
    mass,  # [HC, SPLITS, 3, R]
    sums,  # [HC, SPLITS, 3, R, DP]
    top,  # [HC, 3, R] fp32, written
    joined_mass,  # [HC, 3, R] fp32, written
    joined,  # [HC, 3, R, DP] fp32, written
    DP: tl.constexpr,
    R: tl.constexpr,
    SPLITS: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)  # of [3, R]
    parts = (head * SPLITS + tl.arange(0, SPLITS)) * 3 * R + row
    cols = tl.arange(0, DP)
    tops = tl.load(highest + parts)
    largest = tl.max(tops, 0)
    share = tl.exp(tops - largest)
    out = head * 3 * R + row
    tl.store(top + out, largest)
    tl.store(joined_mass + out, tl.sum(share * tl.load(mass + parts), 0))
    part = tl.load(sums + parts[:, None] * DP + cols[None, :])
    tl.store(joined + out * DP + cols, tl.sum(share[:, None] * part, 0))


@triton.jit
def weigh_kernel(
    top,  # [HC, 3, R] fp32: largest score of kept keys, keys left out and keys of the tail
    mass,  # [HC, 3, R] fp32: Z, Y and W, relative to these
    sums,  # [HC, 3, R, DP] fp32: N, L and M
    weight,  # [HC] fp32, written: τ
    smallest,
    largest,
    tiny,
    worse,
    DP: tl.constexpr,
    R: tl.constexpr,
    STEPS: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    row = head * 3 * R + tl.arange(0, R)
    offsets = row[:, None] * DP + tl.arange(0, DP)[None, :]
    kept_top = tl.load(top + row)
    left_top = tl.load(top + row + R)
    tail_top = tl.load(top + row + 2 * R)
    kept_mass = tl.load(mass + row)
    kept_sum = tl.load(sums + offsets)

    highest = tl.maximum(kept_top, left_top)
    kept_share = tl.exp(kept_top - highest)
    left_share = tl.exp(left_top - highest)
    exact = kept_share[:, None] * kept_sum + left_share[:, None] * tl.load(sums + offsets + R * DP)
    exact /= (kept_share * kept_mass + left_share * tl.load(mass + row + R))[:, None]

    # Without what is left out, which may outweigh both so far that nothing of them would remain.
    highest = tl.maximum(kept_top, tail_top)
    kept_share = tl.exp(kept_top - highest)
    tail_share = tl.exp(tail_top - highest)
    kept_mass *= kept_share
    kept_sum *= kept_share[:, None]
    tail_mass = tail_share * tl.load(mass + row + 2 * R)
    tail_sum = tail_share[:, None] * tl.load(sums + offsets + 2 * R * DP)

    factor = tl.full([], 1.0, tl.float32)
    best = factor
    least = tl.full([], float("inf"), tl.float32)
    for _ in range(STEPS + 1):
        total = kept_mass + factor * tail_mass
        missed = (kept_sum + factor * tail_sum) / total[:, None] - exact
        loss = tl.sum(tl.sum(missed * missed, 1), 0)
        best = tl.where(loss <= worse * least, factor, best)
        least = tl.minimum(loss, least)
        slope = (tail_sum - (missed + exact) * tail_mass[:, None]) / total[:, None]
        steepness = tl.maximum(tl.sum(tl.sum(slope * slope, 1), 0), tiny)
        step = tl.sum(tl.sum(slope * missed, 1), 0) / steepness
        factor = tl.minimum(tl.maximum(factor - step, smallest), largest)
    tl.store(weight + head, best)


def weigh_tail(
    tail: Tail, k_pool: Pooled, v_pool: Pooled, selection: Selection, plan: Plan
) -> Tail:
    """The same tail, counting in every head for what its sampled queries say."""
    assert plan.queries is not None
    sizes, config = plan.sizes, plan.config
    heads = plan.chunk_heads
    # The interpreter runs programs one after the other.
    splits = WEIGH_SPLITS if tail.size.device.type == "cuda" else 4
    parts = (heads, splits, 3, SAMPLED_QUERIES)
    mass, sums = tail.size.new_empty(parts), tail.size.new_empty((*parts, sizes.padded_dim))
    highest = torch.empty_like(mass)
    joined_mass, joined = torch.empty_like(mass[:, 0]), torch.empty_like(sums[:, 0])
    joined_highest = torch.empty_like(joined_mass)
    weight = torch.empty_like(tail.size[:, 0])
    exact = plan.queries.dtype == torch.float32
    common: dict[str, Any] = {"DP": sizes.padded_dim, "R": SAMPLED_QUERIES}
    run(
        sums_kernel,
        (heads, splits),
        k=k_pool.packed,
        k_scale=k_pool.scale,
        v=v_pool.packed,
        v_scale=v_pool.scale,
        source=plan.tables.kv_source,
        queries=plan.rotated_queries,
        tail_k=tail.keys,
        tail_v=tail.values,
        tail_k_scale=tail.key_scale,
        tail_v_scale=tail.value_scale,
        tail_bias=selection.tail_bias,
        critical=selection.critical,
        highest=highest,
        mass=mass,
        sums=sums,
        first_head=plan.first_head,
        num_q=sizes.num_q,
        num_k=sizes.num_k,
        num_blocks=sizes.packed_length // config.kv_block,
        tail_length=sizes.tail_length,
        video_length=sizes.video_length,
        scale=plan.scale,
        Q_BLOCK=config.q_block,
        BLOCK=config.kv_block,
        GROUPS=config.tail_keys,
        TILE=KEYS_PER_STEP,
        SCALE_GROUPS=TAIL_SCALE_GROUPS,
        INT8=plan.tile.int8,
        HALF=plan.tile.half_sums,
        PRECISION="tf32x3" if exact else "tf32",
        num_warps=4,
        num_stages=1 if exact else 3,
        **common,
    )
    run(
        join_kernel,
        (heads, 3 * SAMPLED_QUERIES),
        highest=highest,
        mass=mass,
        sums=sums,
        top=joined_highest,
        joined_mass=joined_mass,
        joined=joined,
        SPLITS=splits,
        **common,
    )
    run(
        weigh_kernel,
        (heads,),
        top=joined_highest,
        mass=joined_mass,
        sums=joined,
        weight=weight,
        smallest=SMALLEST,
        largest=LARGEST,
        tiny=TINY,
        worse=WORSE,
        STEPS=STEPS,
        num_warps=8,
        **common,
    )
    return replace(tail, weight=weight.log2())
