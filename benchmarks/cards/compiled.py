"""Compiles the attention kernel for an architecture as the launcher would, without a GPU.

Imported only where something is compiled: the rest of the benchmarks runs without Triton.
"""

from __future__ import annotations

from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ...kernels.attend import attend_kernel, value_width
from ...kernels.devices import Tile, has_descriptors, has_gluon, tile_candidates
from ...rspa_core.quantisation import TAIL_SCALE_GROUPS

SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes that one program may use, by architecture."""
HEAD_DIM = 128
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = (
    "q_scale", "k_scale", "v_scale", "tail_k_scale", "tail_v_scale", "tail_bias", "tail_weight",
    "rectify_scale", "k_centre", "k_radius", "lse",
)  # fmt: skip
UNUSED = {
    "paper": ("tail_k", "tail_v", "tail_k_scale", "tail_v_scale", "tail_bias", "tail_weight"),
    "precise": ("rectify_scale", "compensation"),
}


def tiles(arch: int, blocks: tuple[int, int]) -> list[Tile]:
    """What a GPU of `arch` tries with this Triton for bf16 heads and int8 products, the usual one
    first."""
    return tile_candidates(
        (arch // 10, arch % 10), SHARED_MEMORY[arch], torch.bfloat16, HEAD_DIM, *blocks,
        has_descriptors(), has_gluon(), int8=True,
    )  # fmt: skip


def compile_entry(
    arch: int,
    tile: Tile,
    blocks: tuple[int, int],
    rectification: str,
    tail_keys: int = 4,
    with_lse: bool = False,
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
    if tile.specialised:  # not every release has Gluon
        from triton.experimental.gluon._runtime import GluonASTSource

        from ...kernels.attend_hopper import attend_hopper_kernel

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
    if not with_lse:
        constants["lse"] = None
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
        from triton.experimental.gluon import language as gl

        element = gl.int8 if dtype == "i8" else gl.bfloat16
        layout = gl.NVMMASharedLayout.get_default_for([rows, columns], element)
        return f"tensordesc<{block},{layout!r}>"
    return f"tensordesc<{block}>" if tile.tma else f"*{dtype}"
