"""Static tile table of the attention kernel: nothing is tuned while an artist waits.

With D = 128 and 16-bit inputs every row fits its architecture and `paper` spills no registers;
tests/kernels/test_compile.py bounds what `precise` spills. Rows are tried in order: the first that
fits into shared memory and passes its check is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Launch configuration of the attention kernel.

    Attributes:
        tile_n: keys per step; divides the kv-block.
        num_warps, num_stages: warps of a program, depth of its software pipeline.
        tma: keys and values come through tensor descriptors (the bulk copy engine).
        max_registers: registers per thread at most, so that two programs share a multiprocessor;
            0 leaves it to the compiler.
    """

    tile_n: int
    num_warps: int
    num_stages: int
    tma: bool = False
    max_registers: int = 0


_POINTERS = (Tile(64, 8, 3), Tile(64, 8, 2), Tile(32, 8, 2), Tile(32, 8, 1))
_POINTERS_64 = tuple(tile._replace(num_warps=4) for tile in _POINTERS)
_FULL_PRECISION = (Tile(32, 8, 2), Tile(32, 8, 1), Tile(16, 8, 1))

_HOPPER_128 = (Tile(128, 8, 3, tma=True), Tile(64, 8, 3, tma=True), *_POINTERS)
_HOPPER_64 = (Tile(64, 4, 3, tma=True), *_POINTERS_64)


def tile_candidates(
    capability: tuple[int, int],
    shared_memory: int,
    dtype: torch.dtype,
    head_dim: int,
    q_block: int,
    kv_block: int,
    has_descriptors: bool,
) -> list[Tile]:
    """Tiles to try, best first, of those that fit into shared memory.

    Args:
        capability: compute capability of the GPU.
        shared_memory: bytes of shared memory one program may use (opt-in limit).
        dtype: of q, k, v.
        head_dim: padded head dimension, 32, 64 or 128.
        q_block, kv_block: block lengths, 64 or 128.
        has_descriptors: whether this Triton can pass tensor descriptors to a kernel.
    """
    # Half the accumulator: 4 warps hold it without spills.
    small = q_block == 64 or head_dim <= 64
    if dtype == torch.float32:
        rows = tuple(row._replace(num_warps=4) if small else row for row in _FULL_PRECISION)
    elif capability[0] == 9:
        rows = _HOPPER_64 if small else _HOPPER_128
    else:
        rows = _POINTERS_64 if small else _POINTERS
    return [
        row
        for row in rows
        if row.tile_n <= kv_block
        and tile_bytes(row, dtype, head_dim, q_block) <= shared_memory
        and (has_descriptors or not row.tma)
    ]


def tile_bytes(tile: Tile, dtype: torch.dtype, head_dim: int, q_block: int) -> int:
    """Shared memory that a tile needs: q once, k and v once per pipeline stage."""
    return (q_block + 2 * tile.tile_n * tile.num_stages) * head_dim * dtype.itemsize


def score_precision(device: torch.device) -> str:
    """How the score kernels multiply fp32 on `device`: "tf32x3" on tensor cores, or "ieee".

    Both keep fp32's precision. The tensor cores spare registers on Hopper only; elsewhere three
    products at once spill.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        return "tf32x3"
    return "ieee"
