"""Tables of a probe as a run would leave them, made up."""

from __future__ import annotations

import math
import random

from rectified_spaattn.rspa_core import SparseConfig
from rectified_spaattn.rspa_core.run.probe import (
    Block,
    ProbeOutcome,
    ProbeTable,
    make_outcome,
    model_blocks,
)
from rectified_spaattn.rspa_core.run.profile import ModelFingerprint

SPARSITIES = (0.5, 0.65, 0.75, 0.85, 0.92)
GRID = (21, 30, 52)
CONFIG = SparseConfig(0.75, rectification="precise", tail_keys=4)
WAN_SMALL = ModelFingerprint("Wan", 30, 0, 1536, 12)
WAN = ModelFingerprint("Wan", 40, 0, 5120, 40)
HUNYUAN = ModelFingerprint("HunyuanVideo", 20, 40, 3072, 24)
TINY = ModelFingerprint("Wan", 2, 0, 256, 2)


def make_table(
    model: ModelFingerprint,
    steps: tuple[int, ...] = (1, 10, 19),
    unmeasured: tuple[Block, ...] = (),
    scale: float = 1.0,
) -> ProbeTable:
    """Errors that rise with sparsity and fall over the steps; `scale` multiplies them."""
    luck = random.Random(0)
    blocks = tuple(block for block in model_blocks(model) if block not in unmeasured)
    base = [0.05 * scale * math.exp(luck.gauss(0.0, 0.5)) for _ in blocks]
    errors = tuple(
        tuple(
            tuple(
                each * math.exp(4 * (s - 0.75)) * (1.6 - 0.6 * at / len(steps)) for s in SPARSITIES
            )
            for each in base
        )
        for at in range(len(steps))
    )
    density = tuple(1.03 - s for s in SPARSITIES)
    densities = ((density,) * len(blocks),) * len(steps)
    return ProbeTable(steps, blocks, SPARSITIES, errors, densities)


def make(
    model: ModelFingerprint = WAN,
    wanted_error: float = 0.05,
    config: SparseConfig = CONFIG,
    name: str = "",
    **table: object,
) -> ProbeOutcome:
    """The outcome of `make_table`."""
    return make_outcome(make_table(model, **table), model, config, GRID, wanted_error, name)
