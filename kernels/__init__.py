"""The method in Triton, each kernel beside its launcher; here how kernels are launched.

Launchers call `run`. While `recorded` is open in their context, launches are written down instead,
and nothing reaches the GPU; `compiling` then compiles what was written down in several threads, so
that a first call waits for the slowest kernel only. Compilers work outside Python's lock. The
binaries stay with the kernels, and on disk, as usual. Nothing here needs Triton.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

MAX_THREADS = 6
"""More only delay the longest: a kernel is parsed in Python, one thread at a time."""

logger = logging.getLogger("rectified_spaattn")


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and arguments."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def variant(self) -> tuple[Any, ...]:
        """Equal for launches that share a binary: the kernel, its constants, types of the rest."""
        constants = {param.name for param in self.kernel.params if param.is_constexpr}
        described = [
            (name, value if name in constants else _type_of(value))
            for name, value in sorted(self.arguments.items())
        ]
        return (self.kernel, *described)

    def compile(self, device: torch.device) -> None:
        """Compile without launching, for the GPU `device`."""
        with torch.cuda.device(device):
            binary = self.kernel.warmup(grid=self.grid, **self.arguments)
            # Asking for it compiles the C code of the launcher, and loads the binary.
            _ = binary.run


def _type_of(value: Any) -> Any:
    """What of an argument decides about the binary: of tensors dtype and alignment, of numbers the
    type (no kernel is specialised on their values)."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, (bool, str)) or value is None:
        return value
    if hasattr(value, "block_shape"):  # a tensor descriptor
        return value.base.dtype, tuple(value.block_shape)
    return type(value).__name__


_launches: ContextVar[list[Launch] | None] = ContextVar("launches", default=None)
progress: ContextVar[Callable[[int, int], None] | None] = ContextVar("progress", default=None)
"""Hears, during a first call of this context, how many variants are ready, and of how many."""


def run(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """`kernel[grid](**arguments)`, or a note of it while `recorded` is open."""
    launches = _launches.get()
    if launches is None:
        kernel[grid](**arguments)
    else:
        launches.append(Launch(kernel, grid, arguments))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """While it is open in this context nothing is launched; yields the list of what would be."""
    launches: list[Launch] = []
    token = _launches.set(launches)
    try:
        yield launches
    finally:
        _launches.reset(token)


@contextmanager
def compiling(
    launches: list[Launch],
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Iterator[int]:
    """Compile every variant among the launches, beside what is done in the meantime.

    A variant that does not compile is left to its launch, which says why.

    Args:
        launches: see `recorded`.
        device: GPU they are for.
        on_progress: called in this thread with the number of variants that are ready and of all,
            at the beginning and once it waits for them.
        threads: at a time; None for one per processor, up to `MAX_THREADS`.

    Yields:
        The number of variants.
    """
    # The attention comes last in a call, and compiles longest.
    variants = list({launch.variant: launch for launch in reversed(launches)}.values())
    count = threads or min(MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(count, thread_name_prefix="compile") as pool:
        futures = [pool.submit(launch.compile, device) for launch in variants]
        if on_progress is not None and variants:
            on_progress(0, len(variants))
        yield len(variants)
        for done, future in enumerate(as_completed(futures), 1):
            if (problem := future.exception()) is not None:
                logger.debug("Rectified SpaAttn: left to its launch: %r", problem)
            if on_progress is not None:
                on_progress(done, len(variants))
