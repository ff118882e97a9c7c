"""Run a module on a Hopper GPU with the kernels that another GPU would get.

    python tools/as_gpu.py 89 -m rectified_spaattn.benchmarks.calls --only precise --density 0.15
    python tools/as_gpu.py 86 script.py arguments

Triton generates the PTX of sm_80, 86 or 89 (products by mma.sync, copies by cp.async), and ptxas
assembles it for the GPU that is there. Compute capability and shared memory are those of the other
GPU, and so are the tiles and what "auto" chooses.

Good for correctness of that code on a real GPU, and for ratios to other kernels that multiply by
mma.sync in the same run. The milliseconds are not those of a graphics card: a Hopper GPU multiplies
faster beside the same scalar units, and gains nothing from sums in fp16.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376}
"""Bytes one program may use."""


class OtherLimits:
    """Triton's driver utilities with the shared memory of another GPU."""

    def __init__(self, utilities: Any, shared_memory: int) -> None:
        self._utilities = utilities
        self._shared_memory = shared_memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._utilities, name)

    def get_device_properties(self, device: int) -> dict[str, int]:
        properties = dict(self._utilities.get_device_properties(device))
        return properties | {"max_shared_mem": self._shared_memory}


def pretend(capability: int) -> None:
    """For the rest of this process the GPU is one of compute capability `capability` / 10."""
    import torch
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    major, minor = torch.cuda.get_device_capability()
    backend: Any = backends["nvidia"].compiler  # not always the class of the module of that name
    assemble = backend.make_cubin

    def assemble_for_this_gpu(self: Any, source: Any, metadata: Any, options: Any, _: int) -> Any:
        return assemble(self, source, metadata, options, 10 * major + minor)

    driver = triton.runtime.driver.active
    backend.make_cubin = assemble_for_this_gpu
    driver.get_current_target = lambda: GPUTarget("cuda", capability, 32)
    driver.utils = OtherLimits(driver.utils, SHARED_MEMORY[capability])
    torch.cuda.get_device_capability = lambda *_, **__: divmod(capability, 10)


def main(words: list[str]) -> None:
    """Run what the command line names.

    Raises:
        SystemExit: the capability is not one of `SHARED_MEMORY`, or there is nothing to run.
    """
    known = {str(capability) for capability in SHARED_MEMORY}
    if len(words) < 2 or words[0] not in known or (words[1] == "-m" and len(words) < 3):
        raise SystemExit(f"usage: as_gpu.py {{{','.join(sorted(known))}}} (-m MODULE | SCRIPT) ...")
    pretend(int(words[0]))
    if words[1] == "-m":
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
