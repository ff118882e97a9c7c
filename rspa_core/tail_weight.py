"""How much the tail of a head weighs: one factor per head, fitted on its sampled queries.

What stands for the left-out keys of a block is an estimate, and may be off in a whole head: it may
count for too much or too little, or its mean values may cancel where the true ones do not, because
queries pick some of them. The queries that are sampled anyway (see key_groups.py) show it. For each
their full attention o_s is known, and what the call will make of it,

    out_s(τ) = (N_s + τ M_s) / (Z_s + τ W_s)

with N_s, Z_s the sums of weighted values and of weights over the keys that are attended exactly,
M_s and W_s the same over the tail. The factor is the τ of the least Σ_s |out_s(τ) - o_s|², between
`SMALLEST` (no tail: plain sparse attention) and `LARGEST`, by Gauss-Newton steps from τ = 1. A step
that makes it worse does not count, so that it is never worse than 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 2.0**-10
LARGEST = 4.0
STEPS = 8
TINY = 1e-30
WORSE = 1.001
"""A step with more than this many times the least loss so far makes it worse; rounding is below."""


def fitted_weight(
    kept: Tensor, kept_mass: Tensor, tail: Tensor, tail_mass: Tensor, exact: Tensor
) -> Tensor:
    """τ of each head; all fp32, sums and masses of one row relative to the same maximum.

    Args:
        kept: N, `[..., R, D]`.
        kept_mass: Z >= 0, `[..., R]`; Z and W are not both 0.
        tail: M, `[..., R, D]`.
        tail_mass: W >= 0, `[..., R]`.
        exact: o, `[..., R, D]`.

    Returns:
        `[...]`.
    """
    best = weight = torch.ones_like(kept_mass[..., 0])
    least = torch.full_like(weight, torch.inf)
    for _ in range(STEPS + 1):
        factor = weight[..., None]
        total = (kept_mass + factor * tail_mass)[..., None]
        missed = (kept + factor[..., None] * tail) / total - exact
        loss = missed.square().sum((-2, -1))
        best = torch.where(loss <= WORSE * least, weight, best)
        least = torch.minimum(loss, least)
        slope = (tail - (missed + exact) * tail_mass[..., None]) / total
        steepness = slope.square().sum((-2, -1)).clamp(min=TINY)
        step = (slope * missed).sum((-2, -1)) / steepness
        weight = (weight - step).clamp(SMALLEST, LARGEST)
    return best
