"""Machine code of an attention kernel: its loops, and what they cost on a graphics card.

A multiprocessor of the chips of graphics cards (8.6, 8.9, 12.0) has four quarters, each of which
starts one instruction of a warp per cycle (`issue`) and hands it to a pipe. Cycles that it takes
there, from NVIDIA's architecture papers (GA102, Ada, RTX Blackwell: products per second) and the
table of arithmetic throughput in the CUDA C++ Programming Guide:

    tensor   a product of 16 x 8 numbers, 16-bit or 8-bit: 16; with fp32 sums: 32
    shared   32 bytes of shared memory or of the cache in front of it: 1
    special  exponentials, reciprocals: 8
    float    fp32, or a pair of fp16: 1
    integer  integers, compares, maxima, conversions: 2

Pipes overlap at best: the busiest bounds the time from below. All is given for 16 x 64 scores of
one warp and their weighted values, heads of 128 channels, whatever the tile.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PIPES = ("tensor", "shared", "special", "float", "integer", "issue")
MULTIPLY_ADDS = {"16816": 16 * 8 * 16, "16832": 16 * 8 * 32}
"""Of one product of a warp, by the shape in its name."""
UNIT_MULTIPLY_ADDS = 2 * 16 * 64 * 128
LEAST_EXPONENTIALS = 8
"""Of a pass of a loop that is a softmax."""
FLOAT = {"FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2", "FADD2", "FMUL2", "FFMA2"}
SPILLS = {"LDL", "STL"}
MEMORY = {"LDSM", "LDS", "STS", "LDGSTS", "LDG", "STG", "SHFL"} | SPILLS
CONTROL = {"BRA", "BAR", "DEPBAR", "LDGDEPBAR", "NOP", "WARPSYNC", "BSYNC", "BSSY", "EXIT"}


class Instruction(NamedTuple):
    """One line of a listing: its address, its name with all suffixes, where it jumps to."""

    address: int
    name: str
    target: int | None

    @property
    def kind(self) -> str:
        return self.name.split(".")[0]


Loop = list[Instruction]


@dataclass(frozen=True)
class LoopCost:
    """One loop: cycles by pipe for 16 x 64 scores, and instructions of a pass that spill."""

    cycles: dict[str, float]
    spills: int

    @property
    def bound(self) -> float:
        """Cycles of the busiest pipe."""
        return max(self.cycles.values())

    @staticmethod
    def of(loop: Loop) -> LoopCost:
        """Count a loop.

        Raises:
            ValueError: it has products whose shape is not in the table.
        """
        taken = Counter(issue=len(loop))
        for each in loop:
            pipe, cycles = pipe_of(each)
            taken[pipe] += cycles
        units = sum(map(multiply_adds, loop)) / UNIT_MULTIPLY_ADDS
        return LoopCost({pipe: taken[pipe] / units for pipe in PIPES}, spills_in(loop))


def loops_of(cubin: bytes) -> list[Loop]:
    """The loops of the attention in a compiled kernel, by the cuobjdump that Triton brings."""
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    assert triton.origin is not None
    program = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(program), "-sass", str(file)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return attention_loops(listing)


def attention_loops(listing: str) -> list[Loop]:
    """Innermost loops with products and exponentials, by address.

    Loops around loops only hand out the work: specialised warps wait in one for their part. What
    jumps back into the middle of a loop is its cold code, moved to the end of the program.
    """
    code = [
        _instruction(int(address, 16), text)
        for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    ]
    found = {}
    for jump in code:
        if jump.target is not None and jump.target < jump.address:
            loop = [each for each in code if jump.target <= each.address <= jump.address]
            exponentials = sum(each.name.startswith("MUFU.EX2") for each in loop)
            if exponentials >= LEAST_EXPONENTIALS and any("MMA" in each.kind for each in loop):
                found[jump.target, jump.address] = loop
    return [
        loop
        for (start, end), loop in sorted(found.items())
        if not any(
            (start <= s and e <= end and (s, e) != (start, end)) or s < start <= e < end
            for s, e in found
        )
    ]


def _instruction(address: int, text: str) -> Instruction:
    name = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]
    jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
    return Instruction(address, name, int(jump[1], 16) if jump else None)


def spills_in(loop: Loop) -> int:
    """Instructions that move registers to memory and back."""
    return sum(each.kind in SPILLS for each in loop)


def multiply_adds(each: Instruction) -> int:
    """Of a product, from the shape in its name; 0 of anything else."""
    if not each.kind.endswith("MMA"):
        return 0
    shapes = MULTIPLY_ADDS.keys() & set(each.name.split("."))
    if not shapes:
        raise ValueError(f"{each.name}: no rate is known for products of this shape")
    return MULTIPLY_ADDS[shapes.pop()]


def pipe_of(each: Instruction) -> tuple[str, int]:
    """The pipe that an instruction takes beside its issue, and for how many cycles."""
    if each.kind.endswith("MMA"):
        return "tensor", 32 if ".F32" in each.name else 16
    if each.kind == "MUFU":
        return "special", 8
    if each.kind in FLOAT:
        return "float", 1
    if each.kind in MEMORY:
        # LDSM ends in its number of 128-byte matrices, wide ones in the bits of each of 32 threads.
        last = each.name.split(".")[-1]
        wide = int(last) // 8 if last in ("64", "128") else 4
        return "shared", 4 * int(last) if each.kind == "LDSM" else wide
    if each.kind in CONTROL or each.kind.startswith("U"):
        return "issue", 0
    return "integer", 2
