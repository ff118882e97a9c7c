"""Compiles all kernels of a call for one architecture without a GPU; run by test_compile.py.

    python compile_calls.py 90

prints one JSON line per kernel and rectification: the release of Triton and shared memory in bytes.
Launches are recorded, and compiled from their arguments, as a first call on a GPU does it, so it
also shows that a release reads the arguments of all launchers. It runs in a process of its own, see
compile_tiles.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget

from rectified_spaattn.benchmarks.cards.compiled import HEAD_DIM, SHARED_MEMORY, tiles
from rectified_spaattn.kernels import Launch, recorded
from rectified_spaattn.kernels.launch import launch
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout

RECTIFICATIONS = ("paper", "precise")


class AbsentGPU:
    """What Triton asks its driver while it compiles."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def variants(arch: int, rectification: str) -> Iterator[Launch]:
    """One launch per binary of a call with the node's other inputs at their defaults."""
    config = SparseConfig(0.5, rectification=rectification)
    blocks = (config.q_block, config.kv_block)
    layout = TokenLayout((3, 16, 16), 3 * 16 * 16 + 40)
    q = torch.zeros(1, 2, layout.length, HEAD_DIM, dtype=torch.bfloat16)
    with recorded() as launches:
        for keep_lse in (False, True):
            launch(q, q, q, layout, config, tiles(arch, blocks)[0], False, keep_lse=keep_lse)
    yield from {each.variant: each for each in launches}.values()


def main(arch: int) -> None:
    triton.runtime.driver.set_active(AbsentGPU(arch))
    for rectification in RECTIFICATIONS:
        for each in variants(arch, rectification):
            binary = each.kernel.warmup(grid=each.grid, **each.arguments)
            record = {
                "triton": triton.__version__,
                "kernel": each.kernel.__name__,
                "rectification": rectification,
                "shared": binary.metadata.shared,
                "limit": SHARED_MEMORY[arch],
            }
            sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("arch", type=int)
    main(options.parse_args().arch)
