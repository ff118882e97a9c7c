"""One attention call of a video model: everything an artist can pick, side by side on one GPU.

    python -m rectified_spaattn.benchmarks.speed --shape wan-720p --json speed.json
    python -m rectified_spaattn.benchmarks.speed --what linear
    python -m rectified_spaattn.benchmarks.speed --what break-even

`table`: dense attention (cuDNN, flash, SageAttention, comfy-kitchen INT8), ComfyUI's Sol-Attn,
    torch's flex_attention on the blocks that ours selects, and ours, on the same q, k, v in one
    process. Candidates take turns, each repeated until the chip's clock has settled to it; medians.
`linear`: ours over the density against a proportional bound.
`break-even`: ours and dense attention over the number of tokens, launch overhead included.

A time is printed only after the output was checked: ours against the fp32 reference on some heads,
the others as `rivals.py` and `flex.py` say. Columns:

    density   share of all query-key pairs computed exactly; of Sol-Attn from its published rule
    x cuDNN   how many times faster than cuDNN
    / ideal   time over (time of cuDNN x density)
    TFLOP/s   4 N^2 D H density / time
    rel L2    relative L2 difference to dense attention (cuDNN)
    +MiB      peak memory of one call beside q, k, v and the output

Sol-Attn has no context tokens: all tokens are one sequence to it, in the order of the model.
flex_attention is given tokens in our order: putting them there is not in its time nor its memory.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ..rspa_core import SparseConfig, dense_attention, rectified_attention
from .attention_call import SHAPES, TOLERANCE, Shape, print_stages
from .comparison import (
    BASELINE,
    Candidate,
    Prepared,
    Problem,
    Row,
    difference_reason,
    examine,
    figures,
    ms_of,
    table_lines,
    time_rows,
)
from .curves import break_even_lines, linear_lines
from .flex import BLOCK, FlexInputs, flex_inputs, prepare_flex
from .rivals import FLASH, dense_int8_candidates, sol_candidates, torch_candidates
from .synthetic import KINDS, synthetic_qkv

CHECKED_HEADS = 2
INT8_TOLERANCE = 5e-3
"""A value half way between two steps of int8 may go either way."""

LINEAR_DENSITIES = (1.0, 0.75, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
DEFAULTS: dict[str, dict[str, list[str] | list[float]]] = {
    "table": {
        "blocks": ["128x128", "128x64", "64x64"],
        "density": [0.25, 0.15, 0.10],
        "precision": ["16-bit", "int8"],
    },
    "linear": {
        "blocks": ["128x128"],
        "density": list(LINEAR_DENSITIES),
        "precision": ["16-bit"],
    },
    "break-even": {
        "blocks": ["128x128"],
        "density": [0.25, 0.15],
        "precision": ["16-bit"],
    },
}
BREAK_EVEN_GRIDS = (
    (5, 16, 26),
    (9, 16, 28),
    (13, 18, 26),
    (13, 22, 28),
    (15, 24, 34),
    (17, 26, 36),
    (21, 30, 38),
    (21, 30, 52),
    (21, 36, 66),
    (21, 45, 80),
)
BREAK_EVEN_HEADS = 40


def main() -> None:
    arguments = parse()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU; make demo runs on a CPU too")
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    if arguments.what == "break-even":
        break_even(arguments, device)
        return
    run = table if arguments.what == "table" else linear
    records: list[dict[str, object]] = []
    for name in arguments.shape:
        records += run(name, SHAPES[name], arguments, device)
        write(arguments.json, records)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=DEFAULTS, default="table")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["wan-720p"])
    parser.add_argument(
        "--rectification", nargs="+", choices=("paper", "precise", "none"),
        default=["paper", "precise"],
    )  # fmt: skip
    parser.add_argument("--blocks", nargs="+", help="q_block x kv_block")
    parser.add_argument("--density", nargs="+", type=float, help="1 - sparsity")
    parser.add_argument("--precision", nargs="+", choices=("16-bit", "int8", "auto"))
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT",
        help="of the table only the rows whose name contains one of these; cuDNN always",
    )  # fmt: skip
    parser.add_argument("--kind", choices=KINDS, default="mixed", help="kind of attention head")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    parser.add_argument(
        "--storage", choices=["bhnd", "bnhd"], default="bhnd",
        help="order in which q, k, v lie in memory; models keep bnhd",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--settle", type=float, default=0.3,
        help="seconds of the same call in front of each timed one (table, linear)",
    )  # fmt: skip
    parser.add_argument("--max-seconds", type=float, help="fewer rounds if they took longer")
    parser.add_argument("--stages", action="store_true", help="also print ours by kernel")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(words)
    for name, values in DEFAULTS[arguments.what].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, values)
    if arguments.what == "linear" and 1.0 not in arguments.density:
        parser.error("--what linear compares with density 1: it has to be among --density")
    return arguments


def write(path: Path | None, records: list[dict[str, object]]) -> None:
    """Write what there is so far: a run that is cut off leaves its finished part."""
    if path is not None:
        path.write_text(json.dumps(records, indent=1))


def make_problem(shape: Shape, arguments: argparse.Namespace, device: torch.device) -> Problem:
    dtype = getattr(torch, arguments.dtype)
    tensors = synthetic_qkv(
        arguments.kind, shape.grid, shape.heads, 128, shape.context, dtype, device
    )
    if arguments.storage == "bnhd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
    else:
        q, k, v = tensors
    return Problem(q, k, v, shape.layout)


def heading(name: str, problem: Problem, arguments: argparse.Namespace) -> str:
    _, heads, length, _ = problem.q.shape
    return (
        f"\n{name}: {length:,} tokens, {heads} heads, {arguments.dtype} {arguments.storage}, "
        f"heads: {arguments.kind}"
    )


def our_configs(arguments: argparse.Namespace) -> dict[str, SparseConfig]:
    """Every combination asked for, by the name of its row."""
    configs = {}
    for rectification, blocks, precision, density in product(
        arguments.rectification, arguments.blocks, arguments.precision, arguments.density
    ):
        q_block, kv_block = map(int, blocks.split("x"))
        configs[our_label(rectification, blocks, precision, density)] = SparseConfig(
            round(1.0 - density, 6), q_block, kv_block,
            rectification=rectification, precision=precision,
        )  # fmt: skip
    return configs


def our_label(rectification: str, blocks: str, precision: str, density: float) -> str:
    return f"ours {rectification} {blocks} {precision} {density:g}"


def our_candidates(problem: Problem, configs: dict[str, SparseConfig]) -> list[Candidate]:
    return [
        Candidate(label, partial(prepare_ours, problem, config))
        for label, config in configs.items()
    ]


def prepare_ours(problem: Problem, config: SparseConfig) -> Prepared:
    """Ours, checked on some heads against the fp32 reference."""
    _, stats = rectified_attention(*problem.qkv, problem.layout, config, return_stats=True)

    def wrong(out: Tensor) -> str:
        heads = slice(0, CHECKED_HEADS)
        q, k, v = (x[:, heads] for x in problem.qkv)
        expected = rectified_attention(q, k, v, problem.layout, config, backend="reference")
        limit = TOLERANCE[problem.q.dtype]
        if config.precision != "16-bit":
            limit = max(limit, INT8_TOLERANCE)
        if not out.isfinite().all():
            return "output is not finite"
        return difference_reason(out[:, heads], expected, limit, "the fp32 reference")

    return Prepared(
        lambda: rectified_attention(*problem.qkv, problem.layout, config),
        wrong,
        problem.pair_density(float(stats.density)),
    )


def flex_candidates(problem: Problem, arguments: argparse.Namespace) -> list[Candidate]:
    """flex_attention on the blocks of the first rectification asked for."""
    shared: list[FlexInputs] = []

    def prepare(density: float) -> Prepared:
        config = SparseConfig(
            round(1.0 - density, 6), BLOCK, BLOCK, rectification=arguments.rectification[0]
        )
        if not shared:
            shared.append(flex_inputs(problem, config.order))
        return prepare_flex(problem, shared[0], config, CHECKED_HEADS)

    return [
        Candidate(f"flex_attention {BLOCK}x{BLOCK} {density:g}", partial(prepare, density))
        for density in arguments.density
    ]


def table(
    name: str, shape: Shape, arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """Check, time and print everything at one shape; returns the records for the file."""
    problem = make_problem(shape, arguments, device)
    exact = exact_output(problem)
    candidates = [
        *torch_candidates(problem, exact, CHECKED_HEADS),
        *dense_int8_candidates(problem, exact),
        *sol_candidates(problem, exact),
        *flex_candidates(problem, arguments),
        *our_candidates(problem, our_configs(arguments)),
    ]
    chosen = [
        candidate
        for candidate in candidates
        if not arguments.only
        or candidate.label == BASELINE
        or any(text in candidate.label for text in arguments.only)
    ]
    print(heading(name, problem, arguments), flush=True)
    rows = examine(chosen, exact)
    time_rows(rows, device, arguments.rounds, arguments.max_seconds, settle=arguments.settle)
    print("\n".join(table_lines(rows, problem)), flush=True)
    if arguments.stages:
        for row in rows:
            if row.call is not None and row.label.startswith("ours"):
                print_stages(row.label, row.call)
    return records_of(name, rows, problem, arguments)


def exact_output(problem: Problem) -> Tensor:
    """Dense attention: that of the baseline, or torch's choice where the baseline fails."""
    baseline = torch_candidates(problem, problem.q, CHECKED_HEADS)[0]
    try:
        return baseline.prepare().call()
    except RuntimeError:
        return dense_attention(*problem.qkv)


def records_of(
    name: str, rows: list[Row], problem: Problem, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    cuda = problem.q.device.type == "cuda"
    common = {
        "what": arguments.what,
        "shape": name,
        "tokens": problem.layout.length,
        "heads": problem.q.shape[1],
        "dtype": arguments.dtype,
        "storage": arguments.storage,
        "kind": arguments.kind,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }
    return [{**common, **figures(row, rows, problem)} for row in rows]


def linear(
    name: str, shape: Shape, arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """Ours over the density at one shape: time over that of density 1, and the bound."""
    problem = make_problem(shape, arguments, device)
    exact = exact_output(problem)
    dense = torch_candidates(problem, exact, CHECKED_HEADS)[:1]
    print(heading(name, problem, arguments), flush=True)
    rows = examine(dense + our_candidates(problem, our_configs(arguments)), exact)
    time_rows(rows, device, arguments.rounds, arguments.max_seconds, settle=arguments.settle)
    by_label = {row.label: row for row in rows}
    for variant in product(arguments.rectification, arguments.blocks, arguments.precision):
        own = {density: by_label[our_label(*variant, density)] for density in arguments.density}
        print("\n".join(linear_lines(" ".join(variant), own, ms_of(rows, BASELINE))), flush=True)
    return records_of(name, rows, problem, arguments)


def break_even(
    arguments: argparse.Namespace,
    device: torch.device,
    grids: tuple[tuple[int, int, int], ...] = BREAK_EVEN_GRIDS,
    heads: int = BREAK_EVEN_HEADS,
) -> list[dict[str, object]]:
    """Ours and dense attention over the number of tokens: milliseconds, and who wins from where."""
    configs = our_configs(arguments)
    records: list[dict[str, object]] = []
    times: dict[int, dict[str, float | None]] = {}
    for grid in grids:
        problem = make_problem(Shape(grid, heads), arguments, device)
        exact = exact_output(problem)
        dense = torch_candidates(problem, exact, CHECKED_HEADS)
        print(heading("x".join(map(str, grid)), problem, arguments), flush=True)
        rows = examine(dense + our_candidates(problem, configs), exact)
        time_rows(rows, device, arguments.rounds, arguments.max_seconds, host_time=True)
        times[math.prod(grid)] = {row.label: row.ms for row in rows}
        records += records_of("x".join(map(str, grid)), rows, problem, arguments)
        write(arguments.json, records)
    lines = break_even_lines(times, list(configs), (BASELINE, FLASH))
    print("\n" + "\n".join(lines), flush=True)
    return records


if __name__ == "__main__":
    main()
