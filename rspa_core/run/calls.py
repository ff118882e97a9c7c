"""What one forward is to do, and what has failed in the run it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..config import SparseConfig
from ..layout import TokenLayout
from .probe import ProbeRecorder
from .profile import SparsityProfile
from .record import Block
from .schedule import DenseBlocks

FAILURE_LIMIT = 3
"""After this many failed calls the rest of the run is dense; a missing backend counts as all."""


@dataclass(frozen=True)
class ForwardPlan:
    """What one forward is to do, decided before the model runs.

    Attributes:
        layout: the video tokens, None if they are not known.
        config: how sparse calls are made, None for a dense forward.
        reason: why the forward is dense.
        dense_blocks: blocks that stay dense.
        step, num_steps: index of the sampling step and how many there are, None if unknown.
        profile: sparsity by block in place of the config's, or None.
        probe: what measures this forward's calls, with the config it measures; or None.
    """

    layout: TokenLayout | None
    config: SparseConfig | None
    reason: str = ""
    dense_blocks: DenseBlocks = field(default_factory=DenseBlocks)
    step: int | None = None
    num_steps: int | None = None
    profile: SparsityProfile | None = None
    probe: tuple[ProbeRecorder, SparseConfig] | None = None

    def config_of(self, block: Block) -> SparseConfig | None:
        """How a call of this block is made sparse, None if the profile keeps it dense."""
        sparsity = None if self.profile is None else self.profile.sparsity_of(*block)
        if sparsity is None or self.config is None:
            return self.config
        return replace(self.config, sparsity=sparsity) if sparsity > 0.0 else None


class RunFailures:
    """Failed sparse calls of one run, shared by its forwards.

    Two threads may lose a count to each other: the limit is then met a call later.
    """

    def __init__(self) -> None:
        self.count = 0
        self.final_reason: str | None = None

    def add(self, reason: str, is_final: bool = False) -> None:
        """Note a failure; `final_reason` is set once the rest of the run is to be dense."""
        self.count += 1
        if is_final or self.count >= FAILURE_LIMIT:
            self.final_reason = reason
