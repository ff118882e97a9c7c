"""First use of a tile on a GPU: it is trusted only after its output has matched the reference.

Compilers differ between Triton versions and chips, and a bad configuration may return garbage
without any error. A tile that fails, or does not fit, gives way to the next row of the table. With
a Triton that is new to the pack each tile runs in a process of its own first, see trial.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
import triton

from ..rspa_core.config import SparseConfig
from .compile import NoKernelError, compiler_problem
from .devices import (
    Tile,
    has_descriptors,
    has_gluon,
    is_known,
    resolved_precision,
    tile_candidates,
)
from .trial import Trial, error_of

# What rounding inputs, weights and output to the dtype stays below; a wrong tile is off by 1.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 1e-4}
# A value half way between two steps of int8 may go either way.
INT8_TOLERANCE = 1e-3

logger = logging.getLogger("rectified_spaattn")


def explained(function: Callable[..., Tile]) -> Callable[..., Tile]:
    """The function, with errors of Triton's C compiler as a `NoKernelError` that says the cure."""

    @wraps(function)
    def call(*args: Any) -> Tile:
        try:
            return function(*args)
        except NoKernelError:
            raise
        except Exception as error:  # Triton compiles C code before the first kernel, too
            problem = compiler_problem(error)
            if problem is None:
                raise
            raise NoKernelError(problem) from error

    return call


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
@explained
def trusted_tile(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    config: SparseConfig,
    has_context: bool = True,
    with_lse: bool = False,
) -> Tile:
    """First tile of the table that gives the reference's output on `device`.

    Args:
        device, dtype, head_dim: of q, k and v.
        config: see `checked_config`.
        has_context: whether there are tokens beside the video, which have kernels of their own.
        with_lse: whether the logarithms of the sums of weights are asked for, too.

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
    tolerance = max(TOLERANCE[dtype], INT8_TOLERANCE) if precision == "int8" else TOLERANCE[dtype]
    call = (device, dtype, head_dim, config, has_context)
    trial = Trial(*call, gpu="{} {}.{}".format(name, *capability))

    def error(tile: Tile) -> float:
        tried = 0.0 if is_known(tile) else trial.error_of(tile)
        return error_of(tile, *call, with_lse) if tried < tolerance else tried

    return first_correct(candidates, error, tolerance, name)


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
            cure = compiler_problem(exception)
            if cure is not None:  # no tile has anything to do with it
                raise NoKernelError(cure) from exception
            problem = f"{type(exception).__name__}: {exception}".splitlines()[0]
        else:
            if difference < tolerance:  # also false for NaN
                return tile
            problem = f"{tile} differs from the reference by {difference:.1e}"
        logger.warning("Rectified SpaAttn: %s is not used: %s", tile, problem)
    raise NoKernelError(f"no kernel works on {gpu}: {problem}")
