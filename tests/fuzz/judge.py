"""What a case came to: the kernels' output against the reference, by an error budget.

Errors are taken by channel, as a share of the channel's largest value: `peak` is the largest of
one output, `mean` the root of the mean square. What they may be is measured on the same inputs:

    budget = FACTOR max(error of dense attention in this dtype, its rounding) + what the mode rounds

Dense attention is compared with that in fp64. Pooled keys in 16 bits, int8 and sums in fp16 round
more than dense attention does; each has a term of its own.

A ranking in other digits may decide a near tie otherwise. Then the other choice is scored: the
reference runs again with the kernels' critical set. If that is within the budget, and if the two
sets are as good as each other by the ranking's own probabilities, the case is a tie. Other
decisions (the gain test of "paper", groups of keys, the factor of the tail, a step of int8) leave
no record: the reference runs with its inputs, and those of the factor's fit, changed in the last
digits of the ranking, and where its own output changes by as much as the difference, that is a tie
as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rectified_spaattn.kernels.launch import launch
from rectified_spaattn.rspa_core import reference
from rectified_spaattn.rspa_core.attention import dense_attention
from rectified_spaattn.rspa_core.order import split_sequence
from rectified_spaattn.rspa_core.quantisation import rotated, smoothing_shift
from rectified_spaattn.rspa_core.ranking import block_probs
from rectified_spaattn.rspa_core.rectification import TAIL_VARIANCE_CAP
from rectified_spaattn.rspa_core.reference import reference_attention

from .cases import Case

Verdict = Literal["close", "tie of blocks", "tie", "FAULT"]

FACTOR = 2.0
TIE = {torch.float32: 1e-4, torch.float16: 5e-4, torch.bfloat16: 5e-4}
"""Relative difference of probabilities that the ranking's arithmetic leaves open."""
LAST_DIGIT = {torch.float32: 2.0**-20, torch.float16: 2.0**-15, torch.bfloat16: 2.0**-15}
TRIALS = 12
SPREAD_FACTOR = 2.0


@dataclass(frozen=True)
class Error:
    """Largest error and root of the mean square, as shares of the channels' largest values."""

    peak: float
    mean: float

    def over(self, budget: Error) -> float:
        """How many times the budget this is; 1 and less is within. NaN counts as infinite."""
        ratio = max(self.peak / budget.peak, self.mean / budget.mean)
        return ratio if ratio == ratio else float("inf")


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        verdict: "close": within the budget at once.
        over: error over budget; of a tie, that of the choice that explains it.
        note: for a fault, what is wrong.
    """

    verdict: Verdict
    over: float
    note: str = ""


def judge_all(
    cases: Iterable[Case], device: torch.device, end: float
) -> list[tuple[Case, Outcome, float]]:
    """Each case with its outcome and the seconds it took; none begins at `time.time() >= end`."""
    judged = []
    for case in cases:
        start = time.time()
        if start >= end:
            break
        judged.append((case, judge(case, device), time.time() - start))
    return judged


def judge(case: Case, device: torch.device) -> Outcome:
    """Run one case on the device and say, on the CPU, what its output is worth."""
    layout, config = case.layout, case.config
    try:
        q, k, v = case.tensors(device)
        copies = [x.clone() for x in (q, k, v)]
        with poisoned():
            out, counts, mask, _ = launch(
                q, k, v, layout, config, case.kernel_tile, True, chunk_heads=case.chunk
            )
        is_unchanged = all(map(torch.equal, (q, k, v), copies))
        dense = dense_error(*copies)
        # Thousands of small operations follow: a CPU does each sooner than it is launched.
        q, k, v, out, counts, mask = (x.cpu() for x in (*copies, out, counts, mask))
    except Exception as error:
        return Outcome("FAULT", float("inf"), f"{type(error).__name__}: {error}".splitlines()[0])
    for problem, is_wrong in (
        ("shape or dtype of the output", out.shape != q.shape or out.dtype != q.dtype),
        (
            "counts are not those of the mask",
            not torch.equal(counts, mask.sum(-1, dtype=torch.int32)),
        ),
        ("inputs were written", not is_unchanged),
        ("values that are not finite", not bool(out.isfinite().all())),
    ):
        if is_wrong:
            return Outcome("FAULT", float("inf"), problem)
    budget = budget_of(case, q, k, v, dense)
    expected, critical = reference_attention(q, k, v, layout, config)
    error = error_of(out, expected, v)
    chosen = mask.bool()
    if torch.equal(chosen, critical):
        if error.over(budget) <= 1.0:
            return Outcome("close", error.over(budget))
        verdict: Verdict = "tie"
    else:
        verdict = "tie of blocks"
        gap = gap_of(q, k, chosen, critical, case)
        if gap > TIE[q.dtype]:
            return Outcome("FAULT", float("inf"), f"blocks that are worse by {gap:.1e}")
        expected, _ = reference_attention(q, k, v, layout, config, chosen)
        error = error_of(out, expected, v)
    if error.over(budget) <= 1.0:
        return Outcome(verdict, error.over(budget))
    spread = spread_of(case, q, k, v, expected, chosen)
    excess = ((out.float() - expected.float()).abs() - SPREAD_FACTOR * spread).clamp(min=0.0)
    rest = error_of(excess, torch.zeros_like(excess), v)
    if rest.over(budget) <= 1.0:
        return Outcome("tie", rest.over(budget))
    return Outcome("FAULT", error.over(budget), f"error {error.peak:.1e}, budget {budget.peak:.1e}")


class poisoned:
    """While it is open, memory that is handed out holds NaN: a row that is not written shows."""

    def __enter__(self) -> None:
        self._before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self._before)


def error_of(out: Tensor, expected: Tensor, v: Tensor) -> Error:
    """The errors of an output, all `[B, H, N, D]`."""
    largest = v.double().abs().amax(-2, keepdim=True).clamp(min=1e-30)
    difference = (out.double() - expected.double()) / largest
    return Error(float(difference.abs().max()), float(difference.square().mean().sqrt()))


def dense_error(q: Tensor, k: Tensor, v: Tensor) -> Error:
    """The errors of dense attention; on a GPU torch makes fp32 of three products of tf32, too."""
    exact = dense_attention(q.double(), k.double(), v.double())
    return error_of(dense_attention(q, k, v), exact, v)


def budget_of(case: Case, q: Tensor, k: Tensor, v: Tensor, dense: Error) -> Error:
    """What the errors of this case may be, with those of dense attention.

    The kernels multiply fp32 as fp32, or as three products of tf32. What remains is the order of
    sums, 2^x by an approximation of two units in the last place, and the rounding of a logit, which
    grows with it; one of the tail holds more than a score. Tensor cores cut sums off instead of
    rounding them: where all channels have one sign, each of 3 D / 8 steps loses half a unit of the
    sum so far, which is half the score on average. What all this makes of the factor of the tail is
    left to `spread_of`.
    """
    dtype, tile = q.dtype, case.kernel_tile
    rounding = torch.finfo(dtype).eps
    # Rounding of the output and of weights, where dense attention happens to have next to none.
    peak, mean = max(dense.peak, rounding), max(dense.mean, rounding / 8)
    if dtype == torch.float32:
        logit = scores_of(q, k)
        if case.rectification == "precise":
            logit += math.log(case.kv_block) + TAIL_VARIANCE_CAP
        cut_off = 3 * q.shape[-1] / 16 * 2.0**-24
        peak, mean = max(peak, 4e-6 + cut_off * logit), max(mean, 1e-6 + 5e-8 * logit)
    if case.rectification == "precise":
        # Pooled keys in the dtype of the inputs: each rounding moves a logit, at random.
        moved = rounding * noise_of(q, k)
        peak, mean = peak + moved, mean + moved / 4
    if tile.half_sums:  # values with one scale for a block, sums of weights up to 1 in fp16
        half = torch.finfo(torch.float16).eps
        peak, mean = peak + 4 * half, mean + half
    if tile.int8:
        # Of products with queries of other digits: an integer next to a half goes either way.
        step = int8_step(q, k)
        peak, mean = peak + step, mean + step / 64
    return Error(FACTOR * peak, FACTOR * mean)


def scores_of(q: Tensor, k: Tensor) -> float:
    """The largest score there may be: c |q| |k|."""
    longest = q.float().norm(dim=-1).amax(-1) * k.float().norm(dim=-1).amax(-1)
    return float(longest.max()) * q.shape[-1] ** -0.5


def noise_of(q: Tensor, k: Tensor) -> float:
    """How far rounding of keys by 1 of their size moves a score, at random: c √Σ(q_d k_d)²."""
    squares = (q.float().square() @ k.float().square().mT).amax()
    return float(squares.sqrt()) * q.shape[-1] ** -0.5


def int8_step(q: Tensor, k: Tensor) -> float:
    """What one step of one channel of a rounded key moves a score by, at most."""
    shift = smoothing_shift(k)[..., None, :]
    queries, keys = rotated(q.float()), rotated(k.float() - shift)
    return float(queries.abs().max() * keys.abs().max()) / 127 * q.shape[-1] ** -0.5


def gap_of(q: Tensor, k: Tensor, chosen: Tensor, critical: Tensor, case: Case) -> float:
    """How much worse the worst choice of blocks is than the reference's, as a share of its mass.

    Of rows with another number of blocks: how far the mass of the smaller number is from `top_p`.
    """
    worst, config = 0.0, case.config
    for b, h in (chosen != critical).any(-1).any(-1).nonzero().tolist():
        video_q, _ = split_sequence(q[b, h].float(), case.layout, config.order)
        video_k, context_k = split_sequence(k[b, h].float(), case.layout, config.order)
        probs, _ = block_probs(video_q, video_k, context_k, config)
        ours, theirs = chosen[b, h], critical[b, h]
        for row in (ours != theirs).any(-1).nonzero().flatten().tolist():
            p, numbers = probs[row].double(), (int(ours[row].sum()), int(theirs[row].sum()))
            if numbers[0] == numbers[1]:
                # One swap is a tie if the blocks are alike; equal masses of different ones are not.
                gained = p[ours[row] & ~theirs[row]].sort().values
                lost = p[theirs[row] & ~ours[row]].sort().values
                gap = ((gained - lost).abs() / lost.clamp(min=1e-12)).max()
            else:
                mass = p.sort(descending=True).values.cumsum(0)
                edges = mass[min(numbers) - 1 : max(numbers) - 1]
                gap = (edges - config.top_p).abs().max() / max(config.top_p, 1e-12)
            worst = max(worst, float(gap))
    return worst


def spread_of(
    case: Case, q: Tensor, k: Tensor, v: Tensor, expected: Tensor, chosen: Tensor
) -> Tensor:
    """By how much the reference's own output changes with the last digits of its inputs, fp32.

    Those of the fit of the tail's factor are changed, too: where the sampled queries attend next to
    nothing of the tail, rounding of their sums in fp32 moves the factor by 1e-4 and more, the same
    way for all inputs that are alike, and with it the rows that attend more of the tail.
    """
    digit, generator = LAST_DIGIT[q.dtype], torch.Generator().manual_seed(case.seed)

    def moved(x: Tensor) -> Tensor:
        return x * (1.0 + digit * torch.randn(x.shape, generator=generator))

    layout, config, fit = case.layout, case.config, reference.fitted_weight
    spread = torch.zeros_like(expected, dtype=torch.float32)
    reference.fitted_weight = lambda *sums: fit(*map(moved, sums))
    try:
        for _ in range(TRIALS):
            inputs = moved(q.float()), moved(k.float()), v.float()
            other, _ = reference_attention(*inputs, layout, config, chosen)
            spread = torch.maximum(spread, (other - expected.float()).abs())
    finally:
        reference.fitted_weight = fit
    return spread
