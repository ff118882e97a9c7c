"""One sampling run as it was: calls, densities and times by step and block. Plain data.

Attention calls of one forward, counted by the thread that runs it.

What is happening in a sampling run: the status line on the node, the log, and the record.

A `ForwardTally` counts one model call and belongs to the thread that runs it. The `RunReport` of a
model clone collects them under a lock, shows the status line, logs one summary line when ComfyUI
cleans up after sampling, and leaves a `RunRecord` behind.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from ..layout import TokenLayout

Block = tuple[str, int | None]
"""(block_type, block_index) of an attention call; the index is None where the core has none."""

PROBED = "measured by the probe"
"""Reason of a dense call whose time is that of the measurement."""

MIN_FORWARDS = 2
"""A speed-up is told from this many forwards of either kind: the first of a kind warms up."""


@dataclass(frozen=True)
class Cell:
    """Calls of one block in one step; `density` is the mean over the sparse ones, or None."""

    sparse: int
    dense: int
    density: float | None


@dataclass(frozen=True)
class StepRecord:
    """One step of the sampler.

    Attributes:
        step: its index, None where the sampler's sigmas are unknown.
        seconds: in the model, over all forwards of the step.
        forwards: model calls; with guidance often two.
        sparse, dense: attention calls over the video.
        density: mean kept share of block pairs of the sparse calls, None without any.
        reasons: (why dense, calls), most frequent first.
    """

    step: int | None
    seconds: float
    forwards: int
    sparse: int
    dense: int
    density: float | None
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class RunRecord:
    """A finished sampling run on one model clone.

    Attributes:
        model: class name of ComfyUI's model.
        node_id: the node that installed sparse attention.
        tokens, grid: of the last forward: attention sequence and video (T, H, W); None if unknown.
        forwards, sparse, dense, density, seconds, reasons: over the whole run.
        steps: in their order.
        cells: by (step, block).
        sparse_forward_seconds, dense_forward_seconds: of every forward with sparse calls, and of
            those whose calls over the video were all dense.
        settings: what was asked for, plain JSON values.
        warnings: in the order in which they were given.
    """

    model: str
    node_id: str | None
    tokens: int | None
    grid: tuple[int, int, int] | None
    forwards: int
    sparse: int
    dense: int
    density: float | None
    seconds: float
    reasons: dict[str, int]
    steps: tuple[StepRecord, ...]
    cells: dict[tuple[int | None, Block], Cell]
    sparse_forward_seconds: tuple[float, ...] = ()
    dense_forward_seconds: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def sparse_step_seconds(self) -> float | None:
        """Median seconds of a forward with sparse calls, None without any."""
        return median_low(self.sparse_forward_seconds) if self.sparse_forward_seconds else None

    @property
    def dense_step_seconds(self) -> float | None:
        """Median seconds of a forward without sparse calls, None without any."""
        return median_low(self.dense_forward_seconds) if self.dense_forward_seconds else None

    @property
    def speedup(self) -> float | None:
        """Times faster per forward, None unless there are enough forwards of both kinds."""
        return speedup(self.sparse_forward_seconds, self.dense_forward_seconds)

    def as_dict(self) -> dict[str, Any]:
        """JSON data; `calls` rows are [step, type, index, sparse, dense], `densities` theirs."""
        return {
            "model": self.model,
            "node": self.node_id,
            "tokens": self.tokens,
            "grid": None if self.grid is None else list(self.grid),
            "forwards": self.forwards,
            "sparse": self.sparse,
            "dense": self.dense,
            "density": self.density,
            "seconds": round(self.seconds, 3),
            "reasons": dict(self.reasons),
            "sparse_forward_seconds": self.sparse_step_seconds,
            "dense_forward_seconds": self.dense_step_seconds,
            "speedup": self.speedup,
            "steps": [
                {
                    "step": each.step,
                    "seconds": round(each.seconds, 3),
                    "forwards": each.forwards,
                    "sparse": each.sparse,
                    "dense": each.dense,
                    "density": each.density,
                    "reasons": dict(each.reasons),
                }
                for each in self.steps
            ],
            "calls": [
                [step, *block, cell.sparse, cell.dense]
                for (step, block), cell in self.cells.items()
            ],
            "densities": [cell.density for cell in self.cells.values()],
            "settings": self.settings,
            "warnings": list(self.warnings),
        }


def speedup(sparse_seconds: tuple[float, ...], dense_seconds: tuple[float, ...]) -> float | None:
    """Median dense over median sparse forward, None unless there are enough of both."""
    if min(len(sparse_seconds), len(dense_seconds)) < MIN_FORWARDS:
        return None
    sparse = median_low(sparse_seconds)
    return median_low(dense_seconds) / sparse if sparse > 0.0 else None


class ForwardTally:
    """Attention calls of one forward. Nothing here waits for the GPU except `finish`.

    Attributes:
        sparse: sparse calls by block.
        dense: dense calls by (block, reason); only calls that could have been sparse.
        other_lengths: (query tokens, key tokens) of the calls that are not over the video tokens.
    """

    def __init__(self, device: torch.device, step: int | None) -> None:
        self.step = step
        self.sparse: Counter[Block] = Counter()
        self.dense: Counter[tuple[Block, str]] = Counter()
        self.other_lengths: set[tuple[int, int]] = set()
        self._densities: list[tuple[Block, Tensor]] = []
        # Allocated here, before the transformer runs: newer cores may record the allocations of a
        # block for replay, and this tensor outlives the block that writes to it.
        self._probe = torch.zeros((), dtype=torch.float32, device=device)

    def add_sparse(self, block: Block, out: Tensor, density: Tensor) -> None:
        """Count a sparse call; `density` is a 0-dim tensor on the device, read later."""
        if out.dtype == torch.float16:
            # HunyuanVideo blocks run nan_to_num in fp16, so the forward's result cannot tell.
            self._probe.add_(out.sum(dtype=torch.float32))
        self._densities.append((block, density))
        self.sparse[block] += 1

    def add_dense(self, block: Block, reason: str) -> None:
        """Count a dense call and why it was dense."""
        self.dense[block, reason] += 1

    @property
    def seen(self) -> bool:
        """Whether any call over the video tokens came by."""
        return bool(self.sparse or self.dense)

    def finish(self, output: Any) -> tuple[dict[Block, float], bool]:
        """Wait for the device once: (sums of densities by block, whether all values are finite)."""
        probe = self._probe
        if isinstance(output, Tensor):
            # A sum is finite only if every addend is, and reads the latent once.
            probe = probe + output.sum(dtype=torch.float32).to(probe.device)
        densities = [density.to(probe.device, torch.float32) for _, density in self._densities]
        *values, probed = torch.stack([*densities, probe]).tolist()
        sums: defaultdict[Block, float] = defaultdict(float)
        for (block, _), value in zip(self._densities, values, strict=True):
            sums[block] += value
        return dict(sums), math.isfinite(probed)


logger = logging.getLogger("rectified_spaattn")

STATUS_INTERVAL_S = 0.25
"""The status line is sent at most this often; the last one of a run always is."""
REPORT_PREFIX = "RSPA_REPORT "
SAME_SPEED = 0.95
"""Times faster from which on a run does not count as slower: timings spread."""
SCHEDULE_PREFIX = "schedule: "

Key = tuple[int | None, Block]


@dataclass
class _Step:
    """What one step has collected so far."""

    seconds: float = 0.0
    forwards: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class RunReport:
    """Counts of one sampling run on one model clone; `finish_run` logs and records them.

    Attributes:
        node_id: where the status line goes, None for nowhere.
        verbose: also log every forward and, at the end, the counts as one JSON line.
        send_status: shows (text, node_id); injected so that no server is needed.
        settings: what was asked for, plain JSON values.
        last_run: record of the last finished run; None before one, or once a new one has begun.
    """

    node_id: str | None = None
    verbose: bool = False
    send_status: Callable[[str, str | None], None] = lambda text, node_id: None
    clock: Callable[[], float] = time.perf_counter
    settings: Mapping[str, Any] = field(default_factory=dict)
    last_run: RunRecord | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the running counts; a run that was cut off before its cleanup must not leak in."""
        with self._lock:
            self.forwards = 0
            self.sparse: Counter[Key] = Counter()
            self.dense: Counter[Key] = Counter()
            self.reasons: Counter[str] = Counter()
            self._densities: defaultdict[Key, float] = defaultdict(float)
            self._steps: defaultdict[int | None, _Step] = defaultdict(_Step)
            self._sparse_seconds: list[float] = []
            self._dense_seconds: list[float] = []
            self._layout: TokenLayout | None = None
            self._started: float | None = None
            self._seconds = 0.0
            self._last_status = -math.inf
            self._said: dict[str, None] = {}

    def start_forward(self) -> float:
        """A forward begins: the time, to be given to `add_forward`."""
        now = self.clock()
        with self._lock:
            if self._started is None:
                self._started = now
        return now

    def add_forward(
        self,
        tally: ForwardTally,
        density_sums: Mapping[Block, float],
        started: float | None = None,
        layout: TokenLayout | None = None,
    ) -> None:
        """Take over one finished forward and refresh the status line.

        Args:
            density_sums: of its sparse calls, by block.
            started: what `start_forward` gave.
            layout: its tokens, None if unknown.
        """
        now = self.clock()
        with self._lock:
            step = self._steps[tally.step]
            self.forwards += 1
            step.forwards += 1
            for block, count in tally.sparse.items():
                self.sparse[tally.step, block] += count
            for (block, reason), count in tally.dense.items():
                self.dense[tally.step, block] += count
                self.reasons[reason] += count
                step.reasons[reason] += count
            for block, total in density_sums.items():
                self._densities[tally.step, block] += total
            if started is not None:
                seconds = now - started
                step.seconds += seconds
                was_probed = any(reason == PROBED for _, reason in tally.dense)
                if tally.seen and not was_probed:
                    (self._sparse_seconds if tally.sparse else self._dense_seconds).append(seconds)
            self._layout = layout or self._layout
            self._seconds = now - (self._started if self._started is not None else now)
            is_due = now - self._last_status >= STATUS_INTERVAL_S
            if is_due:
                self._last_status = now
            text = self.status_text()
        if is_due:
            self.send_status(text, self.node_id)

    def announce(self) -> None:
        """A run begins: replace what an earlier one has left on the node."""
        self.send_status("waiting for the first model call", self.node_id)

    def warn_once(self, text: str) -> None:
        """Log a warning that has not been logged in this run; it is part of the record, too."""
        with self._lock:
            is_new = text not in self._said
            self._said[text] = None
        if is_new:
            logger.warning("Rectified SpaAttn: %s", text)

    def finish_run(self, model_name: str = "") -> None:
        """Log the run's one summary line, show the last status, record the run, start over."""
        with self._lock:
            record = self._record(model_name)
            summary, status = self.status_text(full_reasons=True), self.status_text()
        if record.forwards:
            self.last_run = record
            if not record.sparse:
                status = f"not sparse: {why_not_sparse(record)}\n{status}"
            self.send_status(status, self.node_id)
            logger.info("Rectified SpaAttn: %s, %d forwards", summary, record.forwards)
            if self.verbose:
                logger.info("%s%s", REPORT_PREFIX, json.dumps(record.as_dict()))
        self.reset()

    @property
    def density(self) -> float | None:
        """Mean density of the sparse calls, None without any."""
        calls = self.sparse.total()
        return sum(self._densities.values()) / calls if calls else None

    def status_text(self, full_reasons: bool = False) -> str:
        """ "sparse 288 / dense 32 (first 10 %) · density 0.17 · 1.9x per step · 12.3 s" """
        parts = [f"sparse {self.sparse.total()} / dense {self.dense.total()}"]
        if self.reasons:
            parts[0] += f" ({_listed(self.reasons, full_reasons)})"
        if self.density is not None:
            parts.append(f"density {self.density:.2f}")
        faster = speedup(tuple(self._sparse_seconds), tuple(self._dense_seconds))
        if faster is not None:
            slower = f"{1 / faster:.1f}x slower per step" if faster < SAME_SPEED else ""
            parts.append(slower or f"{faster:.1f}x per step")
        parts.append(f"{self._seconds:.1f} s")
        return " · ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """What has been counted so far, as `RunRecord.as_dict`."""
        with self._lock:
            return self._record("").as_dict()

    def _record(self, model_name: str) -> RunRecord:
        keys = sorted({*self.sparse, *self.dense}, key=_order)
        cells = {
            key: Cell(
                self.sparse[key],
                self.dense[key],
                self._densities[key] / self.sparse[key] if self.sparse[key] else None,
            )
            for key in keys
        }
        layout = self._layout
        return RunRecord(
            model=model_name,
            node_id=self.node_id,
            tokens=None if layout is None else layout.length,
            grid=None if layout is None else layout.grid,
            forwards=self.forwards,
            sparse=self.sparse.total(),
            dense=self.dense.total(),
            density=self.density,
            seconds=self._seconds,
            reasons=dict(self.reasons.most_common()),
            steps=tuple(self._step_record(step) for step in sorted(self._steps, key=_step_order)),
            cells=cells,
            sparse_forward_seconds=tuple(self._sparse_seconds),
            dense_forward_seconds=tuple(self._dense_seconds),
            settings=dict(self.settings),
            warnings=tuple(self._said),
        )

    def _step_record(self, step: int | None) -> StepRecord:
        collected = self._steps[step]
        sparse = sum(count for key, count in self.sparse.items() if key[0] == step)
        total = sum(density for key, density in self._densities.items() if key[0] == step)
        return StepRecord(
            step,
            collected.seconds,
            collected.forwards,
            sparse,
            sum(count for key, count in self.dense.items() if key[0] == step),
            total / sparse if sparse else None,
            tuple(collected.reasons.most_common()),
        )


def why_not_sparse(record: RunRecord) -> str:
    """The likely cause of a run without a single sparse call, for the user."""
    if not record.dense:
        return record.warnings[0] if record.warnings else "no attention call was seen"
    reason = next(iter(record.reasons))
    if all(each.startswith(SCHEDULE_PREFIX) for each in record.reasons):
        return (
            "the schedule was active in none of the steps that ran "
            f"({_listed(Counter(record.reasons), False)})"
        )
    return reason


def _listed(reasons: Counter[str], full: bool) -> str:
    """Reasons with their counts; a single one without, unless `full`."""
    shown = [
        (reason if full else reason.removeprefix(SCHEDULE_PREFIX), count)
        for reason, count in reasons.most_common()
    ]
    if len(shown) == 1 and not full:
        return shown[0][0]
    return ", ".join(f"{reason} {count}" for reason, count in shown)


def _step_order(step: int | None) -> int:
    return -1 if step is None else step


def _order(key: Key) -> tuple[int, str, int]:
    """Sorts by step, block type, block index; None comes first."""
    step, (block_type, index) = key
    return _step_order(step), block_type, -1 if index is None else index
