"""Select: critical set of one q-block per program, without a sort and without a host sync.

P_i. = softmax over [logits_ij for all j, context_lse_i], or the mean of one such softmax for each
part of the q-block by its tokens;  n_i = max(top_k, blocks until the mass
exceeds top_p), all with top_p = 1;  C_i = forced blocks, then the largest P_ij up to n_i, of equals
the first.
tail_bias_ig = log2 n_g + min(|q|²_i ν_g, cap) log2 e, of "precise", without critical blocks

A non-negative float orders like the integer with the same bits, so the n-th largest of a row is
found by bisecting on 31 bits. Specification: rspa_core/selection.py.
"""

import torch
import triton
import triton.language as tl

from . import run
from .devices import select_warps
from .plan import Plan, Pooled, Result, Scores, Selection, Tail

LOG2E = tl.constexpr(1.4426950408889634)
HIGHEST_LOGIT = tl.constexpr(1e30)
SMALLEST_ROW = 1024
"""Shorter rows are filled up to this: fewer variants to compile."""
BIAS_ROWS, BIAS_COLUMNS = 8, 256
"""Of a program of `tail_bias_kernel`."""
FORCED_BITS = tl.constexpr(0x7F800000)  # bits of +inf: above every probability


@triton.jit
def _count_threshold(bits, count):
    """A t with exactly `count` entries of `bits` >= t, or the largest one with more."""
    low = tl.zeros([], tl.int32)
    high = tl.full([], 0x7F800001, tl.int32)
    # Without ties it ends after half of the 31 steps or so: as soon as t is between two entries.
    while high - low > 1:
        middle = low + (high - low) // 2
        found = tl.sum((bits >= middle).to(tl.int32), 0)
        low = tl.where(found >= count, middle, low)
        high = tl.where(found <= count, middle, high)
    return low


@triton.jit
def _blocks_for_mass(probs, bits, top_p, num_k):
    """Blocks, largest first, until their mass exceeds `top_p`: #{cumsum <= top_p} + 1."""
    low = tl.zeros([], tl.int32)
    high = tl.full([], 0x7F800001, tl.int32)
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = tl.sum(tl.where(bits >= middle, probs, 0.0), 0) > top_p
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    above = bits > low
    mass = tl.sum(tl.where(above, probs, 0.0), 0)
    # Entries equal to the threshold are taken one by one until the mass is exceeded.
    value = tl.max(tl.where(bits == low, probs, 0.0), 0)
    equals = tl.floor((top_p - mass) / tl.maximum(value, 1e-30)) + 1.0
    count = tl.sum(above.to(tl.int32), 0) + tl.minimum(equals, num_k * 1.0).to(tl.int32)
    return tl.minimum(count, num_k)


@triton.jit(
    do_not_specialize=[
        "num_q",
        "num_k",
        "num_full_k",
        "num_full_context",
        "width",
        "top_k",
        "first_head",
        "video_length",
    ]
)
def select_kernel(
    logits,  # [HC, NQ * PARTS, NK] fp32
    context_lse,  # [HC, NQ * PARTS] fp32, read if HAS_CONTEXT
    accepted,  # [HC, NQ, NK] int8, read if RECTIFICATION == "paper"
    forced,  # [NQ, NK] int8: blocks that are critical whatever their score
    critical,  # [HC, NQ, NK] int8, written if WRITE_MASK
    kv_indices,  # [HC, NQ, width] int32, written: full video blocks ascending, full context blocks
    list_lengths,  # [HC, NQ] int32, written: entries of kv_indices
    ragged_kept,  # [HC, NQ] int32, written: 1 if the ragged last video block is critical
    weights,  # [HC, NQ, NK] any float dtype, written if RECTIFICATION == "paper": W
    kv_counts,  # [B * H, NQ] int32, written from row first_head on: critical video blocks
    rectify_scale,  # [HC, NQ] fp32, written if RECTIFICATION == "paper"
    first_head,
    num_q,
    num_k,
    num_full_k,  # video blocks that are not ragged
    num_full_context,  # context blocks that are not ragged
    width,
    top_k,
    top_p,
    video_length,
    Q_PART: tl.constexpr,  # tokens of a part of a q-block
    PARTS: tl.constexpr,
    HAS_CONTEXT: tl.constexpr,
    USE_TOP_P: tl.constexpr,
    WRITE_MASK: tl.constexpr,
    RECTIFICATION: tl.constexpr,
    BLOCK: tl.constexpr,  # power of two >= NK
):
    q_block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    row = head * num_q + q_block
    column = tl.arange(0, BLOCK)
    inside = column < num_k

    probs = tl.zeros([BLOCK], tl.float32)
    length = tl.minimum(video_length - q_block * (PARTS * Q_PART), PARTS * Q_PART)
    for part in tl.static_range(PARTS):
        part_row = row * PARTS + part
        logit = tl.load(logits + part_row * num_k + column, mask=inside, other=float("-inf"))
        # A NaN would order above everything and overrun the row; infinities would make NaNs.
        logit = tl.where(logit == logit, tl.minimum(logit, HIGHEST_LOGIT), float("-inf"))
        highest = tl.maximum(tl.max(logit, 0), -HIGHEST_LOGIT)
        if HAS_CONTEXT:
            context = tl.load(context_lse + part_row)
            context = tl.where(
                context == context, tl.minimum(context, HIGHEST_LOGIT), float("-inf")
            )
            highest = tl.maximum(highest, context)
        part_probs = tl.exp(logit - highest)
        total = tl.sum(part_probs, 0)
        if HAS_CONTEXT:
            total += tl.exp(context - highest)
        part_probs = part_probs / tl.maximum(total, 1e-30)
        if PARTS == 1:
            probs = part_probs
        else:
            tokens = tl.minimum(tl.maximum(length - part * Q_PART, 0), Q_PART)
            probs += part_probs * (tokens.to(tl.float32) / length.to(tl.float32))

    bits = tl.where(inside, probs.to(tl.int32, bitcast=True), -1)
    count = tl.minimum(top_k, num_k)
    if USE_TOP_P:
        count = tl.maximum(count, _blocks_for_mass(probs, bits, top_p, num_k))
    is_forced = tl.load(forced + q_block * num_k + column, mask=inside, other=0) != 0
    bits = tl.where(is_forced, FORCED_BITS, bits)
    count = tl.maximum(count, tl.sum(is_forced.to(tl.int32), 0))

    threshold = _count_threshold(bits, count)
    above = bits > threshold
    equal = bits == threshold
    free = count - tl.sum(above.to(tl.int32), 0)
    keep = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= free))

    full = keep & (column < num_full_k)
    num_full = tl.sum(full.to(tl.int32), 0)
    entry = kv_indices + row * width
    tl.store(entry + tl.cumsum(full.to(tl.int32), 0) - 1, column, mask=full)
    for start in range(0, num_full_context, BLOCK):
        index = start + column
        tl.store(entry + num_full + index, num_k + index, mask=index < num_full_context)
    tl.store(list_lengths + row, num_full + num_full_context)
    tl.store(ragged_kept + row, count - num_full)
    tl.store(kv_counts + first_head * num_q + row, count)
    if WRITE_MASK:
        tl.store(critical + row * num_k + column, keep.to(tl.int8), mask=inside)
    if RECTIFICATION == "paper":
        gain = tl.load(accepted + row * num_k + column, mask=inside, other=0) != 0
        weight = tl.where(gain & ~keep, probs, 0.0)
        rounded = weight.to(weights.dtype.element_ty)
        tl.store(weights + row * num_k + column, rounded, mask=inside)
        tl.store(rectify_scale + row, 1.0 - tl.sum(weight, 0))


@triton.jit(do_not_specialize=["num_q", "num_k", "video_length", "tail_length"])
def tail_bias_kernel(
    critical,  # [HC, NQ, NK] int8
    tail_size,  # [HC, tail_length] fp32: log2 n_g
    tail_variance,  # [HC, tail_length] fp32: ν_g
    squares,  # [HC, NQ] fp32: sum of |q_r|² over each q-block
    tail_bias,  # [HC, NQ, tail_length] fp32, written: -inf for critical blocks and behind the last
    num_q,
    num_k,
    video_length,
    tail_length,
    variance_cap,
    Q_BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,  # q-blocks of a program, which share what is read of the groups
    COLUMNS: tl.constexpr,
):
    head = tl.program_id(2).to(tl.int64)
    q_block = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_row = q_block < num_q
    is_group = group < num_k * GROUPS
    row = head * num_q + q_block
    tokens = tl.maximum(tl.minimum(video_length - q_block * Q_BLOCK, Q_BLOCK), 1)
    squared_length = tl.load(squares + row, mask=is_row, other=0.0) / tokens.to(tl.float32)
    size = tl.load(tail_size + head * tail_length + group, mask=is_group, other=float("-inf"))
    variance = tl.load(tail_variance + head * tail_length + group, mask=is_group, other=0.0)
    spread = tl.minimum(squared_length[:, None] * variance[None, :], variance_cap)
    bias = size[None, :] + LOG2E * spread
    marks = row[:, None] * num_k + (group // GROUPS)[None, :]
    marks = tl.load(critical + marks, mask=is_row[:, None] & is_group[None, :], other=1)
    bias = tl.where(marks != 0, float("-inf"), bias)
    out = row[:, None] * tail_length + group[None, :]
    tl.store(tail_bias + out, bias, mask=is_row[:, None] & (group < tail_length)[None, :])


def select(
    scores: Scores, q_pool: Pooled, tail: Tail | None, plan: Plan, result: Result
) -> Selection:
    """Choose the critical blocks of every q-block; their numbers, and the mask if it is kept, go
    into `result`.
    """
    config, tables, sizes = plan.config, plan.tables, plan.sizes
    logits, paper = scores.logits, config.rectification == "paper"
    rows = (plan.chunk_heads, sizes.num_q)
    pairs = (*rows, sizes.num_k)
    keep_mask = result.mask.numel() > 0
    keeps_critical = keep_mask or tail is not None
    # Behind the lists of all q-blocks stands the one of context queries: every full block.
    listed = plan.chunk_heads * sizes.num_q * sizes.width
    kv_indices = logits.new_empty(listed + len(tables.all_blocks), dtype=torch.int32)
    kv_indices[listed:] = tables.all_blocks
    selection = Selection(
        kv_indices=kv_indices,
        list_lengths=logits.new_empty(rows, dtype=torch.int32),
        ragged_kept=logits.new_empty(rows, dtype=torch.int32),
        rectify_scale=logits.new_empty(rows) if paper else None,
        weights=logits.new_empty(pairs, dtype=result.out.dtype) if paper else None,
        critical=logits.new_empty(pairs, dtype=torch.int8) if keeps_critical else None,
        tail_bias=logits.new_empty((*rows, sizes.tail_length)) if tail else None,
    )
    block = max(SMALLEST_ROW, triton.next_power_of_2(sizes.num_k))
    run(
        select_kernel,
        (sizes.num_q, plan.chunk_heads),
        logits=logits,
        context_lse=scores.context_lse,
        accepted=scores.accepted,
        forced=tables.forced,
        critical=selection.critical,
        kv_indices=kv_indices,
        list_lengths=selection.list_lengths,
        ragged_kept=selection.ragged_kept,
        weights=selection.weights,
        kv_counts=result.kv_counts,
        rectify_scale=selection.rectify_scale,
        first_head=plan.first_head,
        num_q=sizes.num_q,
        num_k=sizes.num_k,
        num_full_k=sizes.num_full_k,
        num_full_context=sizes.num_full_context,
        width=sizes.width,
        top_k=config.top_k(sizes.num_k),
        top_p=config.top_p,
        video_length=sizes.video_length,
        Q_PART=config.q_block // sizes.q_parts,
        PARTS=sizes.q_parts,
        HAS_CONTEXT=scores.context_lse is not None,
        USE_TOP_P=0 < config.top_p < 1,
        WRITE_MASK=keeps_critical,
        RECTIFICATION=config.rectification,
        BLOCK=block,
        num_warps=select_warps(block),
    )
    if tail is not None:
        row_tiles = triton.cdiv(sizes.num_q, BIAS_ROWS)
        column_tiles = triton.cdiv(sizes.tail_length, BIAS_COLUMNS)
        run(
            tail_bias_kernel,
            (column_tiles, row_tiles, plan.chunk_heads),
            critical=selection.critical,
            tail_size=tail.size,
            tail_variance=tail.variance,
            squares=q_pool.squares,
            tail_bias=selection.tail_bias,
            num_q=sizes.num_q,
            num_k=sizes.num_k,
            video_length=sizes.video_length,
            tail_length=sizes.tail_length,
            variance_cap=plan.variance_cap,
            Q_BLOCK=config.q_block,
            GROUPS=config.tail_keys,
            ROWS=BIAS_ROWS,
            COLUMNS=BIAS_COLUMNS,
            num_warps=4,
        )
    if keep_mask:
        assert selection.critical is not None
        heads = slice(plan.first_head, plan.first_head + plan.chunk_heads)
        result.mask.view(-1, sizes.num_q, sizes.num_k)[heads] = selection.critical
    return selection
