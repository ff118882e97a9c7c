"""Select: critical set of one q-block per program, without a sort and without a host sync.

P_i. = softmax over [logits_ij for all j, context_lse_i], or the mean of one such softmax for each
part of the q-block by its tokens;  n_i = max(top_k, blocks until the mass
exceeds top_p);  C_i = forced blocks, then the largest P_ij up to n_i, of equals the first.

A non-negative float orders like the integer with the same bits, so the n-th largest of a row is
found by bisecting on 31 bits. Specification: rspa_core/selection.py.
"""

import torch
import triton
import triton.language as tl

from .devices import select_warps
from .plan import Plan, Result, Scores, Selection

HIGHEST_LOGIT = tl.constexpr(1e30)
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
    tail_mask,  # [HC, NQ, NK] fp32, written if RECTIFICATION == "precise": 0, or -inf, which takes
    # a critical block out of the tail
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
    if RECTIFICATION == "precise":
        mark = tl.where(keep, float("-inf"), 0.0)
        tl.store(tail_mask + row * num_k + column, mark, mask=inside)
    if RECTIFICATION == "paper":
        gain = tl.load(accepted + row * num_k + column, mask=inside, other=0) != 0
        weight = tl.where(gain & ~keep, probs, 0.0)
        rounded = weight.to(weights.dtype.element_ty)
        tl.store(weights + row * num_k + column, rounded, mask=inside)
        tl.store(rectify_scale + row, 1.0 - tl.sum(weight, 0))


def select(scores: Scores, plan: Plan, result: Result) -> Selection:
    """Choose the critical blocks of every q-block; their numbers, and the mask if it is kept, go
    into `result`.
    """
    config, tables, sizes = plan.config, plan.tables, plan.sizes
    logits, paper = scores.logits, config.rectification == "paper"
    precise = config.rectification == "precise"
    rows = (plan.chunk_heads, sizes.num_q)
    pairs = (*rows, sizes.num_k)
    keep_mask = result.mask.numel() > 0
    critical = logits.new_empty(pairs, dtype=torch.int8) if keep_mask else None
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
        tail_mask=logits.new_empty(pairs) if precise else None,
    )
    block = triton.next_power_of_2(sizes.num_k)
    select_kernel[(sizes.num_q, plan.chunk_heads)](
        logits=logits,
        context_lse=scores.context_lse,
        accepted=scores.accepted,
        forced=tables.forced,
        critical=critical,
        tail_mask=selection.tail_mask,
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
        USE_TOP_P=config.top_p > 0,
        WRITE_MASK=keep_mask,
        RECTIFICATION=config.rectification,
        BLOCK=block,
        num_warps=select_warps(block),
    )
    if critical is not None:
        heads = slice(plan.first_head, plan.first_head + plan.chunk_heads)
        result.mask.view(-1, sizes.num_q, sizes.num_k)[heads] = critical
    return selection
