"""First use of a tile on a GPU: it is trusted only after its output has matched the reference.

Compilers differ between Triton versions and chips, and a bad configuration may return garbage
without any error. A tile that fails, or does not fit, gives way to the next row of the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
import triton

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from ..rspa_core.metrics import relative_l2
from ..rspa_core.reference import reference_attention
from .compile import compile_all, progress, recorded
from .devices import Tile, has_descriptors, has_gluon, resolved_precision, tile_candidates
from .launch import launch

# 16-bit rounding of inputs, weights and output stays below 1e-2; a wrong tile is off by 1.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 1e-4}
# A value half way between two steps of int8 may go either way.
INT8_TOLERANCE = 1e-3

_LAYOUT = TokenLayout(grid=(5, 9, 17), length=5 * 9 * 17 + 150, video_start=70)

logger = logging.getLogger("rectified_spaattn")


class NoKernelError(RuntimeError):
    """No tile of the table works on this GPU. The message says what happened to the last one."""


def checked_config(config: SparseConfig) -> SparseConfig:
    """What one check answers for: the same blocks, rectification, precision and tail keys."""
    return SparseConfig(
        sparsity=0.6,
        q_block=config.q_block,
        kv_block=config.kv_block,
        rectification=config.rectification,
        precision=config.precision,
        tail_keys=config.tail_keys,
    )


# One entry per kind of call: a handful in a process. A failure is not kept: the caller gives up
# for its run, and the next run may find more memory.
@lru_cache(maxsize=64)
def trusted_tile(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    config: SparseConfig,
    has_context: bool = True,
) -> Tile:
    """First tile of the table that gives the reference's output on `device`.

    Args:
        device, dtype, head_dim: of q, k and v.
        config: see `checked_config`.
        has_context: whether there are tokens beside the video, which have kernels of their own.

    Raises:
        NoKernelError: no tile does.
        torch.OutOfMemoryError: the GPU is too full to tell.
    """
    name = torch.cuda.get_device_name(device)
    capability = torch.cuda.get_device_capability(device)
    precision = resolved_precision(config.precision, capability)
    candidates = tile_candidates(
        capability,
        triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"],
        dtype,
        triton.next_power_of_2(head_dim),
        config.q_block,
        config.kv_block,
        has_descriptors(),
        has_gluon(),
        int8=precision == "int8",
    )
    logger.info("Rectified SpaAttn: compiling kernels once for %s, scores in %s", name, precision)
    return first_correct(
        candidates,
        lambda tile: error_of(tile, device, dtype, head_dim, config, has_context),
        max(TOLERANCE[dtype], INT8_TOLERANCE) if precision == "int8" else TOLERANCE[dtype],
        name,
    )


def first_correct(
    candidates: list[Tile], error: Callable[[Tile], float], tolerance: float, gpu: str
) -> Tile:
    """First tile whose error is below the tolerance; one that raises gives way to the next.

    Args:
        candidates: tiles, best first.
        error: relative error of a tile's output, NaN if it is not finite; compiles and runs it.
        tolerance: largest error that rounding can explain.
        gpu: name of the GPU, for messages.

    Raises:
        NoKernelError: none is left.
        torch.OutOfMemoryError: raised by `error`; it says nothing about the tile.
    """
    problem = "no tile fits into its shared memory"
    for tile in candidates:
        try:
            difference = error(tile)
        except torch.OutOfMemoryError:
            raise
        except Exception as exception:  # compiler and launch errors have no common type
            problem = f"{type(exception).__name__}: {exception}".splitlines()[0]
        else:
            if difference < tolerance:  # also false for NaN
                return tile
            problem = f"{tile} differs from the reference by {difference:.1e}"
        logger.warning("Rectified SpaAttn: %s is not used: %s", tile, problem)
    raise NoKernelError(f"no kernel works on {gpu}: {problem}")


def error_of(
    tile: Tile,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    config: SparseConfig,
    has_context: bool = True,
) -> float:
    """Relative L2 error of `tile` on a small random problem with ragged blocks and context.

    On a GPU the kernels are compiled side by side first; `compile.progress` hears of it.
    """
    layout = _LAYOUT if has_context else TokenLayout(_LAYOUT.grid, _LAYOUT.video_length)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, layout.length, head_dim, generator=generator, device=device).to(dtype)
        for _ in range(3)
    )
    config = replace(config, precision="int8" if tile.int8 else "16-bit")
    # One head at a time: later chunks start at other offsets than the first.
    arguments = (q, k, v, layout, config, tile, False, 1)
    if device.type == "cuda":
        with recorded() as launches:
            launch(*arguments)
        compile_all(launches, device, progress.get())
    expected, _ = reference_attention(q, k, v, layout, config)
    return relative_l2(launch(*arguments)[0], expected)
