"""The ramp: noisy steps keep more than clean ones, at the same mean over the steps.

What is lost where the video is noise grows with every step that follows. What is lost later stays
as it is, but a long step writes more of it into the video than a short one. The weight of a step
has a term for either. Where steps are few there is less to grow, and the ramp is gentler. Fitted to
errors of a trained model (docs/notes/fidelity.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ..config import MAX_SPARSITY

DENSE_FROM = 0.95
"""A step that would keep more than this is dense: that costs little more and loses nothing."""
MIN_KEPT = round(1.0 - MAX_SPARSITY, 6)
NOISE_POWER, LENGTH_POWER = 6.0, 0.5
MIN_LENGTH = 1e-4
MANY_STEPS = 20
"""From so many steps of the whole sampling on the ramp has its full strength."""
BISECTIONS = 40


def ramp_weights(levels: Sequence[float], strength: float) -> list[float]:
    """How much each step of a sampling keeps beside the others, in any unit; above 0.

    Args:
        levels: noise levels at which the steps begin, 1 (pure noise) to 0, and the last one ends.
        strength: of the ramp, 0 (every step the same) to 1.
    """
    count = len(levels) - 1
    strength *= min(1.0, math.sqrt(count / MANY_STEPS))
    return [_weight(*pair) ** strength for pair in pairwise(levels)]


def _weight(start: float, end: float) -> float:
    noise = min(max(start, 0.0), 1.0)
    length = min(max(abs(start - end), MIN_LENGTH), 1.0)
    return noise**NOISE_POWER + length**LENGTH_POWER


def ramped(kept: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Kept shares of the steps, in proportion to their weights; their mean is that of `kept`.

    What a step may not keep, because it is dense already, the others keep. The mean is missed only
    where all of them are cut.

    Args:
        kept: shares without the ramp, above 0 and below 1.
        weights: of each step, above 0.

    Returns:
        Shares in the order of `kept`: 1.0 for a dense step, the others from 0.02 to 0.95.
    """
    weighted = [share * weight for share, weight in zip(kept, weights, strict=True)]
    shares = [1.0] * len(weighted)
    rest = list(range(len(weighted)))
    while rest:
        scale = _scale([weighted[i] for i in rest], sum(kept) - (len(weighted) - len(rest)))
        most = max(rest, key=lambda i: weighted[i])
        if scale * weighted[most] <= DENSE_FROM:
            break
        rest.remove(most)
    for i in rest:
        shares[i] = max(scale * weighted[i], MIN_KEPT)
    return shares


def _scale(weights: Sequence[float], total: float) -> float:
    """The factor with which the weights, raised to `MIN_KEPT`, sum up to `total`."""
    low, high = 0.0, max(total, 0.0) / min(weights)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if sum(max(middle * each, MIN_KEPT) for each in weights) <= total:
            low = middle
        else:
            high = middle
    return low
