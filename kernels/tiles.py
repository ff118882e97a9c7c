"""Static tile table of the attention kernel: nothing is tuned while an artist waits.

With D = 128 and 16-bit inputs every row fits its architecture and spills no registers inside its
loops; tests/kernels/test_compile.py checks both and bounds what is parked around them. Rows are
tried in order: the first that fits into shared memory and passes its check is used.
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
        int8: queries and keys are rounded to int8, see rspa_core/quantisation.py.
        specialised: the kernel of attend_hopper.py, which fetches with one warp more and always
            through descriptors; `num_warps` are those of one group.
    """

    tile_n: int
    num_warps: int
    num_stages: int
    tma: bool = False
    max_registers: int = 0
    int8: bool = False
    specialised: bool = False

    @property
    def tail_n(self) -> int:
        """Pooled keys per step of the tail, whose bias takes registers beside the scores."""
        if self.specialised:
            return self.tile_n
        return min(self.tile_n, 64 if self.tma else 32)


_POINTERS = (Tile(64, 8, 3), Tile(64, 8, 2), Tile(32, 8, 2), Tile(32, 8, 1))
_POINTERS_64 = tuple(tile._replace(num_warps=4) for tile in _POINTERS)
_FULL_PRECISION = (Tile(32, 8, 2), Tile(32, 8, 1), Tile(16, 8, 1))

# Two groups of four warps, or one with half of the registers so that two programs share a
# multiprocessor.
_SPECIALISED_128 = (Tile(128, 4, 2, specialised=True), Tile(64, 4, 4, specialised=True))
_SPECIALISED_128_INT8 = (Tile(128, 4, 3, specialised=True), Tile(64, 4, 6, specialised=True))
_SPECIALISED_64 = (Tile(64, 4, 3, max_registers=128, specialised=True),)
_HOPPER_128 = (Tile(128, 8, 3, tma=True), Tile(64, 8, 3, tma=True), *_POINTERS)
_HOPPER_64 = (Tile(64, 4, 3, tma=True), *_POINTERS_64)

# The smallest head for which Hopper's products and copies have layouts in attend_hopper.py.
_SPECIALISED_HEAD_DIM = 64


def tile_candidates(
    capability: tuple[int, int],
    shared_memory: int,
    dtype: torch.dtype,
    head_dim: int,
    q_block: int,
    kv_block: int,
    has_descriptors: bool,
    has_gluon: bool = False,
    int8: bool = False,
) -> list[Tile]:
    """Tiles to try, best first, of those that fit into shared memory.

    Args:
        capability: compute capability of the GPU.
        shared_memory: bytes of shared memory one program may use (opt-in limit).
        dtype: of q, k, v.
        head_dim: padded head dimension, 32, 64 or 128.
        q_block, kv_block: block lengths, 64 or 128.
        has_descriptors: whether this Triton can pass tensor descriptors to a kernel.
        has_gluon: whether this Triton runs attend_hopper.py.
        int8: tiles with int8 products first; the others remain as a way out.
    """
    # Half the accumulator: 4 warps hold it without spills.
    small = q_block == 64 or head_dim <= 64
    rows: tuple[Tile, ...]
    if dtype == torch.float32:
        rows = tuple(row._replace(num_warps=4) if small else row for row in _FULL_PRECISION)
    elif capability[0] == 9:
        rows = _HOPPER_64 if small else _HOPPER_128
    else:
        rows = _POINTERS_64 if small else _POINTERS
    rounded = rows
    if has_gluon and capability[0] == 9 and dtype.itemsize == 2:
        if head_dim >= _SPECIALISED_HEAD_DIM:
            first = _SPECIALISED_128 if q_block == 128 else _SPECIALISED_64
            rows = first + rows
            first = _SPECIALISED_128_INT8 if q_block == 128 else _SPECIALISED_64
            rounded = first + rounded
    if int8:
        rows = tuple(row._replace(int8=True) for row in rounded) + rows
    return [
        row
        for row in rows
        if row.tile_n <= kv_block
        and tile_bytes(row, dtype, head_dim, q_block) <= shared_memory
        and (has_descriptors or not row.tma)
    ]


def tile_bytes(tile: Tile, dtype: torch.dtype, head_dim: int, q_block: int) -> int:
    """Shared memory that a tile needs: q once, k and v once per pipeline stage."""
    key_bytes = 1 if tile.int8 else dtype.itemsize
    keys = tile.tile_n * tile.num_stages
    return (q_block * dtype.itemsize + keys * (key_bytes + dtype.itemsize)) * head_dim


def resolved_precision(precision: str, capability: tuple[int, int]) -> str:
    """What `SparseConfig.precision` means on a GPU of this compute capability.

    "auto" is "int8" on the chips of graphics cards (8.6, 8.9, 12.x), whose tensor cores sum 16-bit
    products in fp32 at half their rate but int8 products at full rate, and "16-bit" elsewhere: on
    Hopper int8 gains a seventh of the time, see docs/notes/kernels.md.
    """
    if precision != "auto":
        return precision
    return "int8" if capability in ((8, 6), (8, 9)) or capability[0] == 12 else "16-bit"


class ScoreTile(NamedTuple):
    """Launch configuration of the score kernel: block pairs per program, channels per step."""

    tile_q: int
    tile_k: int
    step: int
    num_warps: int
    num_stages: int


def score_tile(dtype: torch.dtype) -> ScoreTile:
    """Configuration for statistics in fp32, or in pairs of 16-bit numbers."""
    if dtype == torch.float32:
        return ScoreTile(64, 64, 16, 8, 2)
    return ScoreTile(64, 64, 32, 4, 3)


def rank_tile(dtype: torch.dtype) -> ScoreTile:
    """Configuration of the rank kernel: parts of q-blocks and groups of keys per program."""
    if dtype == torch.float32:
        return ScoreTile(64, 64, 16, 8, 2)
    return ScoreTile(128, 128, 32, 4, 3)


def pool_warps(block: int, int8: bool) -> int:
    """Warps of the pool kernel: as few as hold a block, so that many blocks are under way."""
    if block < 64:
        return 1
    return 2 if block == 64 and not int8 else 4


def select_warps(block: int) -> int:
    """Warps that share a row of `block` logits: few, each step of the bisection waits for all."""
    return max(2, min(8, block // 512))
