"""Attend: flash attention over a list of kv-blocks, with the rectification in its epilogue.

    none      O_r = softmax_{keys in C_i, context}(c q_r·k) V
    paper     O_r = R_i * softmax_{keys in C_i, context}(c q_r·k) V + compensation_i
    precise   every group g of the keys of the blocks not in C_i is one more key of the same
              softmax, with value v̄_g and logit c q_r·k̄_g + ln n_g + min(|q_r|² ν_g, cap)

Softmax in fp32 with exp2, scale applied to the scores and not rounded into q. Rows are read and
stored through the token order, so nothing is permuted outside. With int8 keys the queries are
rounded here, and the sums of their products are exact integers. Specification:
rspa_core/reference.py; arXiv 2511.19835 for R and the compensation.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .devices import Tile
from .plan import Plan, Pooled, Result, Selection, Tail, strides

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _absorb(acc, highest, total, scores, unit, values, INT8: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax: scores [M, N], values [N, DP].

    `unit` brings scores to log2: a number, with INT8 one per row.
    """
    # Scaling after the maximum leaves one fused multiply-add per score.
    new_highest = tl.maximum(highest, tl.max(scores, 1) * unit)
    if INT8:
        probs = tl.exp2(scores * unit[:, None] - new_highest[:, None])
    else:
        probs = tl.exp2(scores * unit - new_highest[:, None])
    rescale = tl.exp2(highest - new_highest)
    total = total * rescale + tl.sum(probs, 1)
    acc = acc * rescale[:, None]
    acc = tl.dot(probs.to(values.dtype), values, acc, input_precision=PRECISION)
    return acc, new_highest, total


@triton.jit
def _scores(q, k, INT8: tl.constexpr, PRECISION: tl.constexpr):
    """Raw scores [M, N] of q [M, DP] with k [N, DP], fp32."""
    if INT8:
        scores = tl.dot(q, tl.trans(k), out_dtype=tl.int32).to(tl.float32)
    else:
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    return scores


@triton.jit
def _unit(row_unit, key_scale, kv_block, INT8: tl.constexpr):
    """What brings raw scores with keys of `kv_block` to log2: a number, with INT8 one per row."""
    unit = row_unit
    if INT8:
        unit = row_unit * tl.load(key_scale + kv_block)
        unit = tl.where(unit == 0.0, 1e-30, unit)  # 0 * -inf would be NaN
    return unit


@triton.jit
def _load_tile(packed, row, DP: tl.constexpr, TILE_N: tl.constexpr, TMA: tl.constexpr):
    """Rows `row .. row + TILE_N` of a packed tensor, [TILE_N, DP]; `row` is int32."""
    if TMA:
        tile = packed.load([row, 0])
    else:
        offsets = tl.arange(0, TILE_N)[:, None] * DP + tl.arange(0, DP)[None, :]
        tile = tl.load(packed + row.to(tl.int64) * DP + offsets)
    return tile


@triton.jit
def _ragged_block(
    acc, highest, total, q, packed_k, packed_v, first_row, length, unit,
    DP: tl.constexpr, TILE_N: tl.constexpr, TMA: tl.constexpr, INT8: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend the first `length` keys of the block that starts at packed row `first_row`."""
    rows = tl.arange(0, TILE_N)
    for start in range(0, length, TILE_N):
        k = _load_tile(packed_k, first_row + start, DP, TILE_N, TMA)
        v = _load_tile(packed_v, first_row + start, DP, TILE_N, TMA)
        scores = _scores(q, k, INT8, PRECISION)
        scores = tl.where((start + rows < length)[None, :], scores, float("-inf"))
        acc, highest, total = _absorb(acc, highest, total, scores, unit, v, INT8, PRECISION)
    return acc, highest, total


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
    q,  # [B, H, N, D], any strides
    q_source,  # [(NCQ + NQ) * Q_BLOCK] int32: token of each row, context rows first, -1 padding
    packed_k,  # [HC, packed_length, DP]: video blocks, then context blocks, zeros behind each;
    packed_v,  # with TMA a tensor descriptor of [HC * packed_length, DP] in tiles of TILE_N rows
    k_scale,  # [HC, packed_length / KV_BLOCK] fp32: what one step of int8 keys is worth, INT8
    kv_indices,  # [HC * NQ * width + NK + NCK] int32; the end lists all full blocks
    list_lengths,  # [HC, NQ] int32
    ragged_kept,  # [HC, NQ] int32
    rectify_scale,  # [HC, NQ] fp32, paper
    compensation,  # [HC, NQ, DP] fp32, paper
    tail_mask,  # [HC, NQ, NK] fp32: 0, or -inf for critical blocks, precise
    tail_k,  # [HC, tail_length, DP] dtype of q and v: means of groups, precise;
    tail_v,  # zeros behind the last one, with TMA in tiles of TAIL_N rows
    tail_size,  # [HC, tail_length] fp32: log2 n_g, precise
    tail_variance,  # [HC, tail_length] fp32: ν_g of rspa_core/key_groups.py, precise
    out,  # [B, N, H, D] contiguous
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
    variance_cap,
    D: tl.constexpr,
    DP: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    KV_BLOCK: tl.constexpr,
    TILE_N: tl.constexpr,
    TAIL_N: tl.constexpr,
    TMA: tl.constexpr,
    INT8: tl.constexpr,
    RECTIFICATION: tl.constexpr,
    TAIL_KEYS: tl.constexpr,
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

    token = tl.load(q_source + block * Q_BLOCK + tl.arange(0, Q_BLOCK)).to(tl.int64)
    stored = (token >= 0)[:, None] & (cols < D)[None, :]
    q_offsets = token[:, None] * stride_n + cols.to(tl.int64)[None, :] * stride_d
    q_base = q + batch * stride_b + head_in_batch * stride_h
    q_tile = tl.load(q_base + q_offsets, mask=stored, other=0.0)  # [Q_BLOCK, DP]

    head_row = (head * packed_length).to(tl.int32)  # of this chunk's heads: far below 2^31
    unit = scale * LOG2E  # from raw scores to exponents of 2
    acc = tl.zeros([Q_BLOCK, DP], tl.float32)
    highest = tl.full([Q_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([Q_BLOCK], tl.float32)
    if RECTIFICATION == "precise":
        squares = q_tile.to(tl.float32)
        # Not 0, because 0 * -inf would be NaN.
        squared_length = tl.maximum(tl.sum(squares * squares, 1), 1e-30) * LOG2E
    key_scale = k_scale
    if INT8:
        exact = q_tile.to(tl.float32)
        # The maximum drops NaN; the sum carries it into the scores, where it is seen.
        largest = tl.max(tl.abs(exact), 1) + 0.0 * tl.sum(exact, 1)
        steps = 127.0 / tl.maximum(largest, 1e-30)
        keys_q = tl.floor(exact * steps[:, None] + 0.5).to(tl.int8)
        row_unit = unit / 127.0 * largest
        key_scale += head * (packed_length // KV_BLOCK)
    else:
        keys_q = q_tile
        row_unit = unit

    # Full blocks: no mask. The next entry is loaded one step ahead, so that the address of the
    # next tile is known when its prefetch is issued.
    TILES: tl.constexpr = KV_BLOCK // TILE_N
    entries = kv_indices + tl.where(is_video, row * width, all_blocks_start)
    num_entries = tl.where(is_video, tl.load(list_lengths + row), num_all_blocks)
    num_tiles = num_entries * TILES
    entry = tl.load(entries, mask=num_entries > 0, other=0)
    for i in range(0, num_tiles):
        first_row = head_row + entry * KV_BLOCK + (i % TILES) * TILE_N
        tile_unit = _unit(row_unit, key_scale, entry, INT8)
        entry = tl.load(entries + (i + 1) // TILES, mask=i + 1 < num_tiles, other=0)
        k = _load_tile(packed_k, first_row, DP, TILE_N, TMA)
        v = _load_tile(packed_v, first_row, DP, TILE_N, TMA)
        scores = _scores(keys_q, k, INT8, PRECISION)
        acc, highest, total = _absorb(acc, highest, total, scores, tile_unit, v, INT8, PRECISION)

    # At most two ragged blocks: the end of the video and the end of the context.
    # A length of 0 skips one.
    kept = (is_video == 0) | (tl.load(ragged_kept + row) > 0)
    last_context = num_k + context_length // KV_BLOCK
    acc, highest, total = _ragged_block(
        acc, highest, total, keys_q, packed_k, packed_v, head_row + (num_k - 1) * KV_BLOCK,
        tl.where(kept, video_length % KV_BLOCK, 0), _unit(row_unit, key_scale, num_k - 1, INT8),
        DP, TILE_N, TMA, INT8, PRECISION,
    )  # fmt: skip
    length_of_last = context_length % KV_BLOCK
    last_context = tl.where(length_of_last > 0, last_context, 0)  # of no block there is no scale
    acc, highest, total = _ragged_block(
        acc, highest, total, keys_q, packed_k, packed_v, head_row + last_context * KV_BLOCK,
        length_of_last, _unit(row_unit, key_scale, last_context, INT8),
        DP, TILE_N, TMA, INT8, PRECISION,
    )  # fmt: skip

    if RECTIFICATION == "precise":
        if INT8:
            # Read again rather than kept in registers through the loop.
            q_tile = tl.load(
                q_base + q_offsets, mask=stored, other=0.0, eviction_policy="evict_first"
            )
        cap = variance_cap * LOG2E
        mask_row = tail_mask + row * num_k
        tail_row = (head * tail_length).to(tl.int32)
        num_tail = tl.where(is_video, num_k * TAIL_KEYS, 0)
        column = head * tail_length
        for start in tl.range(0, num_tail, TAIL_N, num_stages=2):
            index = start + tl.arange(0, TAIL_N)
            inside = index < num_k * TAIL_KEYS
            mark = tl.load(mask_row + index // TAIL_KEYS, mask=inside, other=float("-inf"))
            k = _load_tile(tail_k, tail_row + start, DP, TAIL_N, TMA)
            v = _load_tile(tail_v, tail_row + start, DP, TAIL_N, TMA)
            size = tl.load(tail_size + column + index, mask=inside, other=0.0)
            size = tl.where(mark == float("-inf"), mark, size)
            variance = tl.load(tail_variance + column + index, mask=inside, other=0.0)
            bias = squared_length[:, None] * variance[None, :] + size[None, :]
            bias = tl.minimum(bias, (size + cap)[None, :])
            scores = _scores(q_tile, k, False, PRECISION) * unit + bias
            acc, highest, total = _absorb(acc, highest, total, scores, 1.0, v, False, PRECISION)

    result = acc / total[:, None]
    if RECTIFICATION == "paper":
        result *= tl.load(rectify_scale + row, mask=is_video, other=1.0)
        result += tl.load(compensation + row * DP + cols, mask=is_video, other=0.0)[None, :]
    out_rows = (batch * length + token) * num_heads + head_in_batch
    out_offsets = out_rows[:, None] * D + cols[None, :]
    tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=stored)


def attend(
    q: Tensor,
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
    arguments: dict[str, Any] = {
        "q": q,
        "q_source": tables.q_source,
        "packed_k": _tiles(k_pool.packed, tile.tile_n, tile),
        "packed_v": _tiles(v_pool.packed, tile.tile_n, tile),
        "k_scale": k_pool.packed_scale,
        "kv_indices": selection.kv_indices,
        "list_lengths": selection.list_lengths,
        "ragged_kept": selection.ragged_kept,
        "rectify_scale": selection.rectify_scale,
        "compensation": compensation,
        "tail_mask": selection.tail_mask,
        "tail_k": tail and _tiles(tail.keys, tile.tail_n, tile),
        "tail_v": tail and _tiles(tail.values, tile.tail_n, tile),
        "tail_size": tail and tail.size,
        "tail_variance": tail and tail.variance,
        "out": result.out,
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
        "variance_cap": plan.variance_cap,
        "D": sizes.head_dim,
        "DP": sizes.padded_dim,
        "Q_BLOCK": config.q_block,
        "KV_BLOCK": config.kv_block,
        "TILE_N": tile.tile_n,
        "INT8": tile.int8,
        "RECTIFICATION": config.rectification,
        "TAIL_KEYS": config.tail_keys,
        "num_warps": tile.num_warps,
    }
    if tile.max_registers:
        arguments["maxnreg"] = tile.max_registers
    grid = (sizes.num_context_q + sizes.num_q, plan.chunk_heads)
    if tile.specialised:
        from .attend_hopper import attend_hopper_kernel

        attend_hopper_kernel[grid](
            k_centre=plan.shift, k_radius=k_pool.radius, STAGES=tile.num_stages, **arguments
        )
        return
    attend_kernel[grid](
        TAIL_N=tile.tail_n,
        TMA=tile.tma,
        # Full fp32 products where the input is fp32; 16-bit inputs have one precision only.
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_stages=tile.num_stages,
        **arguments,
    )


def _tiles(packed: Tensor | None, rows: int, tile: Tile) -> Any:
    """`packed [HC, L, DP]` as the kernel reads it: itself, or a descriptor of `[HC * L, DP]` in
    tiles of `rows` rows.
    """
    assert packed is not None
    if not (tile.tma or tile.specialised):
        return packed
    flat = packed.flatten(0, 1)
    shape = [rows, flat.shape[-1]]
    if not tile.specialised:
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(flat, shape)
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor

    dtype = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
    layout = gl.NVMMASharedLayout.get_default_for(shape, dtype[packed.dtype])
    return GluonDescriptor.from_tensor(flat, shape, layout)
