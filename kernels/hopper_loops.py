"""The two long loops of attend_hopper.py: full blocks, and the pooled keys behind them.

Each exists with a moving maximum and, for bounded rows, without: see online_softmax.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .online_softmax import LOG2E, exponentials, online_step, partial_sums, scaling
from .rings import wait_for_tile


@gluon.jit
def full_blocks(
    state, q_shared, start, rings, units, num_tiles,
    TILES: gl.constexpr, STAGES: gl.constexpr, INT8: gl.constexpr, BOUNDED: gl.constexpr,
):  # fmt: skip
    """All tiles of full blocks but the first; the values of the last are left to be added."""
    acc, w, highest, total = state
    k_ring, v_ring, k_full, v_full, k_empty, v_empty = rings
    row_unit, scale_next, entry, key_scale, entries = units
    S_LAYOUT: gl.constexpr = start.type.layout
    parts = partial_sums(gl.zeros(start.shape, gl.float32, S_LAYOUT))
    for tile in range(1, num_tiles):
        unit = scaling(row_unit, scale_next, INT8)
        if INT8:
            scale_next = gl.load(key_scale + entry)
            entry = gl.load(entries + (tile + 2) // TILES, mask=tile + 2 < num_tiles, other=0)
        k_slot = wait_for_tile(k_full, tile, STAGES)
        keys = k_ring.index(k_slot).permute((1, 0))
        scores = warpgroup_mma(q_shared, keys, start, use_acc=INT8, is_async=True)
        v_slot = wait_for_tile(v_full, tile - 1, STAGES)
        acc = warpgroup_mma(w, v_ring.index(v_slot), acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(k_empty.index(k_slot), count=1)
        if BOUNDED:
            weights = exponentials(scores, highest, unit, INT8)
            parts += partial_sums(weights)
        else:
            weights, highest, total, rescale = online_step(scores, highest, total, unit, INT8)
        next_w = gl.convert_layout(weights.to(w.dtype), w.type.layout)
        acc, w, next_w = warpgroup_mma_wait(0, deps=(acc, w, next_w))
        mbarrier.arrive(v_empty.index(v_slot), count=1)
        if not BOUNDED:
            acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, acc.type.layout))[:, None]
        w = next_w
    if BOUNDED:
        total += gl.convert_layout(gl.sum(parts, 1), total.type.layout)
    return acc, w, highest, total


@gluon.jit
def _stand_ins(spread_row, group_sizes, variances, number, num_keys, TAIL_KEYS: gl.constexpr):
    """Variance term for |q|² = 1 and log2 of the tokens of some pooled keys; -inf: left out."""
    inside = number < num_keys
    spread = gl.load(spread_row + number // TAIL_KEYS, mask=inside, other=float("-inf"))
    size = spread
    if TAIL_KEYS > 1:
        size = gl.load(group_sizes + number, mask=inside, other=0.0)
        size = gl.where(spread == float("-inf"), spread, size)
        spread = gl.load(variances + number, mask=inside, other=0.0)
    return spread, size


@gluon.jit
def pooled_keys(
    state, exact_shared, squared_length, blocks, rings, first, num_tail, unit, variance_cap,
    KV_BLOCK: gl.constexpr, STAGES: gl.constexpr, INT8: gl.constexpr, TAIL_KEYS: gl.constexpr,
    BOUNDED: gl.constexpr,
):  # fmt: skip
    """The pooled keys of `precise`, with the bias of attend.py."""
    acc, highest, total = state
    spread_row, group_sizes, variances, num_k, video_length = blocks
    k_ring, v_ring, k_full, v_full, k_empty, v_empty = rings
    DTYPE: gl.constexpr = v_ring.dtype
    TILE_N: gl.constexpr = v_ring.shape[1]
    ROWS: gl.constexpr = squared_length.shape[0]
    T_LAYOUT: gl.constexpr = squared_length.type.layout.parent
    O_LAYOUT: gl.constexpr = acc.type.layout
    # Where tile j of the tail is in its rings, see fetcher.
    PACE: gl.constexpr = 2 if INT8 else 1
    AFTER: gl.constexpr = 1 if INT8 else 0
    t_ring = v_ring
    t_full = v_full
    t_empty = v_empty
    if not INT8:
        t_ring = k_ring
        t_full = k_full
        t_empty = k_empty
    cap = variance_cap * LOG2E
    full_size = gl.log2(KV_BLOCK * 1.0)
    last_size = gl.log2((video_length - (num_k - 1) * KV_BLOCK).to(gl.float32))
    COLUMN_T: gl.constexpr = gl.SliceLayout(0, T_LAYOUT)
    columns = gl.arange(0, TILE_N, COLUMN_T)
    zeros = gl.zeros([ROWS, TILE_N], gl.float32, T_LAYOUT)
    parts = partial_sums(zeros)
    # One value per thread, a tile ahead; in COLUMN_T each thread would load a quarter of the tile.
    loaded = gl.arange(0, TILE_N, gl.BlockedLayout([1], [32], [4], [0]))
    num_keys = num_k * TAIL_KEYS
    next_spread, next_size = _stand_ins(
        spread_row, group_sizes, variances, loaded, num_keys, TAIL_KEYS
    )
    for tile in range(0, num_tail):
        number = tile * TILE_N + columns
        spread = next_spread
        size = next_size
        k_slot = wait_for_tile(t_full, first + PACE * tile, STAGES)
        keys = t_ring.index(k_slot).permute((1, 0))
        scores = warpgroup_mma(exact_shared, keys, zeros, use_acc=False, is_async=True)
        ahead = (tile + 1) * TILE_N + loaded
        next_spread, next_size = _stand_ins(
            spread_row, group_sizes, variances, ahead, num_keys, TAIL_KEYS
        )
        scores = warpgroup_mma_wait(0, deps=(scores,))
        mbarrier.arrive(t_empty.index(k_slot), count=1)
        spread = gl.convert_layout(spread, COLUMN_T)
        if TAIL_KEYS > 1:
            log_size = gl.convert_layout(size, COLUMN_T)
        else:
            log_size = gl.where(number == num_k - 1, last_size, full_size)
        bias = squared_length[:, None] * spread[None, :] + log_size[None, :]
        bias = gl.minimum(bias, (log_size + cap)[None, :])
        scores = scores * unit + bias
        if BOUNDED:
            weights = exponentials(scores, highest, 1.0, False)
            parts += partial_sums(weights)
        else:
            weights, highest, total, rescale = online_step(scores, highest, total, 1.0, False)
            acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, O_LAYOUT))[:, None]
        w = gl.convert_layout(weights.to(DTYPE), gl.DotOperandLayout(0, O_LAYOUT, 2))
        v_slot = wait_for_tile(v_full, first + PACE * tile + AFTER, STAGES)
        acc = warpgroup_mma(w, v_ring.index(v_slot), acc)
        mbarrier.arrive(v_empty.index(v_slot), count=1)
    if BOUNDED:
        total += gl.convert_layout(gl.sum(parts, 1), total.type.layout)
    return acc, highest, total
