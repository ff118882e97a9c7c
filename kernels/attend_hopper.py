"""Attend for Hopper, in Gluon: the kernel of attend.py with every warp given its part.

One warp fetches tiles of keys and values with the bulk copy engine, as far ahead as the rings in
shared memory allow. Each group of four warps attends 64 rows of the q-block and waits for nobody
but the fetcher, so that one group's exponentials run beside the other's products. Within a group,
the scores of tile i + 1 are on the tensor cores while the weighted values of tile i are:

    scores(i + 1) = q k(i + 1)^T      acc += weights(i) v(i)      weights(i + 1) = exp2(...)

Rows that are bounded, as nearly all are, need no moving maximum: see online_softmax.py.

Arguments and result as in attend.py, whose formulas and notes are not repeated here.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
)

from .hopper_loops import full_blocks, pooled_keys
from .online_softmax import INTEGER_BITS, LOG2E, RANGE, RANGE_FP16, online_step, scaling
from .rings import fetcher, wait_for_tile

# The barrier of the four warps of a group; its name has changed between releases.
group_barrier = getattr(gl, "thread_barrier", None) or gl.barrier
# Rows of one group: what four warps multiply at once.
GROUP_ROWS = gl.constexpr(64)


@gluon.jit
def _group(
    group, arguments, stride_d,
    D: gl.constexpr, DP: gl.constexpr, Q_BLOCK: gl.constexpr, KV_BLOCK: gl.constexpr,
    TILE_N: gl.constexpr, STAGES: gl.constexpr, INT8: gl.constexpr, PAPER: gl.constexpr,
    PRECISE: gl.constexpr, TAIL_KEYS: gl.constexpr,
):  # fmt: skip
    """Four warps: rows `64 group ... 64 group + 63` of the q-block, from queries to output."""
    (
        q, q_source, k_centre, k_radius, k_scale, entries, rectify_scale, compensation,
        tail_spread, tail_size, tail_variance, out, q_tiles, exact_tiles, rings,
        block, row, is_video, batch, head_in_batch, head, num_heads, length, packed_length, num_k,
        video_length, num_tiles, ragged_size, context_size, context_block, num_tail,
        stride_b, stride_h, stride_n, scale, variance_cap,
    ) = arguments  # fmt: skip
    k_ring, v_ring, k_full, v_full, k_empty, v_empty = rings
    DTYPE: gl.constexpr = v_ring.dtype
    WIDE: gl.constexpr = v_ring.dtype == gl.bfloat16
    K_STEP: gl.constexpr = 32 if INT8 else 16  # channels of one instruction
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, K_STEP])
    T_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DP, 16])
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    Q_LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (DP // 8), DP // 8], [4, 1], [1, 0])
    ROW_S: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    ROW_T: gl.constexpr = gl.SliceLayout(1, T_LAYOUT)
    ROW_O: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    TILES: gl.constexpr = KV_BLOCK // TILE_N

    first_row = block * Q_BLOCK + group * GROUP_ROWS
    q_rows = gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, Q_LAYOUT))
    q_cols = gl.arange(0, DP, gl.SliceLayout(0, Q_LAYOUT))
    token = gl.load(q_source + first_row + q_rows).to(gl.int64)
    stored = (token >= 0)[:, None] & (q_cols < D)[None, :]
    q_offsets = token[:, None] * stride_n + q_cols.to(gl.int64)[None, :] * stride_d
    q_base = q + batch * stride_b + head_in_batch * stride_h
    q_tile = gl.load(q_base + q_offsets, mask=stored, other=0.0)

    unit = scale * LOG2E
    row_unit = unit
    key_scale = k_scale
    exact = q_tile.to(gl.float32)
    squared_length = gl.sum(exact * exact, 1)
    # Rounding to int8 lengthens a vector by less than a twentieth.
    bound = gl.sqrt(squared_length) * gl.load(k_radius + head) * (1.1 if INT8 else 1.0)
    if not INT8:  # int8 keys have lost their centre
        centre_row = k_centre + (batch * num_heads + head_in_batch) * D
        centre = gl.load(centre_row + q_cols, mask=q_cols < D, other=0.0)
        bound += gl.sum(exact * centre[None, :], 1)
    bound = gl.convert_layout(bound * unit, ROW_S)
    q_shared = q_tiles.index(group)
    exact_shared = exact_tiles.index(group)
    if INT8:
        # The maximum drops NaN; the sum carries it into the scores, where it is seen.
        largest = gl.max(gl.abs(exact), 1) + 0.0 * gl.sum(exact, 1)
        steps = 127.0 / gl.maximum(largest, 1e-30)
        row_unit = gl.convert_layout(unit / 127.0 * largest, ROW_S)
        q_shared.store(gl.floor(exact * steps[:, None] + 0.5).to(gl.int8))
        key_scale += head * (packed_length // KV_BLOCK)
        if PRECISE:
            exact_shared.store(q_tile)
    else:
        q_shared.store(q_tile)
    # Products read the queries of all four warps past the cache of each: every warp makes its own
    # visible before any warp goes on.
    fence_async_shared()
    group_barrier()

    acc = gl.zeros([GROUP_ROWS, DP], gl.float32, O_LAYOUT)
    highest = gl.full([GROUP_ROWS], float("-inf"), gl.float32, ROW_S)
    total = gl.full([GROUP_ROWS], 0.0, gl.float32, ROW_S)
    if INT8:
        start = gl.full([GROUP_ROWS, TILE_N], INTEGER_BITS, gl.int32, S_LAYOUT)
    else:
        start = gl.zeros([GROUP_ROWS, TILE_N], gl.float32, S_LAYOUT)

    bounded = False
    if num_tiles > 0:
        scale_now = 1.0
        scale_next = 1.0
        entry = 0
        if INT8:
            # Two steps ahead: the scores must not wait for a chain of loads.
            scale_now = gl.load(key_scale + gl.load(entries))
            scale_next = gl.load(
                key_scale + gl.load(entries + 1 // TILES, mask=num_tiles > 1, other=0)
            )
            entry = gl.load(entries + 2 // TILES, mask=num_tiles > 2, other=0)
        slot = wait_for_tile(k_full, 0, STAGES)
        keys = k_ring.index(slot).permute((1, 0))
        scores = warpgroup_mma(q_shared, keys, start, use_acc=INT8)
        mbarrier.arrive(k_empty.index(slot), count=1)
        tile_unit = scaling(row_unit, scale_now, INT8)
        weights, highest, total, rescale = online_step(scores, highest, total, tile_unit, INT8)
        w = gl.convert_layout(weights.to(DTYPE), W_LAYOUT)
        bounded = gl.max(bound - highest, 0) < (RANGE if WIDE else RANGE_FP16)
        state = (acc, w, highest, total)
        units = (row_unit, scale_next, entry, key_scale, entries)
        if bounded:
            state = full_blocks(
                state, q_shared, start, rings, units, num_tiles, TILES, STAGES, INT8, True
            )
        else:
            state = full_blocks(
                state, q_shared, start, rings, units, num_tiles, TILES, STAGES, INT8, False
            )
        acc, w, highest, total = state
        slot = wait_for_tile(v_full, num_tiles - 1, STAGES)
        acc = warpgroup_mma(w, v_ring.index(slot), acc)
        mbarrier.arrive(v_empty.index(slot), count=1)

    columns = gl.arange(0, TILE_N, gl.SliceLayout(0, S_LAYOUT))
    index = num_tiles
    for part in gl.static_range(2):
        size = ragged_size if part == 0 else context_size
        kv_block = num_k - 1 if part == 0 else context_block
        part_scale = 1.0
        if INT8:
            part_scale = gl.load(key_scale + kv_block)
        part_unit = scaling(row_unit, part_scale, INT8)
        for first in range(0, size, TILE_N):
            slot = wait_for_tile(k_full, index, STAGES)
            keys = k_ring.index(slot).permute((1, 0))
            scores = warpgroup_mma(q_shared, keys, start, use_acc=INT8)
            mbarrier.arrive(k_empty.index(slot), count=1)
            # The bits of -inf, where scores are the bits of floats.
            outside = -8388608 if INT8 else float("-inf")
            scores = gl.where((first + columns < size)[None, :], scores, outside)
            weights, highest, total, rescale = online_step(scores, highest, total, part_unit, INT8)
            acc = acc * gl.convert_layout(rescale, ROW_O)[:, None]
            w = gl.convert_layout(weights.to(DTYPE), W_LAYOUT)
            slot = wait_for_tile(v_full, index, STAGES)
            acc = warpgroup_mma(w, v_ring.index(slot), acc)
            mbarrier.arrive(v_empty.index(slot), count=1)
            index += 1

    if PRECISE:
        # Not 0, because 0 * -inf would be NaN.
        squared_length = gl.maximum(squared_length, 1e-30) * LOG2E
        squared_length = gl.convert_layout(squared_length, ROW_T)
        state = (acc, gl.convert_layout(highest, ROW_T), gl.convert_layout(total, ROW_T))
        blocks = (tail_spread + row * num_k, tail_size, tail_variance, num_k, video_length)
        # The bound holds for pooled keys, too, but for their bias: up to 2^13, too much for fp16.
        if bounded and WIDE:
            state = pooled_keys(
                state, exact_shared, squared_length, blocks, rings, index, num_tail, unit,
                variance_cap, KV_BLOCK, STAGES, INT8, TAIL_KEYS, True,
            )  # fmt: skip
        else:
            state = pooled_keys(
                state, exact_shared, squared_length, blocks, rings, index, num_tail, unit,
                variance_cap, KV_BLOCK, STAGES, INT8, TAIL_KEYS, False,
            )  # fmt: skip
        acc, highest, total = state

    result = acc / gl.convert_layout(total, ROW_O)[:, None]
    cols = gl.arange(0, DP, gl.SliceLayout(0, O_LAYOUT))
    if PAPER:
        result *= gl.load(rectify_scale + row, mask=is_video, other=1.0)
        addition = gl.load(compensation + row * DP + cols, mask=is_video, other=0.0)
        result += addition.to(gl.float32)[None, :]
    token = gl.load(q_source + first_row + gl.arange(0, GROUP_ROWS, ROW_O)).to(gl.int64)
    out_rows = (batch * length + token) * num_heads + head_in_batch
    stored = (token >= 0)[:, None] & (cols < D)[None, :]
    out_offsets = out_rows[:, None] * D + cols[None, :]
    gl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=stored)


@gluon.jit(
    do_not_specialize=[
        "first_head", "num_heads", "length", "packed_length", "tail_length", "num_q",
        "num_context_q", "num_k", "video_length", "context_length", "width", "all_blocks_start",
        "num_all_blocks",
    ]
)  # fmt: skip
def attend_hopper_kernel(
    q, q_source, packed_k, packed_v, k_scale, kv_indices, list_lengths, ragged_kept,
    rectify_scale, compensation, tail_spread, tail_k, tail_v, tail_size, tail_variance, out,
    first_head, num_heads, length, packed_length, tail_length, num_q, num_context_q, num_k,
    video_length, context_length, width, all_blocks_start, num_all_blocks,
    stride_b, stride_h, stride_n, stride_d, scale, variance_cap, k_centre, k_radius,
    D: gl.constexpr, DP: gl.constexpr, Q_BLOCK: gl.constexpr, KV_BLOCK: gl.constexpr,
    TILE_N: gl.constexpr, STAGES: gl.constexpr, INT8: gl.constexpr, RECTIFICATION: gl.constexpr,
    TAIL_KEYS: gl.constexpr,
):  # fmt: skip
    """Arguments of attend.py, but keys and values are always descriptors of TILE_N rows.

    Besides them k_centre `[B * H, D]` and k_radius `[HC]`, both fp32: a vector, and the length of
    the longest key from there.
    """
    GROUPS: gl.constexpr = Q_BLOCK // GROUP_ROWS
    PAPER: gl.constexpr = RECTIFICATION == "paper"
    PRECISE: gl.constexpr = RECTIFICATION == "precise"
    TILES: gl.constexpr = KV_BLOCK // TILE_N
    block = gl.program_id(0)
    q_block = block - num_context_q
    is_video = q_block >= 0
    head = gl.program_id(1).to(gl.int64)
    batch = (first_head + head) // num_heads
    head_in_batch = (first_head + head) % num_heads
    row = head * num_q + gl.maximum(q_block, 0)

    entries = kv_indices + gl.where(is_video, row * width, all_blocks_start)
    num_entries = gl.where(is_video, gl.load(list_lengths + row), num_all_blocks)
    num_tiles = num_entries * TILES
    kept = (is_video == 0) | (gl.load(ragged_kept + row) > 0)
    ragged_size = gl.where(kept, video_length % KV_BLOCK, 0)
    ragged_tiles = (ragged_size + TILE_N - 1) // TILE_N
    context_size = context_length % KV_BLOCK
    context_tiles = (context_size + TILE_N - 1) // TILE_N
    context_block = gl.where(context_size > 0, num_k + context_length // KV_BLOCK, 0)
    num_tail = gl.where(is_video, (num_k * TAIL_KEYS + TILE_N - 1) // TILE_N, 0)
    head_row = (head * packed_length).to(gl.int32)
    tail_row = (head * tail_length).to(gl.int32)
    ragged_row = head_row + (num_k - 1) * KV_BLOCK
    context_row = head_row + context_block * KV_BLOCK

    K_DTYPE: gl.constexpr = packed_k.dtype
    V_DTYPE: gl.constexpr = packed_v.dtype
    K_TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, DP], K_DTYPE)
    V_TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, DP], V_DTYPE)
    q_tiles = gl.allocate_shared_memory(K_DTYPE, [GROUPS, GROUP_ROWS, DP], K_TILE)
    exact_tiles = q_tiles
    if INT8 and PRECISE:
        exact_tiles = gl.allocate_shared_memory(V_DTYPE, [GROUPS, GROUP_ROWS, DP], V_TILE)
    k_ring = gl.allocate_shared_memory(K_DTYPE, [STAGES, TILE_N, DP], packed_k.layout)
    v_ring = gl.allocate_shared_memory(V_DTYPE, [STAGES, TILE_N, DP], packed_v.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=GROUPS)
        mbarrier.init(v_empty.index(stage), count=GROUPS)

    # No part can be given None: what a mode does not have is any other pointer.
    scales = list_lengths
    factors = list_lengths
    additions = list_lengths
    spreads = list_lengths
    group_sizes = list_lengths
    variances = list_lengths
    pooled_k = packed_v
    pooled_v = packed_v
    if INT8:
        scales = k_scale
    if PAPER:
        factors = rectify_scale
        additions = compensation
    if PRECISE:
        spreads = tail_spread
        if TAIL_KEYS > 1:
            group_sizes = tail_size + head * tail_length
            variances = tail_variance + head * tail_length
        pooled_k = tail_k
        pooled_v = tail_v
    rings = (k_ring, v_ring, k_full, v_full, k_empty, v_empty)
    arguments = (
        q, q_source, k_centre, k_radius, scales, entries, factors, additions,
        spreads, group_sizes, variances, out, q_tiles, exact_tiles, rings,
        block, row, is_video, batch, head_in_batch, head, num_heads, length, packed_length, num_k,
        video_length, num_tiles, ragged_size, context_size, context_block, num_tail,
        stride_b, stride_h, stride_n, scale, variance_cap,
    )  # fmt: skip
    fetched = (
        packed_k, packed_v, pooled_k, pooled_v, entries,
        k_ring, v_ring, k_full, v_full, k_empty, v_empty,
        head_row, tail_row, num_tiles, ragged_row, ragged_tiles, context_row, context_tiles,
        num_tail,
    )  # fmt: skip
    # Constants, and the stride that is one, stand in the calls themselves: a variable would turn
    # them into values.
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_group, (
                    0, arguments, stride_d, D, DP, Q_BLOCK, KV_BLOCK, TILE_N, STAGES, INT8, PAPER,
                    PRECISE, TAIL_KEYS,
                )),
                (_group, (
                    1, arguments, stride_d, D, DP, Q_BLOCK, KV_BLOCK, TILE_N, STAGES, INT8, PAPER,
                    PRECISE, TAIL_KEYS,
                )),
                (fetcher, (fetched, KV_BLOCK, TILE_N, STAGES, INT8, PRECISE)),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_group, (
                    0, arguments, stride_d, D, DP, Q_BLOCK, KV_BLOCK, TILE_N, STAGES, INT8, PAPER,
                    PRECISE, TAIL_KEYS,
                )),
                (fetcher, (fetched, KV_BLOCK, TILE_N, STAGES, INT8, PRECISE)),
            ],
            [1],
            [24],
        )  # fmt: skip
