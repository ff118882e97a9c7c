"""Which sparsity applies when: curves over the sampling progress, per-step lists, block lists.

"Percent" is the sampling progress as a share from 0 to 1; "step" is an interval of the sampler's
own list of sigmas, counted from 0. A host says where a forward is (`Position`).
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
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

WHOLE_NUMBER = r"-?[0-9]{1,9}"
"""Of a text: no step or block has more digits, and Python does not read thousands of them."""
_BLOCK_ITEM = re.compile(rf"(?:(single|double)\s+)?({WHOLE_NUMBER})(?:\s*-\s*({WHOLE_NUMBER}))?")


@dataclass(frozen=True)
class Position:
    """Where in the sampling a forward is, as far as its host knows; None for what it does not.

    Attributes:
        step: from 0.
        num_steps: that the sampler takes.
        percent: sampling progress, 0 (all noise) to 1 (clean): of the steps, or of the noise where
            the sampler takes a part of the sampling (`SigmaSteps.percent_at`).
    """

    step: int | None = None
    num_steps: int | None = None
    percent: float | None = None


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
        dense_steps: steps that stay dense in any case; negative ones count from the end.

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

    def __post_init__(self) -> None:
        check_number("start_sparsity", self.start_sparsity, 0.0, MAX_SPARSITY)
        check_number("end_sparsity", self.end_sparsity, 0.0, MAX_SPARSITY)
        check_choice("curve", self.curve, CURVES)
        check_number("start_percent", self.start_percent, 0.0, 1.0)
        check_number("end_percent", self.end_percent, 0.0, 1.0)
        if self.start_percent > self.end_percent:
            allowed = f"a number from 0 to end_percent = {self.end_percent:g}"
            raise ConfigError("start_percent", self.start_percent, allowed)
        for number, entry in enumerate(self.steps, start=1):
            if entry is not None:
                check_number(f"steps, entry {number}", entry, 0.0, MAX_SPARSITY)

    def sparsity_at(self, position: Position) -> float | DenseReason:
        """Sparsity of one forward, above 0, or why it is dense.

        `steps` and `dense_steps` do not apply where only the percent is known.
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
            sparsity = self.steps[min(step, len(self.steps) - 1)]
            if sparsity is None:
                return why(Reason.STEP_OFF)
        else:
            if percent is None:
                if self._depends_on_percent:
                    return why(Reason.UNKNOWN_STEP)
                percent = self.start_percent
            if percent < self.start_percent - PERCENT_TOLERANCE:
                return why(Reason.BEFORE_START, 100 * self.start_percent)
            if percent > self.end_percent + PERCENT_TOLERANCE:
                return why(Reason.AFTER_END, 100 * (1 - self.end_percent))
            sparsity = self._curve_at(percent)
        return sparsity if sparsity > 0.0 else why(Reason.ZERO_SPARSITY)

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
    """Read "0, 1, -1": step numbers from 0, negative ones from the end; "" and "none": ().

    Raises:
        ConfigError: an entry is not a whole number.
    """
    allowed = "a whole number (0 is the first step, -1 the last), entries separated by commas"
    entries: list[int] = []
    for number, item in _items("dense_steps", text):
        if re.fullmatch(WHOLE_NUMBER, item) is None:
            raise ConfigError(f"dense_steps, entry {number}", item, allowed)
        entries.append(int(item))
    return tuple(entries)


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


def _is_same_sigma(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SIGMA_TOLERANCE)


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
