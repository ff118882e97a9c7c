"""Speed and correctness of one attention call on this GPU, at the sizes of real video models.

    python -m rectified_spaattn.benchmarks.kernels --shape wan-720p --sparsity 0.75 0.85 0.9

`--tiles 128,8,3,tma 64,8,2 128,4,2,specialised` times these launch configurations instead of the
one from the table of this GPU: keys per step, warps, stages and, in any order, `tma` (tensor
descriptors), `int8` products, `specialised` warps, most registers.

Dense attention (cuDNN and flash of torch's SDPA) and Rectified SpaAttn run side by side on the
same q, k, v. A time is printed only after the output has matched the fp32 reference; the error
against dense attention is printed next to it. The share of each stage comes from the CUDA
profiler of torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ..kernels.launch import launch
from ..kernels.tiles import Tile
from ..rspa_core import SparseConfig, TokenLayout, metrics, rectified_attention
from ..rspa_core.config import TAIL_KEYS
from .attention_call import SHAPES, TOLERANCE, Shape, print_stages, sdpa
from .synthetic import KINDS, synthetic_qkv
from .timing import measure_interleaved

CHECKED_HEADS = 4


def main() -> None:
    arguments = _parse()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU; make demo runs on a CPU too")
    device = torch.device("cuda")
    dtype = getattr(torch, arguments.dtype)
    records = []
    for name in arguments.shape:
        shape = SHAPES[name]
        q, k, v = synthetic_qkv(
            arguments.kind, shape.grid, shape.heads, 128, shape.context, dtype, device
        )
        records += _shape(name, shape, q, k, v, arguments)
        del q, k, v
        torch.cuda.empty_cache()
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["wan-720p"])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.75, 0.85, 0.9])
    parser.add_argument("--blocks", nargs="+", default=["128x128"], help="q_block x kv_block")
    parser.add_argument("--rectification", nargs="+", default=["paper", "precise", "none"])
    parser.add_argument(
        "--precision", nargs="+", choices=("16-bit", "int8", "auto"), default=["16-bit"]
    )
    parser.add_argument(
        "--tail-keys",
        type=int,
        choices=TAIL_KEYS,
        default=1,
        help="of precise, for a left-out block",
    )
    parser.add_argument("--kind", choices=KINDS, default="mixed", help="kind of attention head")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--tiles", nargs="+", type=_tile, default=[None])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", action="store_true", help="also print the time per kernel")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _tile(text: str) -> Tile:
    keys, warps, stages, *rest = text.split(",")
    registers = sum(int(part) for part in rest if part.isdigit())
    return Tile(
        int(keys), int(warps), int(stages), "tma" in rest, registers, "int8" in rest,
        "specialised" in rest,
    )  # fmt: skip


def _shape(
    name: str, shape: Shape, q: Tensor, k: Tensor, v: Tensor, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """Check, time and print every variant at one shape."""
    exact = sdpa(SDPBackend.CUDNN_ATTENTION)(q, k, v)
    calls: dict[str, Callable[[], object]] = {
        "dense cudnn": lambda: sdpa(SDPBackend.CUDNN_ATTENTION)(q, k, v),
        "dense flash": lambda: sdpa(SDPBackend.FLASH_ATTENTION)(q, k, v),
    }
    rows: dict[str, dict[str, float]] = {}
    for blocks in arguments.blocks:
        q_block, kv_block = map(int, blocks.split("x"))
        for rectification in arguments.rectification:
            for sparsity, precision, tile in product(
                arguments.sparsity, arguments.precision, arguments.tiles
            ):
                if tile is not None:
                    precision = "int8" if tile.int8 else "16-bit"
                config = SparseConfig(
                    sparsity, q_block, kv_block, rectification=rectification, precision=precision,
                    tail_keys=arguments.tail_keys if rectification == "precise" else 1,
                )  # fmt: skip
                label = f"{rectification} {blocks} {sparsity:g} {precision}"
                if config.tail_keys > 1:
                    label += f" {config.tail_keys} keys"
                if tile is not None:
                    label += f" {','.join(map(str, tile))}"
                call = _sparse_call(q, k, v, shape.layout, config, tile)
                rows[label] = _check(q, k, v, exact, shape.layout, config, call)
                if rows[label]["correct"]:
                    calls[label] = call
                else:
                    print(f"{label}: WRONG, not timed: {rows[label]}", flush=True)
    timings = measure_interleaved(calls, q.device, rounds=arguments.rounds)
    dense = timings["dense cudnn"].median
    tokens = f"{shape.layout.length:,} tokens, {shape.heads} heads, {arguments.dtype}"
    print(f"\n{name}: {tokens}, heads: {arguments.kind}, {torch.cuda.get_device_name()}")
    print(f"{'variant':40} {'ms':>8} {'density':>8} {'x dense':>8} {'/ideal':>7} {'rel L2':>8}")
    records = []
    for label, timing in timings.items():
        row = rows.get(label, {})
        density = row.get("density", 1.0)
        ideal = dense * density
        print(
            f"{label:40} {timing.median * 1e3:8.2f} {density:8.3f} {dense / timing.median:8.2f} "
            f"{timing.median / ideal:7.2f} {row.get('error', 0.0):8.4f}"
            f"   vs reference {row.get('difference', 0.0):.1e}, +{row.get('mib', 0):.0f} MiB",
            flush=True,
        )
        records.append({"shape": name, "variant": label, "ms": timing.median * 1e3, **row})
    if arguments.stages:
        for label in list(calls)[2:]:
            print_stages(label, calls[label])
    return records


def _sparse_call(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig, tile: Tile | None
) -> Callable[[], Tensor]:
    if tile is None:
        return lambda: rectified_attention(q, k, v, layout, config, backend="triton")
    return lambda: launch(q, k, v, layout, config, tile, keep_mask=False)[0]


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    exact: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    call: Callable[[], Tensor],
) -> dict[str, float]:
    """Compare with the reference on some heads, and with dense attention on all."""
    heads = slice(0, min(CHECKED_HEADS, q.shape[1]))
    _, stats = rectified_attention(q, k, v, layout, config, backend="triton", return_stats=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = call()
    mib = (torch.cuda.max_memory_allocated() - before - out.nbytes) / 2**20
    expected, reference = rectified_attention(
        q[:, heads], k[:, heads], v[:, heads], layout, config,
        backend="reference", return_stats=True,
    )  # fmt: skip
    difference = metrics.relative_l2(out[:, heads], expected)
    flipped = (stats.block_mask()[:, heads] != reference.block_mask()).float().mean()
    return {
        "density": float(stats.density),
        "error": metrics.relative_l2(out, exact),
        "difference": difference,
        "flipped_blocks": float(flipped),
        "mib": mib,
        "correct": difference < TOLERANCE[q.dtype] and bool(out.isfinite().all()),
    }


if __name__ == "__main__":
    main()
