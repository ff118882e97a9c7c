"""Compiles the tile table of one architecture without a GPU; run by test_compile.py.

    python compile_tiles.py 90 [--first 128] [--save DIR]

prints one JSON line per (tile, blocks, rectification): the release of Triton, shared memory in
bytes, registers per thread, bytes of memory that a thread parks others in, how many instructions
inside the loops do so or read them back, and how many instructions of a loop at most copy an
address from the registers of each thread; with --save the machine code goes into a folder. It runs
in a process of its own, because the other tests turn Triton's interpreter on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import triton

from rectified_spaattn.benchmarks.cards.compiled import (
    BINARIES,
    SHARED_MEMORY,
    compile_entry,
    tiles,
)
from rectified_spaattn.benchmarks.cards.machine_code import Loop, loops_of, spills_in
from rectified_spaattn.kernels.devices import Tile, resolved_precision

BLOCKS = ((128, 128), (128, 64), (64, 64))
RECTIFICATIONS = ("paper", "precise")


def entries(arch: int, first: int | None = None) -> Iterator[tuple[Tile, tuple[int, int], str]]:
    """Every (tile, blocks, rectification) that a GPU of `arch` may be given for bf16 heads.

    With `first`, a block size, only the one that a GPU gets for it with the node's other inputs at
    their defaults, unless a check fails: the first tile of its precision, for "precise".
    """
    if first is not None:
        blocks = (first, first)
        is_int8 = resolved_precision("auto", divmod(arch, 10)) == "int8"
        tile = next(tile for tile in tiles(arch, blocks) if tile.int8 == is_int8)
        yield tile, blocks, "precise"
        return
    for blocks in BLOCKS:
        for tile in tiles(arch, blocks):
            for rectification in RECTIFICATIONS:
                yield tile, blocks, rectification


def registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of memory that each thread parks others in."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [BINARIES / "cuobjdump", "--dump-resource-usage", file]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", report)[1]), int(re.search(r"STACK:(\d+)", report)[1])


def copies_in(loop: Loop) -> int:
    """Instructions that copy a register of each thread to one that a warp shares, as addresses of
    products must be."""
    return sum(each.kind == "R2UR" for each in loop)


def main(arch: int, first: int | None, folder: Path | None) -> None:
    for tile, blocks, rectification in entries(arch, first):
        kernel = compile_entry(arch, tile, blocks, rectification)
        registers, parked = registers_and_spills(kernel.asm["cubin"])
        loops = loops_of(kernel.asm["cubin"])
        record = {
            "triton": triton.__version__,
            "tile": tile,
            "blocks": blocks,
            "rectification": rectification,
            "shared": kernel.metadata.shared,
            "limit": SHARED_MEMORY[arch],
            "registers": registers,
            "parked": parked,
            "spills_in_loops": sum(map(spills_in, loops)),
            "copies_in_a_loop": max(map(copies_in, loops)),
        }
        sys.stdout.write(json.dumps(record) + "\n")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            words = [f"sm{arch}", f"{blocks[0]}x{blocks[1]}", rectification, *map(str, tile[:3])]
            words += [
                name for name in ("tma", "int8", "specialised", "half_sums") if getattr(tile, name)
            ]
            name = "-".join(words)
            (folder / f"{name}.cubin").write_bytes(kernel.asm["cubin"])


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("arch", type=int)
    options.add_argument("--first", type=int)
    options.add_argument("--save", type=Path)
    given = options.parse_args()
    main(given.arch, given.first, given.save)
