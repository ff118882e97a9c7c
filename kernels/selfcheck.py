"""First use of a tile on a GPU: it is trusted only after its output has matched the reference.

Compilers differ between Triton versions and chips, and a bad configuration may return garbage
without any error. A tile that fails, or does not fit, gives way to the next row of the table.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
import triton

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from ..rspa_core.metrics import relative_l2
from ..rspa_core.reference import reference_attention
from .launch import has_descriptors, launch
from .tiles import Tile, tile_candidates

# 16-bit rounding of inputs, weights and output stays below 1e-2; a wrong tile is off by 1.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 1e-4}

_LAYOUT = TokenLayout(grid=(5, 9, 17), length=5 * 9 * 17 + 150, video_start=70)

logger = logging.getLogger("rectified_spaattn")


class NoKernelError(RuntimeError):
    """No tile of the table works on this GPU. The message says what happened to the last one."""


# One entry per kind of call: a handful in a process. Failures are not cached by lru_cache, but
# the caller gives up on the first one.
@lru_cache(maxsize=64)
def trusted_tile(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    q_block: int,
    kv_block: int,
    rectification: str,
) -> Tile:
    """First tile of the table that gives the reference's output on `device`.

    Raises:
        NoKernelError: no tile does.
    """
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    config = SparseConfig(0.6, q_block, kv_block, rectification=rectification)
    candidates = tile_candidates(
        capability,
        properties.shared_memory_per_block_optin,
        dtype,
        triton.next_power_of_2(head_dim),
        q_block,
        kv_block,
        has_descriptors(),
    )
    logger.info("Rectified SpaAttn: compiling kernels once for %s", properties.name)
    problem = "no tile fits into its shared memory"
    for tile in candidates:
        try:
            error = _error(device, dtype, head_dim, config, tile)
        except Exception as exception:  # compiler and launch errors have no common type
            problem = f"{type(exception).__name__}: {exception}".splitlines()[0]
        else:
            if error < TOLERANCE[dtype]:
                return tile
            problem = f"{tile} differs from the reference by {error:.1e}"
        logger.warning("Rectified SpaAttn: %s is not used: %s", tile, problem)
    raise NoKernelError(f"no kernel works on {properties.name}: {problem}")


def _error(
    device: torch.device, dtype: torch.dtype, head_dim: int, config: SparseConfig, tile: Tile
) -> float:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, _LAYOUT.length, head_dim, generator=generator, device=device).to(dtype)
        for _ in range(3)
    )
    expected, _ = reference_attention(q, k, v, _LAYOUT, config)
    out, _, _ = launch(q, k, v, _LAYOUT, config, tile, keep_mask=False)
    error = relative_l2(out, expected)
    return error if error == error else float("inf")
