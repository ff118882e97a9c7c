"""Compiles the tile table of one architecture without a GPU; run by test_compile.py.

    python compile_tiles.py 90 [--first] [--save DIR]

prints one JSON line per (tile, blocks, rectification): shared memory in bytes, registers per
thread, bytes spilled, and how many instructions of that are inside the loops; with --save the
machine code goes into a folder. It runs in a process of its own, because the other tests turn
Triton's interpreter on. ptxas is the one that Triton brings.
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

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from rectified_spaattn.kernels.attend import attend_kernel, value_width
from rectified_spaattn.kernels.attend_hopper import attend_hopper_kernel
from rectified_spaattn.kernels.devices import Tile, tile_candidates
from rectified_spaattn.rspa_core.quantisation import TAIL_SCALE_GROUPS

SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
HEAD_DIM = 128
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
BLOCKS = ((128, 128), (128, 64), (64, 64))
RECTIFICATIONS = ("paper", "precise")
FLOATS = (
    "q_scale", "k_scale", "v_scale", "tail_k_scale", "tail_v_scale", "tail_bias", "tail_weight",
    "rectify_scale", "k_centre", "k_radius",
)  # fmt: skip
UNUSED = {
    "paper": ("tail_k", "tail_v", "tail_k_scale", "tail_v_scale", "tail_bias", "tail_weight"),
    "precise": ("rectify_scale", "compensation"),
}


def entries(arch: int, only_first: bool = False) -> Iterator[tuple[Tile, tuple[int, int], str]]:
    """Every (tile, blocks, rectification) that a GPU of `arch` may be given for bf16 heads.

    With `only_first` those that a GPU gets unless a check fails: the first tile with int8 scores
    and the first without, of each pair of blocks.
    """
    for blocks in BLOCKS:
        tiles = tile_candidates(
            (arch // 10, arch % 10), SHARED_MEMORY[arch], torch.bfloat16, HEAD_DIM, *blocks,
            has_descriptors=True, has_gluon=True, int8=True,
        )  # fmt: skip
        if only_first:
            tiles = [next(tile for tile in tiles if tile.int8 == int8) for int8 in (True, False)]
        for tile in tiles:
            for rectification in RECTIFICATIONS:
                yield tile, blocks, rectification


def compile_entry(
    arch: int, tile: Tile, blocks: tuple[int, int], rectification: str, tail_keys: int = 4
) -> CompiledKernel:
    """Compile as the launcher would: aligned pointers, the last stride 1."""
    q_block, kv_block = blocks
    constants: dict[str, object] = {
        "stride_d": 1,
        "D": HEAD_DIM,
        "DP": HEAD_DIM,
        "Q_BLOCK": q_block,
        "KV_BLOCK": kv_block,
        "TILE_N": tile.tile_n,
        "TAIL_KEYS": tail_keys,
        "SCALE_GROUPS": TAIL_SCALE_GROUPS,
        "INT8": tile.int8,
        "RECTIFICATION": rectification,
    }
    options = {"num_warps": tile.num_warps}
    if tile.specialised:
        kernel, make_source = attend_hopper_kernel, GluonASTSource
        constants["STAGES"] = tile.num_stages
    else:
        kernel, make_source = attend_kernel, ASTSource
        constants |= {
            "TAIL_N": tile.tail_n,
            "TMA": tile.tma,
            "HALF": tile.half_sums,
            "WIDTH": value_width(HEAD_DIM, q_block, tile),
            "PRECISION": "tf32",
        }
        options["num_stages"] = tile.num_stages
    if tile.max_registers:
        options["maxnreg"] = tile.max_registers
    constants |= dict.fromkeys(UNUSED[rectification])
    if not tile.int8:
        constants |= dict.fromkeys(("q_scale", "k_scale", "tail_k_scale"))
    if not tile.half_sums:
        constants |= dict.fromkeys(("v_scale", "tail_v_scale"))
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = dict.fromkeys(FLOATS, "*fp32") | {"scale": "fp32", "out": "*bf16"}
    types |= {"compensation": "*bf16", "q": "*i8" if tile.int8 else "*bf16"}
    for name in ("packed_k", "packed_v", "tail_k", "tail_v"):
        dtype = "bf16"
        if name.endswith("k") and tile.int8:
            dtype = "i8"
        elif name.endswith("v") and tile.half_sums:
            dtype = "fp16"
        rows = tile.tail_n if name.startswith("tail") else tile.tile_n
        columns = HEAD_DIM if name.endswith("k") else value_width(HEAD_DIM, q_block, tile)
        types[name] = tile_type(dtype, rows, columns, tile)
    types |= dict.fromkeys(("q_source", "kv_indices", "list_lengths", "ragged_kept"), "*i32")
    signature = {}
    attributes = {}
    for position, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        if signature[name].startswith("*") or name.startswith("stride"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = make_source(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def tile_type(dtype: str, rows: int, columns: int, tile: Tile) -> str:
    """How a tensor that is read in tiles appears in a kernel's signature."""
    block = f"{dtype}[{rows}, {columns}]"
    if tile.specialised:
        element = gl.int8 if dtype == "i8" else gl.bfloat16
        layout = gl.NVMMASharedLayout.get_default_for([rows, columns], element)
        return f"tensordesc<{block},{layout!r}>"
    return f"tensordesc<{block}>" if tile.tma else f"*{dtype}"


def registers_and_spills(ptx: str, arch: int) -> tuple[int, int]:
    """Registers per thread, and bytes of spill stores and loads, as ptxas reports them."""
    newest = BINARIES / "ptxas-blackwell"
    ptxas = newest if arch >= 100 and newest.exists() else BINARIES / "ptxas"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx)
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        command = [ptxas, "-v", f"--gpu-name={name}", source, "-o", source.with_suffix(".cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    return int(re.search(r"Used (\d+) registers", report)[1]), int(stores) + int(loads)


def spills_in_loops(cubin: bytes) -> int:
    """Instructions of local memory inside the innermost loops of the attention."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [BINARIES / "cuobjdump", "-sass", file]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [
        (int(address, 16), text)
        for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    ]
    loops = []
    for end, text in code:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < end:
            start = int(jump[1], 16)
            body = [line for address, line in code if start <= address <= end]
            exponentials = sum("MUFU.EX2" in line for line in body)
            if exponentials >= 8 and any("MMA" in line for line in body):
                loops.append((start, end, body))
    # Loops around loops only hand out the work: specialised warps wait in one for their part. What
    # jumps back into the middle of a loop is its cold code, moved to the end of the program.
    innermost = [
        body
        for start, end, body in loops
        if not any(
            (start <= s and e <= end and (s, e) != (start, end)) or s < start <= e < end
            for s, e, _ in loops
        )
    ]
    spill = re.compile(r"\b(LDL|STL)\b")
    return sum(bool(spill.search(line)) for body in innermost for line in body)


def main(arch: int, only_first: bool, folder: Path | None) -> None:
    for tile, blocks, rectification in entries(arch, only_first):
        kernel = compile_entry(arch, tile, blocks, rectification)
        registers, spilled = registers_and_spills(kernel.asm["ptx"], arch)
        record = {
            "tile": tile,
            "blocks": blocks,
            "rectification": rectification,
            "shared": kernel.metadata.shared,
            "limit": SHARED_MEMORY[arch],
            "registers": registers,
            "spilled": spilled,
            "spills_in_loops": spills_in_loops(kernel.asm["cubin"]) if spilled else 0,
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
    options.add_argument("--first", action="store_true")
    options.add_argument("--save", type=Path)
    given = options.parse_args()
    main(given.arch, given.first, given.save)
