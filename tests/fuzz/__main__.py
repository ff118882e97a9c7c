"""Random attention calls on the kernels, against the reference.

    python -m rectified_spaattn.tests.fuzz --cases 20000          # on a GPU
    python -m rectified_spaattn.tests.fuzz --cases 200            # in Triton's interpreter, slow
    python -m rectified_spaattn.tests.fuzz --case "dtype=float16 ..."     # one again

Shapes, strides, types, layouts, modes and tiles are drawn from `--seed`. Cases that share compiled
kernels follow one another in one process; `--jobs` processes share the GPU, and each judges what
its kernels wrote with one thread of the CPU, which takes most of the time. A case that is neither
close to the reference nor explained by a near tie (see judge.py) is a fault: it is printed as a
line to paste. The exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .cases import Case
    from .judge import Outcome


@dataclass
class Row:
    """Cases of one dtype and mode; seconds of all processes together."""

    cases: int = 0
    ties: int = 0
    faults: int = 0
    worst: float = 0.0
    seconds: float = 0.0


def main(words: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    jobs = (os.cpu_count() or 1) if on_gpu else 1
    add = parser.add_argument
    add("--cases", type=int, default=2000 if on_gpu else 100, help="how many (%(default)s)")
    add("--per-variant", type=int, default=200 if on_gpu else 4,
        help="in a row with the same compiled kernels (%(default)s)")  # fmt: skip
    add("--jobs", type=int, default=jobs, help="processes (%(default)s)")
    add("--minutes", type=float, default=float("inf"), help="begin no case after these (none)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--device", default="cuda" if on_gpu else "cpu", help="default: %(default)s")
    add("--case", help="run this one alone")
    options = parser.parse_args(words)
    start = time.time()
    device = torch.device(options.device)
    if device.type == "cpu":  # read when the kernels are imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    torch.set_num_threads(1)
    from .cases import Case, draw_cases

    if options.case is not None:
        variants: Iterable[list[Case]] = [[Case.parse(options.case)]]
    else:
        variants = draw_cases(options.cases, options.per_variant, options.seed, device)
    rows = tabulated(judged(variants, device, options.jobs, start + 60.0 * options.minutes))
    print_table(rows, (time.time() - start) / 60.0)
    return 1 if any(row.faults for row in rows.values()) else 0


def judged(
    variants: Iterable[list[Case]], device: torch.device, jobs: int, end: float
) -> Iterator[tuple[Case, Outcome, float]]:
    """What `judge_all` returns of every variant, each in one of `jobs` processes."""
    from .judge import judge_all

    if jobs == 1:
        for cases in variants:
            yield from judge_all(cases, device, end)
        return
    spawn = multiprocessing.get_context("spawn")  # a GPU that is in use does not survive a fork
    with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,)) as pool:
        parts = [pool.submit(judge_all, cases, device, end) for cases in variants]
        for part in as_completed(parts):
            yield from part.result()


def tabulated(judged: Iterable[tuple[Case, Outcome, float]]) -> dict[tuple[str, str], Row]:
    """The rows of the table; prints the faults."""
    rows: dict[tuple[str, str], Row] = defaultdict(Row)
    for case, outcome, seconds in judged:
        row = rows[case.dtype, case.mode]
        row.cases += 1
        row.seconds += seconds
        if outcome.verdict == "FAULT":
            row.faults += 1
            print(f"{outcome.note} ({outcome.over:.3g} times the budget)")
            print(f'  --case "{case.text()}"', flush=True)
        else:
            row.ties += outcome.verdict != "close"
            row.worst = max(row.worst, outcome.over)
    return dict(rows)


def print_table(rows: dict[tuple[str, str], Row], minutes: float) -> None:
    """By dtype and mode: cases, ties, the worst error over budget, the time; and the rate of all.

    Args:
        rows: by dtype and mode.
        minutes: that the whole took.
    """
    print(f"\n{'dtype':9} {'mode':28} {'cases':>6} {'ties':>5} {'faults':>6} {'worst':>6} {'s':>7}")
    for (dtype, mode), row in sorted(rows.items()):
        print(
            f"{dtype:9} {mode:28} {row.cases:6} {row.ties:5} {row.faults:6} {row.worst:6.2f} "
            f"{row.seconds:7.1f}"
        )
    total = list(rows.values())
    cases = sum(row.cases for row in total)
    print(
        f"{'all':38} {cases:6} {sum(r.ties for r in total):5} "
        f"{sum(r.faults for r in total):6} {max((r.worst for r in total), default=0.0):6.2f} "
        f"{sum(r.seconds for r in total):7.1f}"
    )
    print(f"\n{cases} cases in {minutes:.1f} minutes, {cases / minutes:.0f} a minute.")
    print("worst: error of a case that is no fault, over its budget; 1 is the budget.")


if __name__ == "__main__":
    sys.exit(main())
