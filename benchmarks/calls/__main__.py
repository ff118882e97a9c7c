"""One attention call of a video model: everything an artist can pick, side by side on one GPU.

    python -m rectified_spaattn.benchmarks.calls --shape wan-720p --json calls.json
    python -m rectified_spaattn.benchmarks.calls --only precise --density 0.15 --stages
    TRITON_CACHE_DIR=$(mktemp -d) python -m rectified_spaattn.benchmarks.calls --what first-use

`table`: dense attention (cuDNN, flash, SageAttention, comfy-kitchen INT8), ComfyUI's Sol-Attn,
    torch's flex_attention on the blocks that ours selects, and ours, on the same q, k, v in one
    process. Candidates take turns, each repeated until the chip's clock has settled to it; medians.
`linear`: ours over the density.
`break-even`: ours and dense attention over the number of tokens, launch overhead included.
`first-use`: seconds of the first call with each method in a process, kernels compiled and checked,
    and of a second one. With Triton's usual cache: what a later start of ComfyUI takes.

`--stages` adds ours by kernel. `--tiles 128,8,3,tma 128,4,2,specialised` times these launch
configurations of ours instead of the one in the table of this GPU, see `ours.tile_of`.

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
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...rspa_core import dense_attention, rectified_attention
from ...rspa_core.config import PRECISIONS, RECTIFICATIONS, TAIL_KEYS
from ..methods import methods
from ..output import command_line, device_name, write_json
from ..timing import timed
from .comparison import (
    BASELINE,
    Candidate,
    Record,
    break_even_lines,
    examine,
    lines_of,
    record_of,
    time_rows,
)
from .flex import flex_candidates
from .ours import CHECKED_HEADS, our_candidates, our_configs
from .problem import SHAPES, Problem, Shape, make_problem
from .rivals import FLASH, dense_int8_candidates, sol_candidates, torch_candidates

OURS: dict[str, list] = {
    "blocks": ["128x128"], "density": [0.25], "precision": ["16-bit"], "only": ["ours"],
}  # fmt: skip
DEFAULTS: dict[str, dict[str, list]] = {
    "table": {
        "blocks": ["128x128", "128x64", "64x64"], "density": [0.25, 0.15, 0.10],
        "precision": ["16-bit", "int8"], "only": [],
    },
    "linear": OURS | {"density": [1.0, 0.75, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1]},
    "break-even": OURS | {"density": [0.25, 0.15], "only": [FLASH, "ours"]},
    "first-use": OURS,
}  # fmt: skip
BREAK_EVEN_GRIDS = (
    (5, 16, 26), (9, 16, 28), (13, 18, 26), (13, 22, 28), (15, 24, 34), (17, 26, 36),
    (21, 30, 38), (21, 30, 52), (21, 36, 66), (21, 45, 80),
)  # fmt: skip
BREAK_EVEN_HEADS = 40


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; values not given are those for `--what`."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--what", choices=DEFAULTS, default="table")
    add("--shape", nargs="+", choices=SHAPES, default=["wan-720p"])
    add("--rectification", nargs="+", choices=RECTIFICATIONS, default=["paper", "precise"])
    add("--tail-keys", type=int, nargs="+", choices=TAIL_KEYS, default=[4], help='of "precise"')
    add("--blocks", nargs="+", help="q_block x kv_block")
    add("--density", nargs="+", type=float, help="1 - sparsity")
    add("--precision", nargs="+", choices=PRECISIONS)
    add("--tiles", nargs="+", default=[], help="launch configurations instead of the table's")
    add("--only", nargs="+", metavar="TEXT",
        help="only what has one of these in its name; cuDNN always")  # fmt: skip
    add("--dtype", choices=["float16", "bfloat16", "float32"], default="bfloat16")
    add("--rounds", type=int, default=5)
    add("--settle", type=float, default=0.3,
        help="seconds of the same call before each timed one (not for break-even)")  # fmt: skip
    add("--stages", action="store_true", help="also print ours by kernel")
    add("--json", type=Path, help="write the figures to this file")
    parser.set_defaults(**DEFAULTS[parser.parse_args(words).what])
    return parser.parse_args(words)


def candidates_of(
    problem: Problem, exact: Tensor, arguments: argparse.Namespace
) -> list[Candidate]:
    """Everything that `--only` leaves; the baseline is the first."""
    first = methods(arguments.rectification, arguments.tail_keys)[0]
    every = [
        *torch_candidates(problem, exact, CHECKED_HEADS),
        *dense_int8_candidates(problem, exact),
        *sol_candidates(problem, exact),
        *flex_candidates(problem, first, arguments.density, CHECKED_HEADS),
        *our_candidates(problem, arguments),
    ]
    wanted = [BASELINE, *arguments.only] if arguments.only else [""]
    return [each for each in every if any(text in each.label for text in wanted)]


def exact_output(problem: Problem) -> Tensor:
    """Dense attention: that of the baseline, or torch's choice where the baseline fails."""
    baseline = torch_candidates(problem, problem.q, CHECKED_HEADS)[0]
    try:
        return baseline.prepare().call()
    except RuntimeError:
        return dense_attention(*problem.qkv)


def measure(
    name: str, shape: Shape, arguments: argparse.Namespace, device: torch.device
) -> list[Record]:
    """Check, time and print everything at one shape; returns the rows as data."""
    problem = make_problem(shape, getattr(torch, arguments.dtype), device)
    about = {
        "shape": name, "tokens": shape.layout.length, "heads": shape.heads,
        "dtype": arguments.dtype,
    }  # fmt: skip
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    if arguments.what == "first-use":
        first_use(problem, arguments)
        return []
    exact = exact_output(problem)
    rows = examine(candidates_of(problem, exact, arguments), exact)
    launches_count = arguments.what == "break-even"
    settle = 0.0 if launches_count else arguments.settle
    time_rows(rows, device, arguments.rounds, host_time=launches_count, settle=settle)
    records = [record_of(row, rows, problem) for row in rows]
    print("\n".join(lines_of(records)), flush=True)
    if arguments.stages:
        for row in rows:
            if row.call is not None and row.candidate.is_ours:
                print_stages(row.label, row.call)
    about |= {"what": arguments.what, "device": device_name(device)}
    return [about | record for record in records]


def first_use(problem: Problem, arguments: argparse.Namespace) -> None:
    """Print the seconds of the first two calls of each of ours."""
    for label, (config, _) in our_configs(arguments).items():
        call = partial(rectified_attention, *problem.qkv, problem.layout, config)
        first, second = (timed(call, problem.q.device)[0] for _ in range(2))
        print(f"{label}: first call {first:.2f} s, second {second:.4f} s", flush=True)


def print_stages(label: str, call: Callable[[], object]) -> None:
    """Print the time of one call by kernel, from torch's profiler."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    total: Counter[str] = Counter()
    for event in profile.events():
        total[event.name] += event.device_time / 1e3
    print(f"stages of {label}:")
    for kernel, milliseconds in total.most_common(9):
        print(f"  {milliseconds:8.3f} ms  {kernel[:90]}")


def main(words: list[str] | None = None, device: torch.device | None = None) -> None:
    """Command line: measure, print, write."""
    arguments = parse(words)
    if device is None:
        if not torch.cuda.is_available():
            raise SystemExit("this benchmark needs an NVIDIA GPU; make demo runs on a CPU too")
        device = torch.device("cuda")
    print(f"{device_name(device)}, torch {torch.__version__}", flush=True)
    shapes = {name: SHAPES[name] for name in arguments.shape}
    if arguments.what == "break-even":
        shapes = {"x".join(map(str, g)): Shape(g, BREAK_EVEN_HEADS) for g in BREAK_EVEN_GRIDS}
    records: list[Record] = []
    for name, shape in shapes.items():
        records += measure(name, shape, arguments, device)
        if arguments.json:
            write_json(records, arguments.json)
    if arguments.what == "break-even":
        print("\n" + "\n".join(break_even_lines(records)), flush=True)


if __name__ == "__main__":
    main()
