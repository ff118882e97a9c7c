"""Several ways to compute one attention call: checked first, then timed side by side.

A candidate that is missing, that raises, or whose output is wrong keeps its row in the table, with
the reason in place of a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rspa_core import TokenLayout, metrics
from .timing import measure_interleaved

BASELINE = "dense cuDNN"


class Unavailable(Exception):
    """The candidate cannot run here. The message is the reason, written for the reader."""


@dataclass(frozen=True)
class Problem:
    """One attention call: `q, k, v [B, H, N, D]` and where the video is among the N tokens."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def dense_flops(self) -> float:
        batch, heads, length, head_dim = self.q.shape
        return 4.0 * batch * heads * length**2 * head_dim

    def pair_density(self, video_density: float) -> float:
        """Share of all query-key pairs if that of the video pairs is this; context is exact."""
        video, length = self.layout.video_length, self.layout.length
        return (video_density * video**2 + length**2 - video**2) / length**2


def unchanged(out: Tensor) -> Tensor:
    return out


@dataclass(frozen=True)
class Prepared:
    """A candidate ready to be timed.

    Attributes:
        call: what is timed.
        wrong: from an output of `call`, what is wrong with it, or "".
        density: share of the query-key pairs computed exactly.
        in_order: from an output of `call` to `[B, H, N, D]` in the order of the inputs.
    """

    call: Callable[[], Tensor]
    wrong: Callable[[Tensor], str]
    density: float = 1.0
    in_order: Callable[[Tensor], Tensor] = unchanged


@dataclass(frozen=True)
class Candidate:
    """Name for the table, and what makes the candidate ready (imports, masks, compilation)."""

    label: str
    prepare: Callable[[], Prepared]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        refused: why there is no time, or "".
        call: None where refused.
        density: share of the query-key pairs computed exactly.
        error: relative L2 difference to dense attention in 16 bits.
        mib: peak memory of a call beside its inputs and its output; None without a GPU.
        ms: median of the timed rounds.
    """

    label: str
    refused: str = ""
    call: Callable[[], Tensor] | None = None
    density: float | None = None
    error: float | None = None
    mib: float | None = None
    ms: float | None = None


def difference_reason(out: Tensor, expected: Tensor, limit: float, what: str) -> str:
    """What is wrong with `out`: not finite or too far from `expected`; "" if nothing."""
    if not out.isfinite().all():
        return "output is not finite"
    difference = metrics.relative_l2(out, expected)
    # Also false for NaN.
    return "" if difference < limit else f"{difference:.1e} from {what}, allowed is {limit:g}"


def examine(candidates: Iterable[Candidate], exact: Tensor) -> list[Row]:
    """Make every candidate ready, run it and check it against `exact` and its own check."""
    rows = []
    for candidate in candidates:
        start = time.perf_counter()
        row = _examine(candidate, exact)
        rows.append(row)
        seconds = time.perf_counter() - start
        print(f"  {row.label}: {row.refused or 'checked'} ({seconds:.1f} s)", flush=True)
        if row.refused and exact.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return rows


def _examine(candidate: Candidate, exact: Tensor) -> Row:
    try:
        prepared = candidate.prepare()
        out, mib = _run(prepared.call, exact.device)
        wrong = prepared.wrong(out)
        if wrong:
            return Row(candidate.label, refused=f"WRONG: {wrong}")
        lost = metrics.relative_l2(prepared.in_order(out), exact)
    except Unavailable as reason:
        return Row(candidate.label, refused=str(reason))
    except Exception as error:  # whatever another library raises belongs into its row
        return Row(candidate.label, refused=first_line(error))
    return Row(candidate.label, "", prepared.call, prepared.density, lost, mib)


def first_line(error: Exception) -> str:
    """Type and first line of an exception's message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:160]}" if lines else type(error).__name__


def _run(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float | None]:
    """Output of a call, and the peak memory beside its inputs and output in MiB (on a GPU)."""
    out = call()  # compiles, fills caches
    if device.type != "cuda":
        return out, None
    del out
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = call()
    torch.cuda.synchronize()
    return out, (torch.cuda.max_memory_allocated() - before - out.nbytes) / 2**20


def time_rows(
    rows: list[Row],
    device: torch.device,
    rounds: int,
    max_seconds: float | None = None,
    *,
    host_time: bool = False,
    settle: float = 0.0,
) -> None:
    """Fill in the median time of every row that was not refused.

    Args:
        rows: their calls take turns.
        device: where they compute.
        rounds: timed calls of each.
        max_seconds: fewer rounds, but one at least, if they and the warm-up would take longer.
        host_time, settle: see `measure_interleaved`.
    """
    calls: dict[str, Callable[[], object]] = {
        row.label: row.call for row in rows if row.call is not None
    }
    if not calls:
        return
    if max_seconds is not None:
        trial = measure_interleaved(calls, device, rounds=1, warm_up=0)
        one_round = sum(timing.median for timing in trial.values())
        rounds = max(1, min(rounds, int(max_seconds / one_round) - 1))
    timings = measure_interleaved(calls, device, rounds=rounds, host_time=host_time, settle=settle)
    for row in rows:
        if row.label in timings:
            row.ms = timings[row.label].median * 1e3


def figures(row: Row, rows: list[Row], problem: Problem) -> dict[str, float | str | None]:
    """All columns of a row, by name; None where there is nothing to say."""
    dense = ms_of(rows, BASELINE)
    density = 1.0 if row.density is None else row.density
    speedup = dense / row.ms if dense and row.ms else None
    return {
        "variant": row.label,
        "ms": row.ms,
        "density": row.density,
        "x_cudnn": speedup,
        "over_ideal": 1.0 / (speedup * density) if speedup and density else None,
        "tflops": problem.dense_flops * density / row.ms / 1e9 if row.ms else None,
        "relative_l2": row.error,
        "extra_mib": row.mib,
        "refused": row.refused,
    }


def ms_of(rows: list[Row], label: str) -> float | None:
    """Time of the row with this label, None if there is none."""
    return next((row.ms for row in rows if row.label == label), None)


COLUMNS = {
    "ms": "{:9.2f}",
    "density": "{:9.3f}",
    "x_cudnn": "{:9.2f}",
    "over_ideal": "{:9.2f}",
    "tflops": "{:9.0f}",
    "relative_l2": "{:9.4f}",
    "extra_mib": "{:9.0f}",
}
HEADINGS = ("ms", "density", "x cuDNN", "/ ideal", "TFLOP/s", "rel L2", "+MiB")


def table_lines(rows: list[Row], problem: Problem) -> list[str]:
    """The table as text."""
    width = max(20, *(len(row.label) for row in rows)) if rows else 20
    lines = [f"{'variant':{width}}" + "".join(f"{heading:>9}" for heading in HEADINGS)]
    for row in rows:
        if row.refused:
            lines.append(f"{row.label:{width}}  {row.refused}")
            continue
        values = figures(row, rows, problem)
        cells = (
            f"{'-':>9}" if values[name] is None else form.format(values[name])
            for name, form in COLUMNS.items()
        )
        lines.append(f"{row.label:{width}}" + "".join(cells))
    return lines
