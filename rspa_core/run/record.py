"""One sampling run as it was: calls, densities and times by step and block. Plain data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from statistics import fmean, median_low
from typing import Any

from .reasons import DenseReason, Reason

Block = tuple[str, int | None]
"""(kind, index) of a transformer block; the index is None where the host does not say."""

MIN_SPARSE_FORWARDS = 2
"""A speed-up is told from this many sparse forwards: the first compiles the kernels."""
MIN_DENSE_FORWARDS = 2
"""With fewer dense forwards than this a speed-up is told as a rough one: the first warms up."""
SIGMA_TOLERANCE = 1e-4
SAME_SHARE = 1e-3


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
        step: its index, from 0; None where the sampler's sigmas are unknown.
        seconds: in the model, over all forwards of the step.
        forwards: model calls; with guidance often two.
        sparse, dense: attention calls over the video.
        density: mean kept share of block pairs of the sparse calls, None without any.
        reasons: (why dense, calls), most frequent first.
        kept: mean kept share of block pairs, (planned, reached), over the calls that the schedule
            made sparse or a ramp dense; None without any.
    """

    step: int | None
    seconds: float
    forwards: int
    sparse: int
    dense: int
    density: float | None
    reasons: tuple[tuple[DenseReason, int], ...]
    kept: tuple[float, float] | None = None


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
        computed: of sparse calls, the mean computed share of all pairs of tokens, with the context,
            which is exact; None without any.
        num_steps: that the sampler takes, None if unknown.
        reason_steps: in how many steps calls were dense for a reason.
        sigmas: first and last noise level of the sampler's list, None if unknown.
        earlier_nodes: `node_id` of the runs that this one adds to its own.
        kept: that of each step that has one.
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
    computed: float | None = None
    num_steps: int | None = None
    reason_steps: dict[DenseReason, int] = field(default_factory=dict)
    sigmas: tuple[float, float] | None = None
    earlier_nodes: tuple[str | None, ...] = ()
    kept: tuple[tuple[float, float], ...] = ()

    @property
    def planned(self) -> float | None:
        """Kept share that the schedule had on average over the steps, None without any."""
        return fmean(planned for planned, _ in self.kept) if self.kept else None

    @property
    def reached(self) -> float | None:
        """What of it was computed, with the calls that stayed dense for other reasons."""
        return fmean(reached for _, reached in self.kept) if self.kept else None

    @property
    def keeps_alike(self) -> bool:
        """Whether all steps were to keep the same."""
        shares = [planned for planned, _ in self.kept]
        return not shares or max(shares) - min(shares) < SAME_SHARE

    @property
    def nodes(self) -> tuple[str | None, ...]:
        """`node_id` of each run that this one adds up."""
        return (*self.earlier_nodes, self.node_id)

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
        """Times faster per forward, None unless there are enough forwards to tell."""
        return speedup(self.sparse_forward_seconds, self.dense_forward_seconds)

    @property
    def is_rough(self) -> bool:
        """Whether what dense forwards take is known from too few of them."""
        return len(self.dense_forward_seconds) < MIN_DENSE_FORWARDS

    @property
    def full_seconds(self) -> float | None:
        """What full attention would have taken in place of `seconds`; None where it is not known.

        The sparse forwards are replaced by median dense ones. What the probe has measured is no
        forward to compare with.
        """
        dense = self.dense_step_seconds
        if self.speedup is None or dense is None:
            return None
        if any(each.reason is Reason.PROBED for each in self.reasons):
            return None
        return self.seconds + sum(dense - each for each in self.sparse_forward_seconds)

    def continues(self, earlier: RunRecord) -> bool:
        """Whether this run goes on where another stopped, as the second expert of Wan 2.2 does."""
        if self.sigmas is None or earlier.sigmas is None or earlier.sigmas[1] <= 0.0:
            return False
        if not math.isclose(self.sigmas[0], earlier.sigmas[1], rel_tol=SIGMA_TOLERANCE):
            return False
        mine, other = ((each.model, each.tokens, each.grid) for each in (self, earlier))
        return mine == other and earlier.ending is Ending.COMPLETE

    def as_dict(self) -> dict[str, Any]:
        """JSON data; `calls` rows are [step, kind, index, sparse, dense], `densities` theirs.

        Steps and blocks are indices, as `first_step` says; pictures and texts count steps from 1.
        Reasons are counted by their texts, and by their kinds' stable names.
        """
        codes: Counter[str] = Counter()
        for reason, count in self.reasons.items():
            codes[reason.code] += count
        return {
            "model": self.model,
            "ending": self.ending.name.lower(),
            "node": self.node_id,
            "first_step": 0,
            "tokens": self.tokens,
            "grid": None if self.grid is None else list(self.grid),
            "forwards": self.forwards,
            "sparse": self.sparse,
            "dense": self.dense,
            "density": self.density,
            "computed": self.computed,
            "planned": self.planned,
            "reached": self.reached,
            "seconds": round(self.seconds, 3),
            "reasons": _by_text(self.reasons.items()),
            "reason_codes": dict(codes),
            "sparse_forward_seconds": self.sparse_step_seconds,
            "dense_forward_seconds": self.dense_step_seconds,
            "speedup": self.speedup,
            "full_seconds": None if self.full_seconds is None else round(self.full_seconds, 3),
            "steps": [
                {
                    "step": each.step,
                    "seconds": round(each.seconds, 3),
                    "forwards": each.forwards,
                    "sparse": each.sparse,
                    "dense": each.dense,
                    "density": each.density,
                    "planned": None if each.kept is None else each.kept[0],
                    "reached": None if each.kept is None else each.kept[1],
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
    """Median dense over median sparse forward, None unless there are enough to tell."""
    if len(sparse_seconds) < MIN_SPARSE_FORWARDS or not dense_seconds:
        return None
    sparse = median_low(sparse_seconds)
    return median_low(dense_seconds) / sparse if sparse > 0.0 else None


def joined(earlier: RunRecord, later: RunRecord) -> RunRecord:
    """Two runs of one render as one, without steps and cells, whose numbers begin anew in each."""
    sparse = earlier.sparse + later.sparse
    reason_steps = Counter(earlier.reason_steps)
    reason_steps.update(later.reason_steps)
    both = earlier.num_steps, later.num_steps
    reasons = Counter(earlier.reasons)
    reasons.update(later.reasons)
    assert earlier.sigmas is not None
    assert later.sigmas is not None
    return replace(
        later,
        forwards=earlier.forwards + later.forwards,
        sparse=sparse,
        dense=earlier.dense + later.dense,
        density=_mean(earlier, later, "density"),
        computed=_mean(earlier, later, "computed"),
        num_steps=None if both[0] is None or both[1] is None else both[0] + both[1],
        reason_steps=dict(reason_steps),
        seconds=earlier.seconds + later.seconds,
        reasons=dict(reasons.most_common()),
        steps=(),
        cells={},
        sparse_forward_seconds=earlier.sparse_forward_seconds + later.sparse_forward_seconds,
        dense_forward_seconds=earlier.dense_forward_seconds + later.dense_forward_seconds,
        warnings=tuple(dict.fromkeys(earlier.warnings + later.warnings)),
        sigmas=(earlier.sigmas[0], later.sigmas[1]),
        earlier_nodes=(*earlier.nodes, *later.earlier_nodes),
        kept=earlier.kept + later.kept,
    )


def _mean(earlier: RunRecord, later: RunRecord, name: str) -> float | None:
    """Mean of a number over the sparse calls of both runs."""
    pairs = [(getattr(each, name), each.sparse) for each in (earlier, later)]
    known = [(value, count) for value, count in pairs if value is not None and count]
    calls = sum(count for _, count in known)
    return sum(value * count for value, count in known) / calls if calls else None


def _by_text(reasons: Iterable[tuple[DenseReason, int]]) -> dict[str, int]:
    return {reason.text: count for reason, count in reasons}
