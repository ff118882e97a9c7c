"""Attend: flash attention over a list of kv-blocks, with the rectification in its epilogue.

    none      O_r = softmax_{keys in C_i, context}(c q_r·k) V
    paper     O_r = R_i * softmax_{keys in C_i, context}(c q_r·k) V + compensation_i
    precise   every group g of the keys of the blocks not in C_i is one more key of the same
              softmax, with value v̄_g and logit c q_r·k̄_g + tail_bias_ig (select.py)

Softmax in fp32 with exp2, scale applied to the scores and not rounded into q. Rows are stored
through the token order, so nothing is permuted outside. The sums of int8 products are exact
integers. With fp16 values, which the tensor cores of graphics cards sum at twice the rate, every
tile has a softmax of its own: weights up to 1, sums in fp16, added up in fp32. Specification:
rspa_core/reference.py; arXiv 2511.19835 for R and the compensation.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rspa_core.quantisation import TAIL_SCALE_GROUPS
from ..rspa_core.rectification import SMALLEST_SHARE
from . import run
from .devices import Tile
from .plan import Plan, Pooled, Result, Selection, Tail, strides

LOG2E = tl.constexpr(1.4426950408889634)
# The bits of 1.5 * 2^23: an integer below 2^22 added to them gives the bits of a float that is as
# much larger. A sum of int8 products that starts here is a float without any conversion.
INTEGER_BITS = tl.constexpr(0x4B400000)
INTEGER_FLOAT = tl.constexpr(12582912.0)
LOWEST = tl.constexpr(-1e30)
LEAST = tl.constexpr(SMALLEST_SHARE)


@triton.jit
def _of_head(packed, head, length, DP: tl.constexpr, TMA: tl.constexpr):
    """A packed tensor of `length` rows a head from the first row of `head` on, but descriptors."""
    if not TMA:
        packed += head * length * DP
    return packed


@triton.jit
def _load_tile(
    packed, head_row, row, column, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """`[ROWS, COLUMNS]` from `row` of a head and `column` on; `head_row`: its row in descriptors.

    Within a head offsets have 32 bits: half the registers of pointers.
    """
    if TMA:
        tile = packed.load([head_row + row, column])
    else:
        offsets = tl.arange(0, ROWS)[:, None] * DP + tl.arange(0, COLUMNS)[None, :]
        tile = tl.load(packed + (row * DP + column + offsets))
    return tile


@triton.jit
def _load_keys(packed, head_row, row, DP: tl.constexpr, ROWS: tl.constexpr, TMA: tl.constexpr):
    """Keys `[DP, ROWS]`, transposed, from `row` of a head on; `head_row` as in `_load_tile`."""
    if TMA:
        keys = tl.trans(packed.load([head_row + row, 0]))
    else:
        # By their addresses: of keys that `trans` turns, Triton 3.3 reads every word by itself.
        offsets = tl.arange(0, ROWS)[None, :] * DP + tl.arange(0, DP)[:, None]
        keys = tl.load(packed + (row * DP + offsets))
    return keys


@triton.jit
def _load_values(
    packed, head_row, row, DP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Values `[ROWS, WIDTH]` of the left channels and of the right ones, or all of them twice."""
    left = _load_tile(packed, head_row, row, 0, DP, ROWS, WIDTH, TMA)
    right = left
    if WIDTH < DP:
        right = _load_tile(packed, head_row, row, WIDTH, DP, ROWS, WIDTH, TMA)
    return left, right


@triton.jit
def _scores(q, k, INT8: tl.constexpr, PRECISION: tl.constexpr):
    """Raw scores [M, N] of q [M, DP] with k [DP, N], fp32; of int8 above INTEGER_FLOAT."""
    if INT8:
        start = tl.full([q.shape[0], k.shape[1]], INTEGER_BITS, tl.int32)
        scores = tl.dot(q, k, start, out_dtype=tl.int32).to(tl.float32, bitcast=True)
    else:
        scores = tl.dot(q, k, input_precision=PRECISION)
    return scores


@triton.jit
def _unit(row_unit, key_scale, index, INT8: tl.constexpr):
    """What brings raw scores to log2: a number, of int8 one per row for keys of scale `index`."""
    unit = row_unit
    if INT8:
        unit = row_unit * tl.load(key_scale + index)
        unit = tl.where(unit == 0.0, 1e-30, unit)  # 0 * -inf would be NaN
    return unit


@triton.jit
def _absorb(
    left, right, highest, total, scores, unit, bias, weight, values, right_values, value_scale,
    HAS_BIAS: tl.constexpr, INT8: tl.constexpr, HALF: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax over a tile of N keys.

    Args:
        left, right: sums of weighted values `[M, WIDTH]`; `right` of the right channels if SPLIT.
        highest, total: maximum of the logits, in log2, and sum of the weights so far, `[M]`.
        scores: see `_scores`; `unit` times their integers or products are logits.
        bias: `[N]`, added to these; weight: a number, added to all of them. Read if HAS_BIAS.
        values, right_values: `[N, WIDTH]`; of HALF to be taken times `value_scale`.
    """
    zero = 0.0 * unit
    column_unit = unit
    if INT8:
        zero = INTEGER_FLOAT * unit
        column_unit = unit[:, None]
    if HAS_BIAS:
        scores = scores * column_unit + bias[None, :]
        zero -= weight
        # Of a tile that is left out altogether all are -inf.
        top = tl.maximum(tl.max(scores, 1), LOWEST)
    else:
        # Scaling after the maximum leaves one fused multiply-add per score.
        top = tl.max(scores, 1) * unit
    new_highest = tl.maximum(highest, top - zero)
    rescale = tl.exp2(highest - new_highest)
    offset = top
    if not HALF:
        offset = new_highest + zero
    if HAS_BIAS:
        probs = tl.exp2(scores - offset[:, None])
    else:
        probs = tl.exp2(scores * column_unit - offset[:, None])
    left = left * rescale[:, None]
    if SPLIT:
        right = right * rescale[:, None]
    if HALF:
        share = tl.exp2(top - zero - new_highest)
        total = total * rescale + share * tl.sum(probs, 1)
        share *= value_scale
        probs = probs.to(tl.float16)
        left += tl.dot(probs, values, out_dtype=tl.float16).to(tl.float32) * share[:, None]
        if SPLIT:
            part = tl.dot(probs, right_values, out_dtype=tl.float16)
            right += part.to(tl.float32) * share[:, None]
    else:
        total = total * rescale + tl.sum(probs, 1)
        probs = probs.to(values.dtype)
        left = tl.dot(probs, values, left, input_precision=PRECISION)
        if SPLIT:
            right = tl.dot(probs, right_values, right, input_precision=PRECISION)
    return left, right, new_highest, total


@triton.jit
def _ragged_block(
    left, right, highest, total, q, packed_k, packed_v, head_row, kv_block, length, row_unit,
    key_scale, value_scale,
    DP: tl.constexpr, WIDTH: tl.constexpr, KV_BLOCK: tl.constexpr, TILE_N: tl.constexpr,
    TMA: tl.constexpr, INT8: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend the first `length` keys of a block."""
    rows = tl.arange(0, TILE_N)
    unit = _unit(row_unit, key_scale, kv_block, INT8)
    value_unit = 1.0
    if HALF:
        value_unit = tl.load(value_scale + kv_block)
    for start in range(0, length, TILE_N):
        row = kv_block * KV_BLOCK + start
        k = _load_keys(packed_k, head_row, row, DP, TILE_N, TMA)
        v, right_v = _load_values(packed_v, head_row, row, DP, TILE_N, WIDTH, TMA)
        scores = _scores(q, k, INT8, PRECISION)
        scores = tl.where((start + rows < length)[None, :], scores, float("-inf"))
        left, right, highest, total = _absorb(
            left, right, highest, total, scores, unit, 0.0, 0.0, v, right_v, value_unit,
            False, INT8, HALF, WIDTH < DP, PRECISION,
        )  # fmt: skip
    return left, right, highest, total


@triton.jit
def _store_rows(
    out, row_stride, values, token, column, rectify_scale, compensation, row, is_video,
    WIDTH: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PAPER: tl.constexpr,
):  # fmt: skip
    """Rectify and store the channels from `column` on of the rows `token` of a head."""
    cols = column + tl.arange(0, WIDTH)
    if PAPER:
        values *= tl.load(rectify_scale + row, mask=is_video, other=1.0)
        values += tl.load(compensation + row * DP + cols, mask=is_video, other=0.0)[None, :]
    offsets = token[:, None] * row_stride + cols[None, :]
    stored = (token >= 0)[:, None] & (cols < D)[None, :]
    tl.store(out + offsets, values.to(out.dtype.element_ty), mask=stored)


@triton.jit(
    do_not_specialize=[
        "first_head",
        "num_heads",
        "length",
        "packed_length",
        "tail_length",
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
    q,  # [B, H, N, D], any strides; of INT8 [HC, (NCQ + NQ) * Q_BLOCK, DP] int8 in token order
    q_scale,  # [HC, (NCQ + NQ) * Q_BLOCK] fp32: what one step of an int8 query is worth, INT8
    q_source,  # [(NCQ + NQ) * Q_BLOCK] int32: token of each row, context rows first, -1 padding
    packed_k,  # [HC, packed_length, DP]: video blocks, then context blocks, zeros behind each;
    packed_v,  # with TMA tensor descriptors of [HC * packed_length, DP] in tiles of TILE_N rows
    k_scale,  # [HC, packed_length / KV_BLOCK] fp32: what one step of int8 keys is worth, INT8
    v_scale,  # [HC, packed_length / KV_BLOCK] fp32: what fp16 values are to be taken times, HALF
    kv_indices,  # [HC * NQ * width + NK + NCK] int32; the end lists all full blocks
    list_lengths,  # [HC, NQ] int32
    ragged_kept,  # [HC, NQ] int32
    rectify_scale,  # [HC, NQ] fp32, paper
    compensation,  # [HC, NQ, DP] fp32, paper
    tail_k,  # [HC, tail_length, DP] like packed_k: means of groups, precise;
    tail_v,  # zeros behind the last one, with TMA in tiles of TAIL_N rows
    tail_k_scale,  # [HC, tail_length / SCALE_GROUPS] fp32, INT8
    tail_v_scale,  # [HC, tail_length / SCALE_GROUPS] fp32, HALF
    tail_bias,  # [HC, NQ, tail_length] fp32, precise: -inf for critical blocks and behind the last
    tail_weight,  # [HC] fp32, precise: log2 of what every group of the head counts for
    out,  # [B, N, H, D] contiguous
    lse,  # [B, H, N] fp32: ln of the sum of weights, of INT8 less what the shift makes; or None
    first_head,
    num_heads,
    length,  # N
    packed_length,
    tail_length,  # rows of one head of tail_k and tail_v
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
    D: tl.constexpr,
    DP: tl.constexpr,
    WIDTH: tl.constexpr,  # channels of values of one product, DP or half of it
    Q_BLOCK: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    TILE_N: tl.constexpr,
    TAIL_N: tl.constexpr,
    TMA: tl.constexpr,
    INT8: tl.constexpr,
    HALF: tl.constexpr,
    RECTIFICATION: tl.constexpr,
    TAIL_KEYS: tl.constexpr,
    SCALE_GROUPS: tl.constexpr,
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
    rows = block * Q_BLOCK + tl.arange(0, Q_BLOCK)

    row_unit = scale * LOG2E  # from raw scores to exponents of 2
    key_scale = k_scale
    value_scale = v_scale
    if INT8:
        packed_rows = head * (num_context_q + num_q) * Q_BLOCK + rows
        q_tile = tl.load(q + packed_rows[:, None] * DP + cols[None, :])  # [Q_BLOCK, DP]
        row_unit = row_unit * tl.load(q_scale + packed_rows)
        key_scale += head * (packed_length // KV_BLOCK)
    else:
        token = tl.load(q_source + rows).to(tl.int64)
        inside = (token >= 0)[:, None] & (cols < D)[None, :]
        q_offsets = token[:, None] * stride_n + cols.to(tl.int64)[None, :] * stride_d
        q_base = q + batch * stride_b + head_in_batch * stride_h
        q_tile = tl.load(q_base + q_offsets, mask=inside, other=0.0)
    if HALF:
        value_scale += head * (packed_length // KV_BLOCK)

    head_row = (head * packed_length).to(tl.int32)  # of this chunk's heads: far below 2^31
    keys = _of_head(packed_k, head, packed_length, DP, TMA)
    values = _of_head(packed_v, head, packed_length, DP, TMA)
    SPLIT: tl.constexpr = WIDTH < DP
    left = tl.zeros([Q_BLOCK, WIDTH], tl.float32)
    right = 0.0
    if SPLIT:
        right = tl.zeros([Q_BLOCK, WIDTH], tl.float32)
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
        first_row = entry * KV_BLOCK + (i % TILES) * TILE_N
        unit = _unit(row_unit, key_scale, entry, INT8)
        value_unit = 1.0
        if HALF:
            value_unit = tl.load(value_scale + entry)
        entry = tl.load(entries + (i + 1) // TILES, mask=i + 1 < num_tiles, other=0)
        k = _load_keys(keys, head_row, first_row, DP, TILE_N, TMA)
        v, right_v = _load_values(values, head_row, first_row, DP, TILE_N, WIDTH, TMA)
        scores = _scores(q_tile, k, INT8, PRECISION)
        left, right, highest, total = _absorb(
            left, right, highest, total, scores, unit, 0.0, 0.0, v, right_v, value_unit,
            False, INT8, HALF, SPLIT, PRECISION,
        )  # fmt: skip

    # At most two ragged blocks: the end of the video and the end of the context.
    # A length of 0 skips one.
    kept = (is_video == 0) | (tl.load(ragged_kept + row) > 0)
    left, right, highest, total = _ragged_block(
        left, right, highest, total, q_tile, keys, values, head_row, num_k - 1,
        tl.where(kept, video_length % KV_BLOCK, 0), row_unit, key_scale, value_scale,
        DP, WIDTH, KV_BLOCK, TILE_N, TMA, INT8, HALF, PRECISION,
    )  # fmt: skip
    length_of_last = context_length % KV_BLOCK
    last_context = num_k + context_length // KV_BLOCK
    last_context = tl.where(length_of_last > 0, last_context, 0)  # of no block there is no scale
    left, right, highest, total = _ragged_block(
        left, right, highest, total, q_tile, keys, values, head_row, last_context,
        length_of_last, row_unit, key_scale, value_scale,
        DP, WIDTH, KV_BLOCK, TILE_N, TMA, INT8, HALF, PRECISION,
    )  # fmt: skip

    if RECTIFICATION == "precise":
        num_tail = tl.where(is_video, num_k * TAIL_KEYS, 0)
        tail_row = (head * tail_length).to(tl.int32)
        tail_keys = _of_head(tail_k, head, tail_length, DP, TMA)
        tail_values = _of_head(tail_v, head, tail_length, DP, TMA)
        scale_row = head * (tail_length // SCALE_GROUPS)
        bias_row = tail_bias + row * tail_length
        weight = tl.load(tail_weight + head)
        for start in range(0, num_tail, TAIL_N):
            unit = _unit(row_unit, tail_k_scale, scale_row + start // SCALE_GROUPS, INT8)
            value_unit = 1.0
            if HALF:
                value_unit = tl.load(tail_v_scale + scale_row + start // SCALE_GROUPS)
            bias = tl.load(bias_row + start + tl.arange(0, TAIL_N))
            k = _load_keys(tail_keys, tail_row, start, DP, TAIL_N, TMA)
            v, right_v = _load_values(tail_values, tail_row, start, DP, TAIL_N, WIDTH, TMA)
            scores = _scores(q_tile, k, INT8, PRECISION)
            left, right, highest, total = _absorb(
                left, right, highest, total, scores, unit, bias, weight, v, right_v, value_unit,
                True, INT8, HALF, SPLIT, PRECISION,
            )  # fmt: skip

    # Loaded here, not kept in registers through the loops.
    token = tl.load(q_source + rows).to(tl.int64)
    out_row = out + (batch * length * num_heads + head_in_batch) * D
    share = 1.0 / total
    PAPER: tl.constexpr = RECTIFICATION == "paper"
    if lse is not None:
        logs = (highest + tl.log2(total)) / LOG2E
        if PAPER:
            factor = tl.load(rectify_scale + row, mask=is_video, other=1.0)
            logs -= tl.log(tl.maximum(factor, LEAST))
        tl.store(lse + (first_head + head) * length + token, logs, mask=token >= 0)
    _store_rows(
        out_row, num_heads * D, left * share[:, None], token, 0, rectify_scale, compensation, row,
        is_video, WIDTH, D, DP, PAPER,
    )  # fmt: skip
    if SPLIT:
        _store_rows(
            out_row, num_heads * D, right * share[:, None], token, WIDTH, rectify_scale,
            compensation, row, is_video, WIDTH, D, DP, PAPER,
        )  # fmt: skip


def attend(
    q: Tensor,
    q_pool: Pooled,
    k_pool: Pooled,
    v_pool: Pooled,
    tail: Tail | None,
    selection: Selection,
    plan: Plan,
    result: Result,
) -> None:
    """Attend the selected blocks and write the rows of the plan's heads into `result.out`."""
    config, tile, sizes, tables = plan.config, plan.tile, plan.sizes, plan.tables
    compensation = None
    if selection.weights is not None:
        compensation = torch.bmm(selection.weights, v_pool.mean.high)  # C = W v̄
    width = value_width(sizes.padded_dim, config.q_block, tile)
    arguments: dict[str, Any] = {
        "q": q_pool.packed if tile.int8 else q,
        "q_scale": q_pool.scale,
        "q_source": tables.q_source,
        "packed_k": _tiles(k_pool.packed, tile.tile_n, sizes.padded_dim, tile),
        "packed_v": _tiles(v_pool.packed, tile.tile_n, width, tile),
        "k_scale": k_pool.scale,
        "kv_indices": selection.kv_indices,
        "list_lengths": selection.list_lengths,
        "ragged_kept": selection.ragged_kept,
        "rectify_scale": selection.rectify_scale,
        "compensation": compensation,
        "tail_k": tail and _tiles(tail.keys, tile.tail_n, sizes.padded_dim, tile),
        "tail_v": tail and _tiles(tail.values, tile.tail_n, width, tile),
        "tail_k_scale": tail and tail.key_scale,
        "tail_bias": selection.tail_bias,
        "tail_weight": tail and tail.weight,
        "out": result.out,
        "lse": result.lse,
        "first_head": plan.first_head,
        "num_heads": plan.num_heads,
        "length": sizes.length,
        "packed_length": sizes.packed_length,
        "tail_length": sizes.tail_length,
        "num_q": sizes.num_q,
        "num_context_q": sizes.num_context_q,
        "num_k": sizes.num_k,
        "video_length": sizes.video_length,
        "context_length": sizes.context_length,
        "width": sizes.width,
        "all_blocks_start": plan.chunk_heads * sizes.num_q * sizes.width,
        "num_all_blocks": len(tables.all_blocks),
        **strides(q),
        "scale": plan.scale,
        "D": sizes.head_dim,
        "DP": sizes.padded_dim,
        "Q_BLOCK": config.q_block,
        "KV_BLOCK": config.kv_block,
        "TILE_N": tile.tile_n,
        "INT8": tile.int8,
        "RECTIFICATION": config.rectification,
        "TAIL_KEYS": config.tail_keys,
        "SCALE_GROUPS": TAIL_SCALE_GROUPS,
        "num_warps": tile.num_warps,
    }
    if tile.max_registers:
        arguments["maxnreg"] = tile.max_registers
    grid = (sizes.num_context_q + sizes.num_q, plan.chunk_heads)
    if tile.specialised:
        from .attend_hopper import attend_hopper_kernel

        run(
            attend_hopper_kernel,
            grid,
            k_centre=plan.shift,
            k_radius=k_pool.radius,
            STAGES=tile.num_stages,
            **arguments,
        )
        return
    run(
        attend_kernel,
        grid,
        v_scale=v_pool.scale,
        tail_v_scale=tail and tail.value_scale,
        WIDTH=width,
        HALF=tile.half_sums,
        TAIL_N=tile.tail_n,
        TMA=tile.tma,
        # Full fp32 products where the input is fp32; 16-bit inputs have one precision only.
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_stages=tile.num_stages,
        **arguments,
    )


def value_width(padded_dim: int, q_block: int, tile: Tile) -> int:
    """Channels of values that one product takes.

    Before Hopper, Triton gives every warp 16 whole rows of a product only if it has no more columns
    than rows; otherwise warps exchange weights and maxima through shared memory. And sums in fp16
    of one half become fp32 while the other half is multiplied.
    """
    is_wide = padded_dim > (64 if tile.half_sums else q_block) and not tile.specialised
    return padded_dim // 2 if is_wide else padded_dim


def _tiles(packed: Tensor | None, rows: int, columns: int, tile: Tile) -> Any:
    """`packed [HC, L, DP]` as the kernel reads it: itself, or a descriptor of `[HC * L, DP]` in
    tiles of `rows` rows and `columns` channels.
    """
    assert packed is not None
    if not (tile.tma or tile.specialised):
        return packed
    flat = packed.flatten(0, 1)
    shape = [rows, columns]
    if not tile.specialised:
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(flat, shape)
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor

    dtype = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
    layout = gl.NVMMASharedLayout.get_default_for(shape, dtype[packed.dtype])
    return GluonDescriptor.from_tensor(flat, shape, layout)
