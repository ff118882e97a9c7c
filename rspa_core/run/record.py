"""One sampling run as it was: calls, densities and times by step and block. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from statistics import median_low
from typing import Any

from .reasons import DenseReason

Block = tuple[str, int | None]
"""(kind, index) of a transformer block; the index is None where the host does not say."""

MIN_FORWARDS = 2
"""A speed-up is told from this many forwards of either kind: the first of a kind warms up."""


class Ending(Enum):
    """How a sampling run has ended. The value is the text for people."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "ended by an error"


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
    reasons: tuple[tuple[DenseReason, int], ...]


@dataclass(frozen=True)
class RunRecord:
    """A finished sampling run on one model clone.

    Attributes:
        model: class name of the model.
        node_id: the node that installed sparse attention, None in other hosts.
        tokens, grid: of the last forward: attention sequence and video (T, H, W); None if unknown.
        forwards, sparse, dense, density, seconds, reasons: over the whole run.
        steps: in their order.
        cells: by (step, block).
        sparse_forward_seconds, dense_forward_seconds: of every forward with sparse calls, and of
            those whose calls over the video were all dense.
        settings: what was asked for, plain JSON values.
        warnings: in the order in which they were given.
        ending: how the run has ended; of one that goes on, COMPLETE.
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
    reasons: dict[DenseReason, int]
    steps: tuple[StepRecord, ...]
    cells: dict[tuple[int | None, Block], Cell]
    sparse_forward_seconds: tuple[float, ...] = ()
    dense_forward_seconds: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    ending: Ending = Ending.COMPLETE

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
        """JSON data; `calls` rows are [step, kind, index, sparse, dense], `densities` theirs.

        Reasons are counted by their texts, and by their kinds' stable names.
        """
        codes: Counter[str] = Counter()
        for reason, count in self.reasons.items():
            codes[reason.code] += count
        return {
            "model": self.model,
            "ending": self.ending.name.lower(),
            "node": self.node_id,
            "tokens": self.tokens,
            "grid": None if self.grid is None else list(self.grid),
            "forwards": self.forwards,
            "sparse": self.sparse,
            "dense": self.dense,
            "density": self.density,
            "seconds": round(self.seconds, 3),
            "reasons": _by_text(self.reasons.items()),
            "reason_codes": dict(codes),
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
                    "reasons": _by_text(each.reasons),
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


def _by_text(reasons: Iterable[tuple[DenseReason, int]]) -> dict[str, int]:
    return {reason.text: count for reason, count in reasons}
