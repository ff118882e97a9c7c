"""Run records of any size, made up."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rectified_spaattn.rspa_core.run.reasons import DenseReason, Reason, why
from rectified_spaattn.rspa_core.run.record import Block, Cell, RunRecord, StepRecord

SPARSE_SECONDS, DENSE_SECONDS = 2.0, 4.0
SETTINGS = {
    "sparsity": 0.75,
    "block_size": "128",
    "dense_blocks": "",
    "min_tokens": 8192,
    "steps": [None, 0.6],
    "verbose": False,
}


def blocks(double: int, single: int = 0) -> list[Block]:
    """Blocks as ComfyUI names them."""
    return [("double", index) for index in range(double)] + [
        ("single", index) for index in range(single)
    ]


def run_record(
    steps: int = 4,
    double: int = 6,
    single: int = 0,
    *,
    dense_steps: int = 1,
    unknown_step: bool = False,
    forwards: int = 1,
    density: float = 0.25,
    **change: Any,
) -> RunRecord:
    """A run whose first `dense_steps` steps were dense; `unknown_step` adds one without a number.

    Every forward takes 2 s, a dense one 4 s.
    """
    numbers: list[int | None] = [*range(steps), *([None] if unknown_step else [])]
    cells, rows = {}, []
    times: dict[bool, list[float]] = {True: [], False: []}
    reasons: Counter[DenseReason] = Counter()
    calls = forwards * (double + single)
    for step in numbers:
        is_dense = step is not None and step < dense_steps
        for block in blocks(double, single):
            cell = Cell(0, forwards, None) if is_dense else Cell(forwards, 0, density)
            cells[step, block] = cell
        seconds = DENSE_SECONDS if is_dense else SPARSE_SECONDS
        times[is_dense] += [seconds] * forwards
        given = ((why(Reason.DENSE_STEP), calls),) if is_dense else ()
        reasons.update(dict(given))
        sparse, dense = (0, calls) if is_dense else (calls, 0)
        mean = None if is_dense else density
        rows.append(StepRecord(step, seconds * forwards, forwards, sparse, dense, mean, given))
    sparse = sum(each.sparse for each in rows)
    values: dict[str, Any] = {
        "model": "WAN21",
        "node_id": "7",
        "tokens": 32760,
        "grid": (21, 30, 52),
        "forwards": forwards * len(rows),
        "sparse": sparse,
        "dense": sum(each.dense for each in rows),
        "density": density if sparse else None,
        "seconds": sum(each.seconds for each in rows),
        "reasons": dict(reasons),
        "steps": tuple(rows),
        "cells": cells,
        "sparse_forward_seconds": tuple(times[False]),
        "dense_forward_seconds": tuple(times[True]),
        "settings": SETTINGS,
        "warnings": (),
    }
    return RunRecord(**(values | change))
