"""Static tile table of the attention kernel: nothing is tuned while an artist waits.

Every row compiles without register spills for its architecture with D = 128 and 16-bit inputs;
rows are tried in order, the first that fits into shared memory and passes its check is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Launch configuration: keys per step, warps, and depth of the software pipeline."""

    tile_n: int
    num_warps: int
    num_stages: int


_LARGE_SHARED = (Tile(64, 8, 3), Tile(64, 8, 2), Tile(32, 8, 2), Tile(32, 8, 1))
_SMALL_SHARED = (Tile(64, 8, 2), Tile(32, 8, 2), Tile(32, 8, 1))
_FULL_PRECISION = (Tile(32, 8, 2), Tile(32, 8, 1), Tile(16, 8, 1))

_TILES_128 = {
    (8, 0): _LARGE_SHARED,
    (8, 6): _SMALL_SHARED,
    (8, 9): _SMALL_SHARED,
    (9, 0): _LARGE_SHARED,
    (10, 0): _LARGE_SHARED,
    (12, 0): _SMALL_SHARED,
}


def tile_candidates(
    capability: tuple[int, int], shared_memory: int, dtype: torch.dtype, head_dim: int, q_block: int
) -> list[Tile]:
    """Tiles to try, best first, of those that fit into shared memory.

    Args:
        capability: compute capability of the GPU. An unknown one gets the cautious rows.
        shared_memory: bytes of shared memory one program may use (opt-in limit).
        dtype: of q, k, v.
        head_dim: padded head dimension, 64 or 128.
        q_block: rows of a q-block, 64 or 128.
    """
    rows = _FULL_PRECISION if dtype == torch.float32 else _TILES_128.get(capability, _SMALL_SHARED)
    if q_block == 64 or head_dim == 64:
        # Half the accumulator: 4 warps hold it without spills.
        rows = tuple(row._replace(num_warps=4) for row in rows)
    return [row for row in rows if tile_bytes(row, dtype, head_dim, q_block) <= shared_memory]


def tile_bytes(tile: Tile, dtype: torch.dtype, head_dim: int, q_block: int) -> int:
    """Shared memory that a tile needs: q once, k and v once per pipeline stage."""
    return (q_block + 2 * tile.tile_n * tile.num_stages) * head_dim * dtype.itemsize
