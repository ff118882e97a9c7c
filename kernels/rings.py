"""Rings of tiles in shared memory: one warp fills them, the groups of attend_hopper.py empty them.

A ring has `STAGES` slots; tile `index` goes into slot `index % STAGES`. Two barriers guard each
slot: `full` completes when the copy has arrived, `empty` when every group has left the slot.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def _fetch(tensor, row, ring, full, empty, index, STAGES: gl.constexpr):
    """Copy rows `row ...` into the slot of tile `index`, as soon as all groups have left it."""
    slot = index % STAGES
    mbarrier.wait(empty.index(slot), ((index // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(slot), tensor.block_type.nbytes)
    tma.async_copy_global_to_shared(tensor, [row, 0], full.index(slot), ring.index(slot))


@gluon.jit
def fetcher(
    arguments, KV_BLOCK: gl.constexpr, TILE_N: gl.constexpr, STAGES: gl.constexpr,
    INT8: gl.constexpr, PRECISE: gl.constexpr,
):  # fmt: skip
    """The fetching warp: full blocks, the two ragged ones, then the pooled keys of the tail."""
    (
        packed_k, packed_v, tail_k, tail_v, entries,
        k_ring, v_ring, k_full, v_full, k_empty, v_empty,
        head_row, tail_row, num_tiles, ragged_row, ragged_tiles, context_row, context_tiles,
        num_tail,
    ) = arguments  # fmt: skip
    TILES: gl.constexpr = KV_BLOCK // TILE_N
    num_attended = num_tiles + ragged_tiles + context_tiles
    entry = gl.load(entries, mask=num_tiles > 0, other=0)
    for tile in range(0, num_attended):
        row = head_row + entry * KV_BLOCK + (tile % TILES) * TILE_N
        entry = gl.load(entries + (tile + 1) // TILES, mask=tile + 1 < num_tiles, other=0)
        behind = tile - num_tiles
        row = gl.where(behind >= 0, ragged_row + behind * TILE_N, row)
        behind -= ragged_tiles
        row = gl.where(behind >= 0, context_row + behind * TILE_N, row)
        _fetch(packed_k, row, k_ring, k_full, k_empty, tile, STAGES)
        _fetch(packed_v, row, v_ring, v_full, v_empty, tile, STAGES)
    if PRECISE:
        for tile in range(0, num_tail):
            row = tail_row + tile * TILE_N
            if INT8:
                # Pooled keys are not rounded: they go through the ring of the values.
                index = num_attended + 2 * tile
                _fetch(tail_k, row, v_ring, v_full, v_empty, index, STAGES)
                _fetch(tail_v, row, v_ring, v_full, v_empty, index + 1, STAGES)
            else:
                index = num_attended + tile
                _fetch(tail_k, row, k_ring, k_full, k_empty, index, STAGES)
                _fetch(tail_v, row, v_ring, v_full, v_empty, index, STAGES)


@gluon.jit
def wait_for_tile(full, index, STAGES: gl.constexpr):
    """Wait until tile `index` of a ring is there; returns its slot."""
    slot = index % STAGES
    mbarrier.wait(full.index(slot), (index // STAGES) & 1)
    return slot
