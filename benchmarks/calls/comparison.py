"""Several ways to compute one attention call: checked first, then timed side by side.

A candidate that is missing, that raises, or whose output is wrong keeps its row in the table, with
the reason in place of a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...rspa_core import BackendUnavailable, ConfigError, relative_l2
from ..output import table_lines
from ..timing import measure_interleaved, timed
from .problem import Problem

BASELINE = "dense cuDNN"
Record = dict[str, Any]
"""One row of the table as data, see `record_of`."""


class Unavailable(Exception):
    """The candidate cannot run here. The message is the reason, written for the reader."""


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
    in_order: Callable[[Tensor], Tensor] = lambda out: out


@dataclass(frozen=True)
class Candidate:
    """What can be compared.

    Attributes:
        label: for the table.
        prepare: makes the candidate ready (imports, masks, compilation).
        is_ours: or a rival.
    """

    label: str
    prepare: Callable[[], Prepared]
    is_ours: bool = False


@dataclass
class Row:
    """One line of the table.

    Attributes:
        refused: why there is no time, or "".
        call: None where refused.
        density: share of the query-key pairs computed exactly.
        error: relative L2 difference to dense attention.
        first_s: seconds until the first output: imports, compilation, checks at first use.
        mib: peak memory of a call beside its inputs and its output; None without a GPU.
        ms: median of the timed rounds.
    """

    candidate: Candidate
    refused: str = ""
    call: Callable[[], Tensor] | None = None
    density: float | None = None
    error: float | None = None
    first_s: float | None = None
    mib: float | None = None
    ms: float | None = None

    @property
    def label(self) -> str:
        return self.candidate.label


def examine(candidates: Iterable[Candidate], exact: Tensor) -> list[Row]:
    """Make every candidate ready, run it and check it against `exact` and its own check."""
    rows = []
    for candidate in candidates:
        # By the host's clock alone: a GPU that has failed must not end the other candidates.
        seconds, row = timed(partial(examine_one, candidate, exact), torch.device("cpu"))
        rows.append(row)
        print(f"  {row.label}: {row.refused or 'checked'} ({seconds:.1f} s)", flush=True)
    return rows


def examine_one(candidate: Candidate, exact: Tensor) -> Row:
    """One row of `examine`: `exact [B, H', N, D]` may hold the first heads only."""
    row = _examine(candidate, exact)
    if row.refused and exact.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return row


def _examine(candidate: Candidate, exact: Tensor) -> Row:
    start = time.perf_counter()
    try:
        prepared = candidate.prepare()
        on_gpu, mib = exact.device.type == "cuda", None
        out = prepared.call()  # compiles, fills caches
        if on_gpu:
            torch.cuda.synchronize()
        first_s = time.perf_counter() - start
        if on_gpu:
            del out
            out, mib = _with_peak(prepared.call)
        wrong = prepared.wrong(out) if out.isfinite().all() else "output is not finite"
        if wrong:
            return Row(candidate, refused=f"WRONG: {wrong}")
        lost = relative_l2(prepared.in_order(out)[:, : exact.shape[1]], exact)
    except Exception as error:  # whatever another library raises belongs into its row
        return Row(candidate, refused=refusal(error))
    return Row(candidate, "", prepared.call, prepared.density, lost, first_s, mib)


def refusal(error: Exception) -> str:
    """Why a candidate has no time, for its row."""
    if isinstance(error, Unavailable | BackendUnavailable | ConfigError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Type and first line of an exception's message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:160]}" if lines else type(error).__name__


def _with_peak(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Output of a call on a GPU, and its peak memory beside inputs and output in MiB."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = call()
    torch.cuda.synchronize()
    return out, (torch.cuda.max_memory_allocated() - before - out.nbytes) / 2**20


def time_rows(rows: list[Row], device: torch.device, rounds: int, **options: Any) -> None:
    """Fill in the median time of every row that was not refused, or why it has none after all.

    Their calls take turns on the device; for rounds and options see `measure_interleaved`.
    """
    calls = {row.label: partial(_call_or_refuse, row) for row in rows if row.call is not None}
    if not calls:
        return
    timings = measure_interleaved(calls, device, rounds=rounds, **options)
    for row in rows:
        if row.label in timings and not row.refused:
            row.ms = timings[row.label] * 1e3


def _call_or_refuse(row: Row) -> None:
    if row.call is not None and not row.refused:
        try:
            row.call()
        except Exception as error:  # memory that has become scarce must not end the others
            row.refused = refusal(error)


def record_of(row: Row, rows: Sequence[Row], problem: Problem) -> Record:
    """All columns of a row, by name; None where there is nothing to say."""
    dense = next((each.ms for each in rows if each.label == BASELINE), None)
    density = 1.0 if row.density is None else row.density
    speedup = dense / row.ms if dense and row.ms else None
    return {
        "label": row.label,
        "ms": row.ms,
        "density": row.density,
        "x_cudnn": speedup,
        "over_ideal": 1.0 / (speedup * density) if speedup and density else None,
        "tflops": problem.dense_flops * density / row.ms / 1e9 if row.ms else None,
        "relative_l2": row.error,
        "extra_mib": row.mib,
        "refused": row.refused,
    }


COLUMNS = {
    "ms": ("ms", "{:.2f}"),
    "density": ("density", "{:.3f}"),
    "x_cudnn": ("x cuDNN", "{:.2f}"),
    "over_ideal": ("/ ideal", "{:.2f}"),
    "tflops": ("TFLOP/s", "{:.0f}"),
    "relative_l2": ("rel L2", "{:.4f}"),
    "extra_mib": ("+MiB", "{:.0f}"),
}
"""Of the table: field of a record to heading and form."""


def lines_of(records: Sequence[Record]) -> list[str]:
    """The table as text; candidates that were refused stand below it."""
    timed = [record for record in records if not record["refused"]]
    refused = [f"{each['label']}: {each['refused']}" for each in records if each["refused"]]
    return [*table_lines(timed, "label", COLUMNS), *refused]


def break_even_lines(records: Sequence[Record]) -> list[str]:
    """Milliseconds by tokens, a column for every candidate."""
    labels = list(dict.fromkeys(each["label"] for each in records))
    times: dict[int, Record] = {}
    for each in records:
        row = times.setdefault(each["tokens"], dict.fromkeys(labels) | {"tokens": each["tokens"]})
        row[each["label"]] = each["ms"]
    columns = {label: (f"[{index}]", "{:.3f}") for index, label in enumerate(labels)}
    legend = [f"[{index}] {label}" for index, label in enumerate(labels)]
    return [*legend, *table_lines(list(times.values()), "tokens", columns)]
