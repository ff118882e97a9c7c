"""What depends on the GPU, its driver or Triton: who may run, tiles, warps, what a release can do.

A new GPU is a row here. Tiles stand in static tables: nothing is tuned while an artist waits. With
D = 128 and 16-bit inputs every row fits its architecture and spills no registers inside its loops;
tests/kernels/test_compile.py checks both, names the few exceptions of some releases of Triton, and
bounds what is parked around the loops. Rows are tried in order: the first that fits into shared
memory and passes its check is used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import NamedTuple

import torch
import triton

MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 3)
KNOWN_RELEASES = ((3, 3), (3, 4), (3, 5), (3, 6), (3, 7), (3, 8), (3, 9))
"""Releases of Triton with which the other kernels are run without a trial (see selfcheck.py)."""
GLUON_RELEASES = ((3, 6), (3, 7), (3, 8), (3, 9))
"""Releases of Triton with which attend_hopper.py has been run."""
WHOLE_INT8_BLOCK_STOPS = ((10, 0), (3, 9))
"""GPU and release of Triton whose compiler stops ("Op used before defined") at an int8 tile of the
generic kernel that is a whole kv-block."""
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 128


@triton.jit
def _nothing():
    """Shows what `triton.jit` makes of a function here: for a GPU, or for the interpreter."""


def unsupported_reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None where the kernels are made for calls of this kind, else the reason, for the user."""
    if device.type == "cpu":
        reason = interpreter_reason()
    elif torch.version.hip is not None:
        reason = "the kernels are made for NVIDIA GPUs, this PyTorch is built for AMD"
    else:
        name = torch.cuda.get_device_name(device)
        reason = version_reason(triton.__version__) or capability_reason(
            name, torch.cuda.get_device_capability(device)
        )
    return reason or shape_reason(dtype, head_dim)


def interpreter_reason() -> str | None:
    """None if Triton's interpreter is on, without which nothing runs on a CPU."""
    if isinstance(_nothing, triton.runtime.JITFunction):
        return "on a CPU the kernels run in Triton's interpreter only (TRITON_INTERPRET=1)"
    return None


def version_reason(version: str) -> str | None:
    """None if this Triton is new enough."""
    if _release(version) < MIN_TRITON:
        return f"Triton 3.3 or newer is needed (PyTorch 2.7 brings it), {version} is installed"
    return None


def capability_reason(name: str, capability: tuple[int, int]) -> str | None:
    """None if the kernels run on GPUs of this compute capability."""
    major, minor = capability
    if capability < MIN_CAPABILITY:
        return f"{name} has compute capability {major}.{minor}, 8.0 or newer is needed"
    return None


def shape_reason(dtype: torch.dtype, head_dim: int) -> str | None:
    """None if the kernels take heads of this size and type."""
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        return f"heads of {head_dim} channels, {MIN_HEAD_DIM} to {MAX_HEAD_DIM} are supported"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"attention in {dtype}, float16, bfloat16 and float32 are supported"
    return None


def has_descriptors() -> bool:
    """Whether this Triton can pass tensor descriptors to a kernel (3.4 and newer)."""
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def has_gluon(version: str = triton.__version__) -> bool:
    """Whether this Triton may run the kernel of attend_hopper.py: it has, or is newer than all that
    have, and imports it.

    Gluon changes between releases, and a kernel whose warps wait for each other may hang where it
    is compiled differently: a newer release tries it in a process of its own (see `is_known`).
    """
    release = _release(version)
    if release in GLUON_RELEASES or release < max(GLUON_RELEASES):
        return release in GLUON_RELEASES
    try:
        importlib.import_module(".attend_hopper", __package__)
    except Exception:  # whatever a release has renamed
        return False
    return True


def is_known(tile: Tile, version: str = triton.__version__) -> bool:
    """Whether this Triton has run the kernel of `tile`; else see `Trial` in selfcheck.py."""
    release = _release(version)
    return release in GLUON_RELEASES if tile.specialised else release <= max(KNOWN_RELEASES)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


class Tile(NamedTuple):
    """Launch configuration of the attention kernel.

    Attributes:
        tile_n: keys per step; divides the kv-block.
        num_warps, num_stages: warps of a program, depth of its software pipeline.
        tma: keys and values come through tensor descriptors (the bulk copy engine).
        max_registers: registers per thread at most, so that two programs share a multiprocessor;
            0 leaves it to the compiler.
        int8: queries and keys are rounded to int8, see rspa_core/quantisation.py.
        half_sums: values are scaled to fp16 and summed in fp16 over one tile, in fp32 over tiles.
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
    half_sums: bool = False

    @property
    def tail_n(self) -> int:
        """Pooled keys per step of the tail, whose bias takes registers beside the scores."""
        if self.specialised or self.half_sums:
            return self.tile_n
        return min(self.tile_n, 64 if self.tma else 32)


_POINTERS = (Tile(64, 8, 3), Tile(64, 8, 2), Tile(32, 8, 2), Tile(32, 8, 1))
_POINTERS_64 = tuple(tile._replace(num_warps=4) for tile in _POINTERS)
# Tensor cores of graphics cards sum in fp16 at twice the rate of fp32. A tile of 128 keys becomes
# fp32 half as often as two of 64; with 16-bit keys, and compiled for 12.x, its loops spill. So do
# those of 64 int8 keys whose values are summed in fp32, compiled for 12.x.
_CARDS_128 = (Tile(64, 8, 2, half_sums=True),)
_CARDS_128_INT8 = (Tile(128, 8, 2, half_sums=True), Tile(64, 8, 3, half_sums=True))
_CARDS_64 = (Tile(64, 4, 2, half_sums=True),)
_CARDS_64_INT8 = (Tile(64, 4, 3, half_sums=True), *_CARDS_64)
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
    version: str = triton.__version__,
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
        version: of Triton.
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
    first: tuple[Tile, ...]
    if is_graphics_card(capability) and dtype.itemsize == 2:
        first = _CARDS_64_INT8 if small else _CARDS_128_INT8
        rounded = first + rows
        if capability[0] == 12 and not small:
            rounded = first[1:] + tuple(row for row in rows if row.tile_n < 64)
        rows = (_CARDS_64 if small else _CARDS_128) + rows
    if has_gluon and capability[0] == 9 and dtype.itemsize == 2:
        if head_dim >= _SPECIALISED_HEAD_DIM:
            first = _SPECIALISED_128 if q_block == 128 else _SPECIALISED_64
            rows = first + rows
            first = _SPECIALISED_128_INT8 if q_block == 128 else _SPECIALISED_64
            rounded = first + rounded
    if int8:
        rows = tuple(row._replace(int8=True) for row in rounded) + rows
    stops = (capability, _release(version)) == WHOLE_INT8_BLOCK_STOPS
    return [
        row
        for row in rows
        if row.tile_n <= kv_block
        and not (stops and row.int8 and row.tile_n == kv_block)
        and tile_bytes(row, dtype, head_dim, q_block) <= shared_memory
        and (has_descriptors or not row.tma)
    ]


def tile_bytes(tile: Tile, dtype: torch.dtype, head_dim: int, q_block: int) -> int:
    """Shared memory that a tile needs: q once, k and v once per pipeline stage.

    The generic kernel, for graphics cards, copies the next tile over one that has been read: it
    holds one tile less than it has stages.
    """
    key_bytes = 1 if tile.int8 else dtype.itemsize
    keys = tile.tile_n * (tile.num_stages - 1 if tile.half_sums else tile.num_stages)
    q_bytes = key_bytes if tile.half_sums else dtype.itemsize
    return (q_block * q_bytes + keys * (key_bytes + dtype.itemsize)) * head_dim


def resolved_precision(precision: str, capability: tuple[int, int]) -> str:
    """What `SparseConfig.precision` means on a GPU of this compute capability.

    "auto" is "int8" where a call was measured to take less time with it: on the chips of graphics
    cards (8.6, 8.9, 12.x), whose tensor cores sum 16-bit products in fp32 at half their rate but
    int8 products at full rate, and on Hopper (9.0), see docs/notes/kernels.md.
    """
    if precision != "auto":
        return precision
    return "int8" if is_graphics_card(capability) or capability[0] == 9 else "16-bit"


def is_graphics_card(capability: tuple[int, int]) -> bool:
    """Whether tensor cores of this compute capability sum 16-bit products in fp32 at half rate."""
    return capability in ((8, 6), (8, 9)) or capability[0] == 12


class RankTile(NamedTuple):
    """Launch configuration of the kernels of rank.py.

    Attributes:
        tile_q, tile_k: rows and columns of a program.
        step: channels per step.
    """

    tile_q: int
    tile_k: int
    step: int
    num_warps: int
    num_stages: int


def pooled_rank_tile(dtype: torch.dtype) -> RankTile:
    """For pairs of pooled blocks whose statistics are in fp32, or in pairs of 16-bit numbers."""
    if dtype == torch.float32:
        return RankTile(64, 64, 16, 8, 2)
    return RankTile(64, 64, 32, 4, 3)


def group_rank_tile(dtype: torch.dtype) -> RankTile:
    """For parts of q-blocks and groups of keys."""
    if dtype == torch.float32:
        return RankTile(64, 64, 16, 8, 2)
    return RankTile(128, 128, 32, 4, 3)


def pool_warps(block: int) -> int:
    """Warps of the pool kernel: as few as hold a block, so that many blocks are under way."""
    return max(1, block // 32)


def label_registers(device: torch.device, block: int) -> int | None:
    """Registers per thread of the label kernel at most, None for what the compiler takes.

    Half of them let twice as many programs hide each other's reductions, which on Hopper does not
    outweigh the spills of a block of 128.
    """
    if device.type == "cpu":
        return None
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    return None if hopper and block == 128 else 128


def select_warps(block: int) -> int:
    """Warps that share a row of `block` logits: few, each step of the bisection waits for all."""
    return max(2, min(8, block // 512))
