"""First use of a tile on a GPU: it is trusted only after its output has matched the reference.

Compilers differ between Triton versions and chips, and a bad configuration may return garbage
without any error. A tile that fails, or does not fit, gives way to the next row of the table. With
a Triton that is new to the pack each tile is tried in a process of its own before, see trial.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, wraps
from typing import Any

import torch
import triton

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from ..rspa_core.metrics import relative_l2
from ..rspa_core.reference import reference_attention
from .compile import Launch, compiling, progress, recorded
from .devices import (
    Tile,
    has_descriptors,
    has_gluon,
    is_known,
    resolved_precision,
    tile_candidates,
)
from .launch import launch
from .trial import Trial

# 16-bit rounding of inputs, weights and output stays below 1e-2; a wrong tile is off by 1.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 1e-4}
# A value half way between two steps of int8 may go either way.
INT8_TOLERANCE = 1e-3

_LAYOUT = TokenLayout(grid=(5, 9, 17), length=5 * 9 * 17 + 150, video_start=70)

logger = logging.getLogger("rectified_spaattn")


HEADERS = {
    False: "Install gcc and Python's headers (Debian, Ubuntu: 'apt install gcc python3-dev'), "
    "then restart.",
    True: "Portable: put the folders 'include' and 'libs' of your Python version into "
    "python_embeded (python_3.x.x_include_libs.zip on the page of triton-windows). Else install "
    "Python from python.org, and 'pip install -U triton-windows', which brings its compiler. "
    "Then restart.",
}
"""The cure, by whether this is Windows."""


class NoKernelError(RuntimeError):
    """No tile of the table works on this GPU. The message says what happened to the last one."""


def compiler_problem(error: BaseException) -> str | None:
    """What to do where Triton cannot build the C code around its kernels; None for other errors.

    Triton needs a C compiler and Python's headers for that, whatever the kernel. Its error is the
    compiler's command line.
    """
    said, has_failed = "", False
    each: BaseException | None = error
    while each is not None:
        said += f"{each}\n"
        if type(each).__name__ == "CalledProcessError":  # of subprocess
            has_failed = True
            for stream in (getattr(each, "stdout", None), getattr(each, "stderr", None)):
                said += (
                    stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""
                )
        each = each.__cause__ or each.__context__
    if "Failed to find C compiler" in said:
        cause = "it finds no C compiler"
    elif "Python.h" in said:
        cause = "Python.h is missing"
    elif has_failed:
        cause = "its C compiler failed, mostly because Python's headers are missing"
    else:
        return None
    return f"Triton cannot compile: {cause}. {HEADERS[sys.platform == 'win32']}"


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
    tolerance = max(TOLERANCE[dtype], INT8_TOLERANCE) if precision == "int8" else TOLERANCE[dtype]
    call = (device, dtype, head_dim, config, has_context)
    trial = Trial(*call, gpu="{} {}.{}".format(name, *capability))

    def error(tile: Tile) -> float:
        tried = 0.0 if is_known(tile) else trial.error_of(tile)
        return error_of(tile, *call) if tried < tolerance else tried

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
    launches: list[Launch] = []
    if device.type == "cuda":
        with recorded() as launches:
            launch(*arguments)
    with compiling(launches, device, progress.get()):
        expected, _ = reference_attention(q, k, v, layout, config)
    return relative_l2(launch(*arguments)[0], expected)
