"""`make demo-attention`: dense, sparse and rectified attention side by side, on synthetic heads.

Builds attention heads that behave like those of a video model (see `synthetic`), runs full
attention and the sparse modes on the same q, k, v, and prints time, density and error. The times
are taken in turn, call by call, and the median is shown. Runs on the GPU when there is one.
"""

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..rspa_core import (
    AttentionStats,
    BackendStatus,
    SparseConfig,
    TokenLayout,
    backend_status,
    dense_attention,
    metrics,
    rectified_attention,
    token_order,
)
from .demo_figure import save_figure
from .synthetic import HEAD_KINDS, KINDS, head_kind_of, synthetic_qkv
from .timing import Timing, measure_interleaved

DENSE = "dense"
HEAD_DIM = 128
CPU_GRIDS = ((5, 20, 30), (9, 24, 40))
GPU_GRIDS = ((21, 30, 52), (21, 45, 80))
TIMING_BUDGET_S = 15.0
MAX_ROUNDS = {"cpu": 3, "cuda": 15}


@dataclass
class SizeResult:
    """What was measured at one video size.

    Attributes:
        grid: latent (T, H, W).
        timings: candidate name to `Timing`; the first is `DENSE`.
        density: candidate name to the kept share of block pairs that was really computed.
        error: candidate name to the relative L2 error against the dense call.
        kind_error: candidate name to {head kind: relative L2 error over the heads of that kind}.
        block_error: candidate name to the error of each q-block of the content head, in token
            order, [NQ] fp32 on the CPU.
        block_mask: critical set of that head for mode "paper", bool [NQ, NK] on the CPU.
    """

    grid: tuple[int, int, int]
    timings: dict[str, Timing] = field(default_factory=dict)
    density: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    kind_error: dict[str, dict[str, float]] = field(default_factory=dict)
    block_error: dict[str, Tensor] = field(default_factory=dict)
    block_mask: Tensor | None = None


def candidates(sparsity: float) -> dict[str, SparseConfig]:
    """Name to configuration of the sparse modes that the demo compares."""
    modes = [("none", 128), ("paper", 128), ("precise", 128), ("precise", 64)]
    return {
        f"{mode} {block}": SparseConfig(
            sparsity=sparsity, rectification=mode, q_block=block, kv_block=block
        )
        for mode, block in modes
    }


def video_name(grid: tuple[int, int, int]) -> str:
    """Pixels and frames of a Wan clip with this latent grid (patch 2, VAE 8 x 8 x 4)."""
    frames, height, width = grid
    return f"{width * 16} x {height * 16}, {(frames - 1) * 4 + 1} frames"


def measure_size(
    grid: tuple[int, int, int],
    heads: int,
    configs: dict[str, SparseConfig],
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
    kind: str = "mixed",
    max_rounds: int | None = None,
) -> SizeResult:
    """Run dense attention and every configuration on one set of inputs.

    Args:
        grid: latent (T, H, W).
        heads: number of heads.
        configs: name to configuration.
        device, dtype: of the inputs.
        backend: "triton" or "reference".
        kind: what the heads look at, one of `synthetic.KINDS`.
        max_rounds: timed rounds at most; fewer where the time budget says so.
    """
    result = SizeResult(grid)
    layout = TokenLayout(grid, math.prod(grid))
    compiled = backend == "triton"
    rounds_limit = max_rounds or MAX_ROUNDS.get(device.type, MAX_ROUNDS["cpu"])
    title = video_name(grid)
    passes = 1 + compiled + rounds_limit
    with tqdm(total=1 + (1 + len(configs)) * passes, leave=False) as bar:
        bar.set_description(f"{title}: inputs")
        q, k, v = synthetic_qkv(kind, grid, heads, HEAD_DIM, dtype=dtype, device=device)
        bar.update()

        # The untimed first calls give the errors and warm everything up.
        bar.set_description(f"{title}: first calls, {'compiling' if compiled else 'errors'}")
        calls: dict[str, Callable[[], object]] = {
            DENSE: functools.partial(dense_attention, q, k, v)
        }
        started = time.perf_counter()
        dense = dense_attention(q, k, v)
        bar.update()
        for name, config in configs.items():
            call = functools.partial(rectified_attention, q, k, v, layout, config, backend=backend)
            out, stats = call(return_stats=True)
            _record_errors(result, name, config, out, dense, stats, kind)
            del out, stats
            calls[name] = call
            bar.update()
        del dense
        first_round = time.perf_counter() - started
        if compiled:  # the first round compiled; the dense call is the dearest of a round
            again = measure_interleaved({DENSE: calls[DENSE]}, device, rounds=1)
            first_round = again[DENSE].median * len(calls)
        rounds = max(1, min(rounds_limit, int(TIMING_BUDGET_S / first_round)))
        bar.total -= (rounds_limit - rounds) * len(calls)
        bar.set_description(f"{title}: timing")
        result.timings = measure_interleaved(
            calls,
            device,
            rounds=rounds,
            # Without statistics a kernel may be compiled anew; the reference has nothing to warm.
            warm_up=int(compiled),
            after_call=lambda _: bar.update(),
        )
    return result


def _record_errors(
    result: SizeResult,
    name: str,
    config: SparseConfig,
    out: Tensor,
    dense: Tensor,
    stats: AttentionStats,
    kind: str,
) -> None:
    """Store the errors of `out` against `dense`, both [1, H, N, D], and what was kept."""
    heads = [head_kind_of(kind, head) for head in range(out.shape[1])]
    result.density[name] = float(stats.density)
    result.error[name] = metrics.relative_l2(out, dense)
    result.kind_error[name] = {
        each: metrics.relative_l2(out[:, chosen], dense[:, chosen])
        for each in HEAD_KINDS
        if (chosen := [head for head, of in enumerate(heads) if of == each])
    }
    shown = heads.index("content") if "content" in heads else 0
    order = token_order(result.grid, config.order).to(out.device)
    ordered, reference = (x[0, :, order].float().transpose(0, 1) for x in (out, dense))
    blocks = zip(ordered.split(config.q_block), reference.split(config.q_block), strict=True)
    result.block_error[name] = torch.stack(
        [(part - whole).norm() / whole.norm() for part, whole in blocks]
    ).cpu()
    if config.rectification == "paper":
        result.block_mask = stats.block_mask()[0, shown].cpu()


def table(result: SizeResult) -> str:
    """The printed table of one video size."""
    kinds = list(next(iter(result.kind_error.values())))
    header = ["", "ms", "speed-up", "density", "rel. L2", *kinds]
    dense = result.timings[DENSE].median
    rows = [header]
    for name, timing in result.timings.items():
        row = [name, f"{timing.median * 1e3:.1f}", f"{dense / timing.median:.2f}x"]
        if name == DENSE:
            row += ["1.000", "0", *["0"] * len(kinds)]
        else:
            row += [f"{result.density[name]:.3f}", f"{result.error[name]:.4f}"]
            row += [f"{result.kind_error[name][kind]:.4f}" for kind in kinds]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _default_heads(device: torch.device) -> int:
    """The 40 heads of Wan 14B where they fit, a multiple of the five kinds everywhere."""
    if device.type != "cuda":
        return 5
    return 40 if torch.cuda.get_device_properties(device).total_memory > 20 * 2**30 else 10


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _choose_backend(status: BackendStatus) -> str:
    """Say which backend runs and return its name."""
    if status.name is not None:
        print(f"backend   {status.name} ({status.reason})")
        return status.name
    print(f"backend   reference, because: {status.reason}")
    return "reference"


def _parse_grid(text: str) -> tuple[int, int, int]:
    try:
        frames, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not T x H x W, such as 13x24x40") from None
    return frames, height, width


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rectified_spaattn.benchmarks.demo", description=__doc__)
    parser.add_argument("--grid", type=_parse_grid, action="append", help="latent T x H x W")
    parser.add_argument("--heads", type=int, help="heads (5 on a CPU, 40 or 10 on a GPU)")
    parser.add_argument("--kind", choices=KINDS, default="mixed", help="what the heads look at")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--rounds", type=int, help="timed rounds at most")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    args = _arguments(argv)
    started = time.perf_counter()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    heads = args.heads or _default_heads(device)
    configs = candidates(args.sparsity)

    print("Rectified SpaAttn demo: full attention against block-sparse attention, same q, k, v")
    print(f"device    {_device_name(device)}, torch {torch.__version__}, {dtype}")
    backend = _choose_backend(backend_status(device, dtype, HEAD_DIM, next(iter(configs.values()))))
    print(f"inputs    {heads} synthetic heads of kind {args.kind}, head_dim {HEAD_DIM}")

    if backend == "reference":
        print(
            "note      the sparse rows run the plain torch reference: it computes only the kept"
            "\n          blocks but is written to be read, so its time says nothing about the"
            "\n          Triton kernels: docs/notes/kernels.md has their figures."
        )

    results = []
    for grid in args.grid or (GPU_GRIDS if on_gpu else CPU_GRIDS):
        result = measure_size(grid, heads, configs, device, dtype, backend, args.kind, args.rounds)
        results.append(result)
        rounds = result.timings[DENSE].rounds
        print(f"\n{video_name(grid)}: {math.prod(grid):,} tokens, grid {grid}, median of {rounds}")
        print(table(result))

    print(
        "\ndense = torch SDPA. density = kept share of the block pairs, counted. rel. L2 = error of"
        "\nthe output against dense: over all heads, then over the heads of each kind."
        "\nnone = sparse only, paper = IPAR + GAPR (arXiv 2511.19835), precise = pooled tail inside"
        "\nthe softmax; the number is the block size."
    )
    picture = save_figure(results[-1], args.sparsity, args.out)
    print(f"\npicture   {picture}")
    print(f"total     {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
