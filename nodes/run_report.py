"""What really happened in one sampling run: sparse calls, dense calls with reasons, density.

A `ForwardTally` counts one model call and belongs to the thread that runs it. The `RunReport` of a
model clone collects them under a lock, shows the status line on the node and logs one summary line
when ComfyUI cleans up after sampling. Nothing here waits for the GPU except `ForwardTally.finish`,
once per forward that had sparse calls.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("rectified_spaattn")

STATUS_INTERVAL_S = 0.25
"""The status line is sent at most this often; the last one of a run always is."""
REPORT_PREFIX = "RSPA_REPORT "

Block = tuple[str, int | None]
"""(block_type, block_index) of an attention call; the index is None where the core has none."""


class ForwardTally:
    """Attention calls of one forward.

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
        # Allocated here, before the transformer runs: newer cores may record the allocations of a
        # block for replay, and these tensors outlive the block that writes to them.
        self._density_sum = torch.zeros((), dtype=torch.float32, device=device)
        self._probe = torch.zeros((), dtype=torch.float32, device=device)

    def add_sparse(self, block: Block, out: Tensor, density: Tensor) -> None:
        """Count a sparse call; `density` is a 0-dim tensor on the device, read later."""
        if out.dtype == torch.float16:
            # HunyuanVideo blocks run nan_to_num in fp16, so the forward's result cannot tell.
            self._probe.add_(out.sum(dtype=torch.float32))
        self._density_sum.add_(density)
        self.sparse[block] += 1

    def add_dense(self, block: Block, reason: str) -> None:
        self.dense[block, reason] += 1

    @property
    def seen(self) -> bool:
        """Whether any call over the video tokens came by."""
        return bool(self.sparse or self.dense)

    def finish(self, output: Any) -> tuple[float, bool]:
        """Wait for the device once: (sum of the densities, whether all values are finite)."""
        probe = self._probe
        if isinstance(output, Tensor):
            # A sum is finite only if every addend is, and reads the latent once.
            probe = probe + output.sum(dtype=torch.float32).to(probe.device)
        density_sum, probed = torch.stack((self._density_sum, probe)).tolist()
        return density_sum, math.isfinite(probed)


@dataclass
class RunReport:
    """Counts of one sampling run on one model clone; `finish_run` logs and clears them.

    Attributes:
        node_id: where the status line goes, None for nowhere.
        verbose: also log every forward and, at the end, the counts as one JSON line.
        send_status: shows (text, node_id); injected so that no server is needed.
    """

    node_id: str | None = None
    verbose: bool = False
    send_status: Callable[[str, str | None], None] = lambda text, node_id: None
    clock: Callable[[], float] = time.perf_counter
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; a run that was cut off before its cleanup must not leak in."""
        with self._lock:
            self.forwards = 0
            self.sparse: Counter[tuple[int | None, Block]] = Counter()
            self.dense: Counter[tuple[int | None, Block]] = Counter()
            self.reasons: Counter[str] = Counter()
            self.density_sum = 0.0
            self._started: float | None = None
            self._seconds = 0.0
            self._last_status = -math.inf
            self._said: set[str] = set()

    def start_forward(self) -> None:
        with self._lock:
            if self._started is None:
                self._started = self.clock()

    def add_forward(self, tally: ForwardTally, density_sum: float) -> None:
        """Take over one finished forward and refresh the status line."""
        with self._lock:
            self.forwards += 1
            for block, count in tally.sparse.items():
                self.sparse[tally.step, block] += count
            for (block, reason), count in tally.dense.items():
                self.dense[tally.step, block] += count
                self.reasons[reason] += count
            self.density_sum += density_sum
            now = self.clock()
            self._seconds = now - (self._started if self._started is not None else now)
            is_due = now - self._last_status >= STATUS_INTERVAL_S
            if is_due:
                self._last_status = now
            text = self.status_text()
        if is_due:
            self.send_status(text, self.node_id)

    def warn_once(self, text: str) -> None:
        """Log a warning that has not been logged in this run."""
        with self._lock:
            is_new = text not in self._said
            self._said.add(text)
        if is_new:
            logger.warning("Rectified SpaAttn: %s", text)

    def finish_run(self, model_name: str = "") -> None:
        """Log the run's one summary line, show the last status, and start over."""
        with self._lock:
            forwards, summary = self.forwards, self.status_text(full_reasons=True)
            status, counts = self.status_text(), self.as_dict()
        if forwards:
            self.send_status(status, self.node_id)
            logger.info("Rectified SpaAttn: %s, %d forwards", summary, forwards)
            if self.verbose:
                logger.info("%s%s", REPORT_PREFIX, json.dumps({"model": model_name, **counts}))
        self.reset()

    @property
    def density(self) -> float | None:
        """Mean density of the sparse calls, None without any."""
        calls = self.sparse.total()
        return self.density_sum / calls if calls else None

    def status_text(self, full_reasons: bool = False) -> str:
        """ "sparse 304 / dense 16 (schedule 16) · density 0.27 · 12.3 s" """
        parts = [f"sparse {self.sparse.total()} / dense {self.dense.total()}"]
        if self.reasons:
            shown = self.reasons if full_reasons else _by_category(self.reasons)
            listed = ", ".join(f"{reason} {count}" for reason, count in shown.most_common())
            parts[0] += f" ({listed})"
        if self.density is not None:
            parts.append(f"density {self.density:.2f}")
        parts.append(f"{self._seconds:.1f} s")
        return " · ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON data; `calls` rows are [step, type, index, sparse, dense]."""
        keys = sorted({*self.sparse, *self.dense}, key=_order)
        return {
            "node": self.node_id,
            "forwards": self.forwards,
            "sparse": self.sparse.total(),
            "dense": self.dense.total(),
            "reasons": dict(self.reasons),
            "density": self.density,
            "seconds": round(self._seconds, 3),
            "calls": [
                [step, *block, self.sparse[step, block], self.dense[step, block]]
                for step, block in keys
            ],
        }


def _order(key: tuple[int | None, Block]) -> tuple[int, str, int]:
    """Sorts by step, block type, block index; None comes first."""
    step, (block_type, index) = key
    return (-1 if step is None else step, block_type, -1 if index is None else index)


def _by_category(reasons: Counter[str]) -> Counter[str]:
    """Merge the schedule's reasons into one: the node's status line is short."""
    merged: Counter[str] = Counter()
    for reason, count in reasons.items():
        is_schedule = reason.startswith("schedule:")
        merged["schedule" if is_schedule else reason] += count
    return merged
