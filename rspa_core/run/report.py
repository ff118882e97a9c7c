"""Counting one sampling run while it goes on.

A `ForwardTally` counts one model call and belongs to the thread that runs it. The `RunReport` of a
patched model collects them under a lock, shows a status line, logs one summary line at the end of
the run, and leaves a `RunRecord` behind.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..config import SparseConfig
from ..dispatch import compile_progress
from ..layout import TokenLayout
from .reasons import DenseReason, Reason
from .record import Block, Cell, Ending, RunRecord, StepRecord
from .report_text import COMPILING, WAITING, last_status, log_line, status_line

logger = logging.getLogger("rectified_spaattn")

STATUS_INTERVAL_S = 0.25
"""The status line is sent at most this often; the last one of a run always is."""
EXTRA_WORK = (Reason.PROBED, Reason.POSE_BRANCH)
"""Of forwards whose time is not compared: a pose that is kept is computed in the first only."""
REPORT_PREFIX = "RSPA_REPORT "
Key = tuple[int | None, Block]


class ForwardTally:
    """Attention calls of one forward. Nothing here waits for the GPU except `finish`.

    Attributes:
        sparse: sparse calls by block.
        dense: dense calls by (block, reason); only calls that could have been sparse.
        other_lengths: (query tokens, key tokens) of the calls that are not over the video tokens.
        planned: kept shares that the schedule had for calls, 1 for those that a ramp makes dense.
    """

    def __init__(self, device: torch.device, step: int | None) -> None:
        self.device = device
        self.step = step
        self.sparse: Counter[Block] = Counter()
        self.dense: Counter[tuple[Block, DenseReason]] = Counter()
        self.other_lengths: set[tuple[int, int]] = set()
        self.planned: list[float] = []
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

    def add_dense(self, block: Block, reason: DenseReason) -> None:
        """Count a dense call and why it was dense."""
        self.dense[block, reason] += 1

    def add_planned(self, config: SparseConfig | DenseReason) -> None:
        """Note what a call was to keep, whatever becomes of it; nothing of one dense by choice."""
        if isinstance(config, SparseConfig):
            self.planned.append(1.0 - config.sparsity)
        elif config.reason is Reason.RAMP:
            self.planned.append(1.0)

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


@dataclass
class _Step:
    """What one step has collected so far."""

    seconds: float = 0.0
    forwards: int = 0
    planned: list[float] = field(default_factory=list)
    reasons: Counter[DenseReason] = field(default_factory=Counter)


class RunReport:
    """Counts of one sampling run on one patched model, from any number of threads.

    Args:
        show: shows (status line, node id), the host's.
        node_id: where the status line goes, None for nowhere.
        verbose: also log every forward and, at the end, the counts as one JSON line.
        clock: seconds, rising.
        settings: what was asked for, plain JSON values.

    Attributes:
        last_run: record of the last finished run; None before one.
    """

    def __init__(
        self,
        show: Callable[[str, str | None], None] = lambda text, node_id: None,
        node_id: str | None = None,
        verbose: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.show = show
        self.node_id = node_id
        self.verbose = verbose
        self.clock = clock
        self.settings = settings or {}
        self.last_run: RunRecord | None = None
        self._lock = threading.Lock()
        self._is_announced = False
        self.reset()

    def reset(self) -> None:
        """Forget the running counts; a run that was cut off before its cleanup must not leak in."""
        with self._lock:
            self._forwards = 0
            self._sparse: Counter[Key] = Counter()
            self._dense: Counter[Key] = Counter()
            self._reasons: Counter[DenseReason] = Counter()
            self._densities: defaultdict[Key, float] = defaultdict(float)
            self._steps: defaultdict[int | None, _Step] = defaultdict(_Step)
            self._sparse_seconds: list[float] = []
            self._dense_seconds: list[float] = []
            self._slowed_seconds: list[float] = []
            self._layout: TokenLayout | None = None
            self._num_steps: int | None = None
            self._computed = 0.0
            self._started: float | None = None
            self._seconds = 0.0
            self._last_status = -math.inf
            self._said: dict[str, None] = {}

    @property
    def has_calls(self) -> bool:
        """Whether an attention call over the video was counted."""
        return bool(self._sparse or self._dense)

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
        num_steps: int | None = None,
        has_company: bool = False,
    ) -> None:
        """Take over one finished forward and refresh the status line.

        Args:
            tally: its calls.
            density_sums: of its sparse calls, by block.
            started: what `start_forward` gave.
            layout: its tokens, None if unknown.
            num_steps: that the sampler takes, None if unknown.
            has_company: whether kernels were compiled beside it, which makes it slower.
        """
        now = self.clock()
        with self._lock:
            step = self._steps[tally.step]
            self._forwards += 1
            step.forwards += 1
            step.planned += tally.planned
            for block, count in tally.sparse.items():
                self._sparse[tally.step, block] += count
            for (block, reason), count in tally.dense.items():
                self._dense[tally.step, block] += count
                self._reasons[reason] += count
                step.reasons[reason] += count
            for block, total in density_sums.items():
                self._densities[tally.step, block] += total
            self._computed += _computed(tally.sparse.total(), sum(density_sums.values()), layout)
            self._num_steps = num_steps or self._num_steps
            if started is not None:
                seconds = now - started
                step.seconds += seconds
                # Of a forward that does something others do not, the time tells nothing of them.
                does_more = any(each.reason in EXTRA_WORK for _, each in tally.dense)
                if tally.seen and not does_more:
                    dense = self._slowed_seconds if has_company else self._dense_seconds
                    (self._sparse_seconds if tally.sparse else dense).append(seconds)
            self._layout = layout or self._layout
            self._seconds = now - (self._started if self._started is not None else now)
            is_due = now - self._last_status >= STATUS_INTERVAL_S
            if not is_due:
                return
            self._last_status = now
            record = self._record("")
        self.show(status_line(record), self.node_id)

    def announce(self) -> None:
        """A run begins: replace what an earlier one has left on the node."""
        self._is_announced = True
        self.show(WAITING, self.node_id)

    @contextmanager
    def compiling(self, preparation: Any = None) -> Iterator[None]:
        """While it is open, kernels that are compiled for a first call show on the node.

        Args:
            preparation: compiles them already, and is waited for; see `calls.Preparation`.
        """
        has_shown = False

        def listener(done: int, total: int) -> None:
            nonlocal has_shown
            has_shown = True
            self.show(COMPILING.format(done=done, total=total), self.node_id)

        if preparation is not None:
            preparation.wait(listener)
        with compile_progress(listener):
            yield
        if has_shown:
            record = self.record()
            self.show(status_line(record) if record.forwards else WAITING, self.node_id)

    def warn_once(self, text: str) -> None:
        """Log a warning that has not been logged in this run; it is part of the record, too."""
        with self._lock:
            is_new = text not in self._said
            self._said[text] = None
        if is_new:
            logger.warning("Rectified SpaAttn: %s", text)

    def finish_run(
        self,
        model_name: str = "",
        ending: Ending = Ending.COMPLETE,
        sigmas: tuple[float, float] | None = None,
    ) -> None:
        """Log the run's one summary line, show the last status, record the run, start over.

        A second time, as after the clone of a second GPU, nothing happens.

        Args:
            model_name: class of the model.
            ending: how the run has ended.
            sigmas: first and last noise level of the sampler's list.
        """
        record = replace(self.record(model_name), ending=ending, sigmas=sigmas)
        if record.forwards or self._is_announced:
            self.show(last_status(record), self.node_id)
        self._is_announced = False
        if record.forwards:
            self.last_run = record
            logger.info("Rectified SpaAttn: %s", log_line(record))
            if self.verbose:
                logger.info("%s%s", REPORT_PREFIX, json.dumps(record.as_dict()))
        self.reset()

    def record(self, model_name: str = "") -> RunRecord:
        """What has been counted so far."""
        with self._lock:
            return self._record(model_name)

    def _record(self, model_name: str) -> RunRecord:
        keys = sorted({*self._sparse, *self._dense}, key=_order)
        cells = {
            key: Cell(
                self._sparse[key],
                self._dense[key],
                self._densities[key] / self._sparse[key] if self._sparse[key] else None,
            )
            for key in keys
        }
        layout = self._layout
        sparse = self._sparse.total()
        steps = tuple(self._step_record(step) for step in sorted(self._steps, key=_step_order))
        return RunRecord(
            model=model_name,
            node_id=self.node_id,
            tokens=None if layout is None else layout.length,
            grid=None if layout is None else layout.grid,
            forwards=self._forwards,
            sparse=sparse,
            dense=self._dense.total(),
            density=sum(self._densities.values()) / sparse if sparse else None,
            seconds=self._seconds,
            reasons=dict(self._reasons.most_common()),
            steps=steps,
            cells=cells,
            sparse_forward_seconds=tuple(self._sparse_seconds),
            # Without another, the shortest of those that were slowed is nearest to the truth.
            dense_forward_seconds=tuple(self._dense_seconds or sorted(self._slowed_seconds)[:1]),
            settings=dict(self.settings),
            warnings=tuple(self._said),
            computed=self._computed / sparse if sparse else None,
            num_steps=self._num_steps,
            kept=tuple(each.kept for each in steps if each.kept is not None),
            reason_steps=dict(
                Counter(
                    reason
                    for step, each in self._steps.items()
                    if step is not None
                    for reason in each.reasons
                )
            ),
        )

    def _step_record(self, step: int | None) -> StepRecord:
        collected = self._steps[step]
        sparse = sum(count for key, count in self._sparse.items() if key[0] == step)
        total = sum(density for key, density in self._densities.items() if key[0] == step)
        return StepRecord(
            step,
            collected.seconds,
            collected.forwards,
            sparse,
            sum(count for key, count in self._dense.items() if key[0] == step),
            total / sparse if sparse else None,
            tuple(collected.reasons.most_common()),
            _kept(collected.planned, sparse, total),
        )


def _kept(planned: Sequence[float], sparse: int, density_sum: float) -> tuple[float, float] | None:
    """Mean kept share that calls were to have, and that they had: 1 for those that were dense."""
    if not planned:
        return None
    count = len(planned)
    return sum(planned) / count, (density_sum + max(count - sparse, 0)) / max(count, sparse)


def _computed(calls: int, density_sum: float, layout: TokenLayout | None) -> float:
    """Sum over sparse calls of the computed share of all pairs, where context is exact."""
    share = 1.0 if layout is None else (layout.video_length / layout.length) ** 2
    return density_sum * share + calls * (1.0 - share)


def _step_order(step: int | None) -> int:
    return -1 if step is None else step


def _order(key: Key) -> tuple[int, str, int]:
    """Sorts by step, kind and index of the block; None comes first."""
    step, (kind, index) = key
    return _step_order(step), kind, -1 if index is None else index
