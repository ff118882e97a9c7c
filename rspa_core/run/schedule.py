"""Which sparsity applies when: curves and a ramp over the sampling, lists of steps and of blocks.

"Percent" is the sampling progress as a share from 0 to 1; "step" is an interval of the sampler's
own list of sigmas, counted from 0 here and from 1 in the texts that people write and read. A host
says where a forward is (`Position`).

The ramp: noisy steps keep more than clean ones, at the same mean over the steps. What is lost where
the video is noise grows with every step that follows. What is lost later stays as it is, but a long
step writes more of it into the video than a short one. The weight of a step has a term for either.
Where steps are few there is less to grow, and the ramp is gentler. Fitted to errors of a trained
model (docs/notes/fidelity.md).
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ..config import MAX_SPARSITY, ConfigError, check_choice, check_number
from .reasons import DenseReason, Reason, why

CURVES = ("constant", "linear", "cosine")

# Sigmas are fp32 and percents come from a bisection over them: 1e-5 of the range is no difference.
PERCENT_TOLERANCE = 1e-5
# A sampler may evaluate at a sigma that differs from its list in the last bits.
SIGMA_TOLERANCE = 1e-6
BISECTIONS = 40
MAX_UNSEEN_STEPS = 1000
"""Assumed before or behind a sampler that takes a part of the sampling, at most."""

DENSE_FROM = 0.95
"""A step of a ramp that would keep more is dense: that costs little more and loses nothing."""
MIN_KEPT = round(1.0 - MAX_SPARSITY, 6)
NOISE_POWER, LENGTH_POWER = 6.0, 0.5
MIN_LENGTH = 1e-4
MANY_STEPS = 20
"""From so many steps of the whole sampling on the ramp has its full strength."""

WHOLE_NUMBER = r"-?[0-9]{1,9}"
"""Of a text: no step or block has more digits, and Python does not read thousands of them."""
_BLOCK_ITEM = re.compile(rf"(?:(single|double)\s+)?({WHOLE_NUMBER})(?:\s*-\s*({WHOLE_NUMBER}))?")


@dataclass(frozen=True)
class Course:
    """Where the steps of a whole sampling begin, also those that another sampler takes.

    Attributes:
        percents: sampling progress, 0 to 1.
        levels: noise levels of a flow model, 1 (all noise) to 0, and where the last step ends.
        first: which of them is the first that this sampler takes.
    """

    percents: tuple[float, ...]
    levels: tuple[float, ...]
    first: int = 0


def even_course(num_steps: int, shift: float = 1.0) -> Course:
    """The course of a sampler that takes all steps, evenly spaced before a flow model's `shift`."""
    places = [step / num_steps for step in range(num_steps + 1)]
    levels = [shift * (1.0 - each) / (1.0 + (shift - 1.0) * (1.0 - each)) for each in places]
    return Course(tuple(places[:-1]), tuple(levels))


@dataclass(frozen=True)
class Position:
    """Where in the sampling a forward is, as far as its host knows; None for what it does not.

    Attributes:
        step: from 0.
        num_steps: that the sampler takes.
        percent: sampling progress, 0 (all noise) to 1 (clean): of the steps, or of the noise where
            the sampler takes a part of the sampling (`SigmaSteps.percent_at`).
        course: all steps of the sampling, which a ramp is about.
    """

    step: int | None = None
    num_steps: int | None = None
    percent: float | None = None
    course: Course | None = None

    @property
    def place(self) -> int | None:
        """Of the step in its course; None if either is not known."""
        if self.step is None or self.course is None:
            return None
        place = self.course.first + self.step
        return place if place < len(self.course.percents) else None


@dataclass(frozen=True)
class SparsitySchedule:
    """Sparsity as a function of the sampling progress.

    Attributes:
        start_sparsity, end_sparsity: values of the curve at `start_percent` and `end_percent`.
        curve: "constant" (start_sparsity throughout), "linear" or "cosine" (flat at both ends).
        start_percent, end_percent: the curve is active from one to the other, ends included;
            outside, attention is dense.
        steps: sparsity per step, None for a dense one; the last entry repeats. Wins over the curve
            and over the percents.
        dense_steps: steps that stay dense in any case, from 0; negative ones count from the end.
        ramp: how much more noisy steps keep than clean ones, 0 (what the curve says) to 1. The
            mean kept share over the steps from `start_percent` to `end_percent` stays that of the
            curve; a step that would keep nearly all is dense. Of a sampling in several parts it is
            the mean over all of them. Not for `steps`.

    Raises:
        ConfigError: a field is out of range.
    """

    start_sparsity: float
    end_sparsity: float
    curve: str = "linear"
    start_percent: float = 0.0
    end_percent: float = 1.0
    steps: tuple[float | None, ...] = ()
    dense_steps: tuple[int, ...] = ()
    ramp: float = 0.0

    def __post_init__(self) -> None:
        check_number("start_sparsity", self.start_sparsity, 0.0, MAX_SPARSITY)
        check_number("end_sparsity", self.end_sparsity, 0.0, MAX_SPARSITY)
        check_choice("curve", self.curve, CURVES)
        check_number("start_percent", self.start_percent, 0.0, 1.0)
        check_number("end_percent", self.end_percent, 0.0, 1.0)
        check_number("ramp", self.ramp, 0.0, 1.0)
        if self.start_percent > self.end_percent:
            allowed = f"a number from 0 to end_percent = {self.end_percent:g}"
            raise ConfigError("start_percent", self.start_percent, allowed)
        for number, entry in enumerate(self.steps, start=1):
            if entry is not None:
                check_number(f"steps, entry {number}", entry, 0.0, MAX_SPARSITY)

    @property
    def has_ramp(self) -> bool:
        """Whether a ramp changes what the steps keep."""
        return self.ramp > 0.0 and not self.steps

    def sparsity_at(self, position: Position, sparsity: float | None = None) -> float | DenseReason:
        """Sparsity of one forward, above 0, or why it is dense.

        `steps` and `dense_steps` do not apply where only the percent is known, and a ramp needs the
        course: without one every step keeps what the curve says.

        Args:
            position: of the forward.
            sparsity: in place of those of the curve or of `steps`, as a profile has it for a block.
        """
        step, num_steps, percent = position.step, position.num_steps, position.percent
        if step is None and percent is None and (self.steps or self.dense_steps):
            return why(Reason.UNKNOWN_STEP)
        if step is not None:
            if num_steps is None and any(each < 0 for each in self.dense_steps):
                return why(Reason.UNKNOWN_STEP)
            if self._is_dense_step(step, num_steps):
                return why(Reason.DENSE_STEP)
        if step is not None and self.steps:
            listed = self.steps[min(step, len(self.steps) - 1)]
            if listed is None:
                return why(Reason.STEP_OFF)
            found = listed if sparsity is None else sparsity
        else:
            place = position.place if self.has_ramp else None
            if place is not None:
                # The step as a whole, also where a sampler evaluates inside it.
                assert position.course is not None
                percent = position.course.percents[place]
            if percent is None:
                if self._depends_on_percent:
                    return why(Reason.UNKNOWN_STEP)
                percent = self.start_percent
            if percent < self.start_percent - PERCENT_TOLERANCE:
                return why(Reason.BEFORE_START, 100 * self.start_percent)
            if percent > self.end_percent + PERCENT_TOLERANCE:
                return why(Reason.AFTER_END, 100 * (1 - self.end_percent))
            found = self._curve_at(percent) if sparsity is None else sparsity
            if place is not None and found > 0.0:
                assert position.course is not None
                kept = self._ramped(position.course, num_steps, sparsity)[place]
                if kept >= 1.0:
                    return why(Reason.RAMP)
                found = round(1.0 - kept, 4)
        return found if found > 0.0 else why(Reason.ZERO_SPARSITY)

    def _ramped(
        self, course: Course, num_steps: int | None, sparsity: float | None
    ) -> tuple[float, ...]:
        """Kept share of each step of a course; 1 also for those that are no part of the ramp."""
        kept = []
        for place, percent in enumerate(course.percents):
            step = place - course.first
            is_own = step >= 0 and (num_steps is None or step < num_steps)
            low, high = self.start_percent - PERCENT_TOLERANCE, self.end_percent + PERCENT_TOLERANCE
            if not low <= percent <= high or (is_own and self._is_dense_step(step, num_steps)):
                kept.append(1.0)
            else:
                kept.append(1.0 - (self._curve_at(percent) if sparsity is None else sparsity))
        return _ramped(tuple(kept), course.levels, self.ramp)

    @property
    def _depends_on_percent(self) -> bool:
        is_flat = self.curve == "constant" or self.start_sparsity == self.end_sparsity
        return not is_flat or self.start_percent > 0.0 or self.end_percent < 1.0

    def _is_dense_step(self, step: int, num_steps: int | None) -> bool:
        from_end = None if num_steps is None else step - num_steps
        return step in self.dense_steps or from_end in self.dense_steps

    def _curve_at(self, percent: float) -> float:
        span = self.end_percent - self.start_percent
        if self.curve == "constant" or span <= 0.0:
            return self.start_sparsity
        share = min(max((percent - self.start_percent) / span, 0.0), 1.0)
        if self.curve == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return self.start_sparsity + share * (self.end_sparsity - self.start_sparsity)


@dataclass(frozen=True)
class DenseBlocks:
    """Transformer blocks that stay dense.

    Attributes:
        ranges: (kind, first, last), both ends included; kind is "double" (the main blocks: all of
            Wan's, HunyuanVideo's two-stream ones) or "single"; negative numbers count from the end.
    """

    ranges: tuple[tuple[str, int, int], ...] = ()

    def contains(self, block_type: str | None, index: int | None, total: int | None) -> bool:
        """Whether block `index` of `total` blocks of this type stays dense.

        Args:
            block_type: "single", or anything else for a main block.
            index: None if the model does not say which block is running: never contained.
            total: None if unknown; negative entries match nothing then.
        """
        if index is None:
            return False
        kind = "single" if block_type == "single" else "double"
        for wanted, first, last in self.ranges:
            if wanted != kind or (total is None and min(first, last) < 0):
                continue
            low = first if first >= 0 else first + (total or 0)
            high = last if last >= 0 else last + (total or 0)
            if low <= index <= high:
                return True
        return False


def parse_steps(text: str) -> tuple[float | None, ...]:
    """Read "off, 0.6, 0.8": sparsity per step, "off" (None) for a dense one; "" and "none": ().

    Raises:
        ConfigError: an entry is neither "off" nor a number from 0 to 0.98.
    """
    allowed = f"'off' or a number from 0 to {MAX_SPARSITY:g}, entries separated by commas"
    entries: list[float | None] = []
    for number, item in _items("steps", text):
        if item.lower() == "off":
            entries.append(None)
            continue
        try:
            value = float(item)
        except ValueError:
            value = math.nan
        if not 0.0 <= value <= MAX_SPARSITY:
            raise ConfigError(f"steps, entry {number}", item, allowed)
        entries.append(value)
    return tuple(entries)


def parse_dense_steps(text: str) -> tuple[int, ...]:
    """Read "1, 2, -1": step numbers from 1, negative ones from the end; "" and "none": ().

    Returns:
        Indices from 0, negative ones as they are.

    Raises:
        ConfigError: an entry is not the number of a step.
    """
    allowed = "a whole number (1 is the first step, -1 the last), entries separated by commas"
    entries: list[int] = []
    for number, item in _items("dense_steps", text):
        index = step_index(item)
        if index is None:
            raise ConfigError(f"dense_steps, entry {number}", item, allowed)
        entries.append(index)
    return tuple(entries)


def step_index(text: str) -> int | None:
    """Index of the step that people call `text`: 0 of "1", -1 of "-1"; None of anything else."""
    if re.fullmatch(WHOLE_NUMBER, text) is None or int(text) == 0:
        return None
    return int(text) - 1 if int(text) > 0 else int(text)


def step_name(index: int | None) -> str:
    """What people call the step of that index: "1" of 0, "-1" of -1, "?" of None."""
    if index is None:
        return "?"
    return str(index + 1 if index >= 0 else index)


def parse_dense_blocks(text: str) -> DenseBlocks:
    """Read "0, 1, -1, single 0-2"; "" and "none" name no block.

    Plain numbers are main blocks, "single" before a number or a range means HunyuanVideo's single
    blocks ("double" is accepted for the main ones); -1 is the last block.

    Raises:
        ConfigError: an entry has another form, or a range runs backwards.
    """
    allowed = (
        "a block number (0 is the first, -1 the last), a range such as 0-2, or either after the "
        "word 'single', entries separated by commas"
    )
    ranges: list[tuple[str, int, int]] = []
    for number, item in _items("dense_blocks", text):
        match = _BLOCK_ITEM.fullmatch(item.lower())
        if match is None:
            raise ConfigError(f"dense_blocks, entry {number}", item, allowed)
        first = int(match[2])
        last = first if match[3] is None else int(match[3])
        if (first < 0) == (last < 0) and first > last:
            raise ConfigError(f"dense_blocks, entry {number}", item, "a range from low to high")
        ranges.append((match[1] or "double", first, last))
    return DenseBlocks(tuple(ranges))


def percent_of_sigma(sigma: float, percent_to_sigma: Callable[[float], Any]) -> float:
    """Smallest percent whose sigma is at most `sigma`, so 0 at the start and 1 at the end.

    Args:
        percent_to_sigma: falling function of the percent, as ComfyUI's `model_sampling` has it.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if float(percent_to_sigma(middle)) <= sigma:
            high = middle
        else:
            low = middle
    return high


def step_of_sigma(sigma: float, sample_sigmas: Sequence[float], current: int = 0) -> int:
    """Index of the interval of `sample_sigmas` that starts at `sigma`, else the one around it.

    Samplers that evaluate between two entries stay in the interval; one that evaluates outside of
    all of them is in the nearest. The entries may fall, rise (inversion) or do both (restarts):
    of several intervals the one nearest to `current` counts, of two as near the later.

    Args:
        sigma: of a model call.
        sample_sigmas: the sampler's list; the last entry is where it ends.
        current: step of the call before.
    """
    pairs = list(pairwise(sample_sigmas))
    if not pairs:
        return 0
    found = [step for step, (start, _) in enumerate(pairs) if _is_same_sigma(start, sigma)]
    if not found:
        outside = [max(min(pair) - sigma, sigma - max(pair), 0.0) for pair in pairs]
        found = [step for step, distance in enumerate(outside) if distance == min(outside)]
    return min(found, key=lambda step: (abs(step - current), -step))


class SigmaSteps:
    """The steps of one sampling, counted along its model calls.

    Sigma alone does not tell steps apart that begin at the same one: there a part of the batch that
    is called again makes the next step. Several threads may ask; a deep copy is this same object.

    Args:
        sample_sigmas: the sampler's list, falling or not.
    """

    def __init__(self, sample_sigmas: Sequence[float]) -> None:
        self.sample_sigmas = tuple(sample_sigmas)
        self._lock = threading.Lock()
        self._step = 0
        self._seen: set[Hashable] = set()
        self._course: Course | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SigmaSteps:
        return self

    @property
    def num_steps(self) -> int:
        """That the sampler takes."""
        return max(len(self.sample_sigmas) - 1, 0)

    def step_at(self, sigma: float, part: Hashable = None) -> int:
        """The step of the next model call.

        Args:
            sigma: of the call.
            part: of the batch that it computes, where one evaluation takes several calls.
        """
        with self._lock:
            step = step_of_sigma(sigma, self.sample_sigmas, self._step)
            if step == self._step and part in self._seen and self._is_repeated(step, sigma):
                step += 1
            if step != self._step:
                self._step = step
                self._seen.clear()
            self._seen.add(part)
            return step

    def percent_at(
        self, sigma: float, step: int | None, percent_to_sigma: Callable[[float], Any]
    ) -> float:
        """Sampling progress at a model call, 0 to 1.

        A sampler that goes all the way from noise to a clean video has done `step / num_steps`,
        whatever its scheduler makes of the sigmas. One of several samplers, or one that begins with
        a video, does not say what share it takes: there it is the progress that the sigma stands
        for.

        Args:
            sigma: of the call.
            step: of the call, None if it is unknown.
            percent_to_sigma: falling function of the percent, as `model_sampling` has it.
        """
        if step is not None and self._is_whole_sampling(percent_to_sigma):
            return step / self.num_steps
        return percent_of_sigma(sigma, percent_to_sigma)

    def course(self, percent_to_sigma: Callable[[float], Any]) -> Course | None:
        """The steps of the whole sampling; None if the list has none.

        A sampler that takes a part of the sampling does not know the other steps. They are taken to
        lie evenly over the progress that is left, as far from one another as its own: what another
        sampler of the same scheduler and shift does.

        Args:
            percent_to_sigma: falling function of the percent, as `model_sampling` has it.
        """
        with self._lock:
            if self._course is None and self.num_steps:
                self._course = self._make_course(percent_to_sigma)
            return self._course

    def _make_course(self, percent_to_sigma: Callable[[float], Any]) -> Course:
        if self._is_whole_sampling(percent_to_sigma):
            percents = [step / self.num_steps for step in range(self.num_steps)]
            return Course(tuple(percents), self.sample_sigmas)
        places = [percent_of_sigma(each, percent_to_sigma) for each in self.sample_sigmas]
        low, high = min(places), max(places)
        distance = (high - low) / self.num_steps
        before = [low * share for share in _shares_of(low, distance)]
        behind = [high + (1.0 - high) * share for share in _shares_of(1.0 - high, distance)]
        levels = [float(percent_to_sigma(each)) for each in before]
        levels += self.sample_sigmas
        if behind:
            levels += [float(percent_to_sigma(each)) for each in (*behind[1:], 1.0)]
        return Course((*before, *places[:-1], *behind), tuple(levels), first=len(before))

    def _is_whole_sampling(self, percent_to_sigma: Callable[[float], Any]) -> bool:
        """Whether the list begins within half a step of pure noise and ends at none."""
        if not self.num_steps or self.sample_sigmas[-1] > 0.0:
            return False
        return self.sample_sigmas[0] > float(percent_to_sigma(0.5 / self.num_steps))

    def _is_repeated(self, step: int, sigma: float) -> bool:
        """Whether the step behind `step` begins at the same `sigma`."""
        following = self.sample_sigmas[step : step + 2]
        is_last = step + 1 >= self.num_steps
        return not is_last and all(_is_same_sigma(each, sigma) for each in following)


def _shares_of(length: float, distance: float) -> list[float]:
    """Where steps of about this distance begin, as shares of a length."""
    count = round(min(length / distance, MAX_UNSEEN_STEPS)) if distance > 0.0 else 0
    return [index / count for index in range(count)]


def _is_same_sigma(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SIGMA_TOLERANCE)


def ramp_weights(levels: Sequence[float], strength: float) -> list[float]:
    """How much each step of a sampling keeps beside the others, in any unit; above 0.

    Args:
        levels: noise levels at which the steps begin, 1 (pure noise) to 0, and the last one ends.
        strength: of the ramp, 0 (every step the same) to 1.
    """
    count = len(levels) - 1
    strength *= min(1.0, math.sqrt(count / MANY_STEPS))
    return [_step_weight(*pair) ** strength for pair in pairwise(levels)]


def _step_weight(start: float, end: float) -> float:
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
        scale = _ramp_scale([weighted[i] for i in rest], sum(kept) - (len(weighted) - len(rest)))
        most = max(rest, key=lambda i: weighted[i])
        if scale * weighted[most] <= DENSE_FROM:
            break
        rest.remove(most)
    for i in rest:
        shares[i] = max(scale * weighted[i], MIN_KEPT)
    return shares


def _ramp_scale(weights: Sequence[float], total: float) -> float:
    """The factor with which the weights, raised to `MIN_KEPT`, sum up to `total`."""
    low, high = 0.0, max(total, 0.0) / min(weights)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if sum(max(middle * each, MIN_KEPT) for each in weights) <= total:
            low = middle
        else:
            high = middle
    return low


@lru_cache(maxsize=1024)
def _ramped(kept: tuple[float, ...], levels: tuple[float, ...], ramp: float) -> tuple[float, ...]:
    """`ramped` of the steps that keep less than all; the others stay 1."""
    weights = ramp_weights(levels, ramp)
    pairs = [pair for pair in zip(kept, weights, strict=True) if pair[0] < 1.0]
    shares = iter(ramped(*zip(*pairs, strict=True))) if pairs else iter(())
    return tuple(next(shares) if share < 1.0 else 1.0 for share in kept)


def _items(field: str, text: str) -> list[tuple[int, str]]:
    """Numbered (from 1) entries of a comma-separated text; a trailing comma is forgiven.

    "none" has no entries: hosts make it of a value that is not there.
    """
    if not isinstance(text, str):
        raise ConfigError(field, text, "a text")
    if text.strip().lower() == "none":
        return []
    items = [item.strip() for item in text.split(",")]
    while items and not items[-1]:
        items.pop()
    return list(enumerate(items, start=1))
