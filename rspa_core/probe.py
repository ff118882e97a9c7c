"""What a probe measures: how far sparse attention is from full attention, by step, block, sparsity.

    error = ||sparse - dense|| / ||dense||   over the video rows and all heads

of all calls of one block in one step together (with guidance there are two). Plain Python: no
torch, no ComfyUI.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .config import MAX_SPARSITY, ConfigError
from .schedule import DenseBlocks, parse_dense_blocks

Block = tuple[str, int | None]
"""(block_type, block_index) of an attention call, as ComfyUI names them."""

MAX_SPARSITIES = 16
"""Each one is an attention call more per measured call."""

_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%")
_WHOLE = re.compile(r"-?\d+")
_TINY_ERROR = 1e-12


@dataclass(frozen=True)
class ProbeSteps:
    """Steps of a sampler.

    Attributes:
        numbers: from 0; negative ones count from the end.
        shares: of the way through the steps, 0 to 1: 0.5 of 20 steps is step 10, 1 the last.
    """

    numbers: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    def indices(self, num_steps: int) -> frozenset[int]:
        """The steps meant of `num_steps` (1 or more)."""
        counted = {n if n >= 0 else n + num_steps for n in self.numbers}
        # 0.29 * 100 is 28.999... in binary: nudge so that it counts as 29.
        counted |= {min(int(share * num_steps + 1e-9), num_steps - 1) for share in self.shares}
        return frozenset(step for step in counted if 0 <= step < num_steps)


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured.

    Attributes:
        steps: steps of the sampler.
        blocks: transformer blocks; without any range, all of them.
        sparsities: tried at each call, rising, each above 0.
    """

    steps: ProbeSteps
    blocks: DenseBlocks = field(default_factory=DenseBlocks)
    sparsities: tuple[float, ...] = (0.5, 0.65, 0.75, 0.85, 0.92)

    def wants(
        self,
        step: int | None,
        num_steps: int | None,
        block_type: str | None,
        index: int | None,
        total: int | None,
    ) -> bool:
        """Whether calls of block `index` of `total` of its type are measured in this step.

        None stands for unknown. A step or a block without a number is not measured: a profile
        could not say where its sparsity belongs.
        """
        if step is None or num_steps is None or index is None:
            return False
        return step in self.steps.indices(num_steps) and self.wants_block(block_type, index, total)

    def wants_block(self, block_type: str | None, index: int, total: int | None) -> bool:
        """Whether this block is measured in the steps that are."""
        return not self.blocks.ranges or self.blocks.contains(block_type, index, total)


@dataclass(frozen=True)
class ProbeTable:
    """What was measured. None stands where nothing was.

    Attributes:
        steps: the measured ones, rising.
        blocks: the measured ones, in the model's order: main blocks, then single blocks.
        sparsities: rising.
        errors: `[step][block][sparsity]`, relative error; inf where an output was not finite.
        densities: alike, share of block pairs that were computed, 0 to 1.
    """

    steps: tuple[int, ...]
    blocks: tuple[Block, ...]
    sparsities: tuple[float, ...]
    errors: tuple[tuple[tuple[float | None, ...], ...], ...]
    densities: tuple[tuple[tuple[float | None, ...], ...], ...]

    def error_at(self, step: int, block: Block, sparsity: float) -> float | None:
        """Error of a block in a step, log-linear between the measured sparsities.

        Outside them it is the error of the nearest measured one.
        """
        curve = self.errors[self.steps.index(step)][self.blocks.index(block)]
        return _error_at(self.sparsities, curve, sparsity)

    def worst_error_at(self, block: Block, sparsity: float) -> float | None:
        """The largest `error_at` over the measured steps."""
        found = (self.error_at(step, block, sparsity) for step in self.steps)
        return max((error for error in found if error is not None), default=None)

    def density_at(self, block: Block, sparsity: float) -> float | None:
        """Mean density of a block over the measured steps, linear between measured sparsities.

        1 for sparsity 0. Between that and the lowest measured sparsity it is linear too.
        """
        if sparsity <= 0.0:
            return 1.0
        at = self.blocks.index(block)
        rows = [row[at] for row in self.densities if None not in row[at]]
        if not rows:
            return None
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        points = [(0.0, 1.0), *zip(self.sparsities, means, strict=True)]
        for (low, first), (high, second) in pairwise(points):
            if sparsity <= high:
                return first + (second - first) * (sparsity - low) / (high - low)
        return means[-1]

    def worst_errors(self, block: Block) -> list[float | None]:
        """The largest error over the measured steps, by sparsity."""
        at = self.blocks.index(block)
        columns = zip(*(row[at] for row in self.errors), strict=True)
        return [max((e for e in column if e is not None), default=None) for column in columns]


def propose(table: ProbeTable, wanted_error: float) -> dict[Block, float]:
    """The highest sparsity per block whose worst error over the steps is at most `wanted_error`.

    Between two measured sparsities the logarithm of the error is taken as linear; beyond the
    measured ones nothing is proposed. 0.0, which is dense, where even the lowest is too far off.
    """
    return {
        block: _highest_sparsity(table.sparsities, table.worst_errors(block), wanted_error)
        for block in table.blocks
    }


def parse_probe_steps(text: str) -> ProbeSteps:
    """Read "1, 50%, -1": numbers from 0, negative ones from the end, shares of the way.

    Raises:
        ConfigError: an entry has another form, or there is none.
    """
    allowed = (
        "a step number (0 is the first, -1 the last) or a percentage of the steps from 0% to "
        "100%, entries separated by commas"
    )
    numbers: list[int] = []
    shares: list[float] = []
    for number, item in _entries("steps", text, allowed):
        percent = _PERCENT.fullmatch(item)
        if percent is not None and float(percent[1]) <= 100.0:
            shares.append(float(percent[1]) / 100.0)
        elif _WHOLE.fullmatch(item) is not None:
            numbers.append(int(item))
        else:
            raise ConfigError(f"steps, entry {number}", item, allowed)
    return ProbeSteps(tuple(numbers), tuple(shares))


def parse_probe_blocks(text: str) -> DenseBlocks:
    """Read "0, 1, -1, single 0-2" as `parse_dense_blocks` does; "" means all blocks.

    Raises:
        ConfigError: an entry has another form, or a range runs backwards.
    """
    try:
        return parse_dense_blocks(text)
    except ConfigError as error:
        field_name = error.field.replace("dense_blocks", "blocks")
        raise ConfigError(field_name, error.value, error.allowed) from None


def parse_sparsities(text: str) -> tuple[float, ...]:
    """Read "0.5, 0.75": rising and each once, whatever the order in the text.

    Raises:
        ConfigError: an entry is no number above 0 and up to 0.98, there is none or too many.
    """
    allowed = f"a number above 0 and up to {MAX_SPARSITY:g}, entries separated by commas"
    values: set[float] = set()
    for number, item in _entries("sparsities", text, allowed):
        try:
            value = float(item)
        except ValueError:
            value = math.nan
        if not 0.0 < value <= MAX_SPARSITY:
            raise ConfigError(f"sparsities, entry {number}", item, allowed)
        values.add(value)
    if len(values) > MAX_SPARSITIES:
        raise ConfigError("sparsities", text, f"at most {MAX_SPARSITIES} numbers")
    return tuple(sorted(values))


def _entries(field_name: str, text: object, allowed: str) -> list[tuple[int, str]]:
    """Numbered (from 1) entries of a comma-separated text, at least one."""
    if not isinstance(text, str):
        raise ConfigError(field_name, text, "a text")
    items = [item.strip() for item in text.split(",")]
    while items and not items[-1]:
        items.pop()
    if not items:
        raise ConfigError(field_name, text, f"at least one entry: {allowed}")
    return list(enumerate(items, start=1))


def _error_at(
    sparsities: Sequence[float], curve: Sequence[float | None], sparsity: float
) -> float | None:
    points = [(s, e) for s, e in zip(sparsities, curve, strict=True) if e is not None]
    if not points:
        return None
    if sparsity <= points[0][0]:
        return points[0][1]
    for (low, first), (high, second) in pairwise(points):
        if sparsity <= high:
            if not math.isfinite(first) or not math.isfinite(second):
                return second if sparsity > low else first
            share = (sparsity - low) / (high - low)
            low_log, high_log = (math.log(max(e, _TINY_ERROR)) for e in (first, second))
            return math.exp(low_log + share * (high_log - low_log))
    return points[-1][1]


def _highest_sparsity(
    sparsities: Sequence[float], worst: Sequence[float | None], wanted_error: float
) -> float:
    points = [(s, e) for s, e in zip(sparsities, worst, strict=True) if e is not None]
    for at in reversed(range(len(points))):
        sparsity, error = points[at]
        if error > wanted_error:
            continue
        if at + 1 == len(points) or not math.isfinite(points[at + 1][1]):
            return sparsity
        above, error_above = points[at + 1]
        low_log, wanted_log, high_log = (
            math.log(max(e, _TINY_ERROR)) for e in (error, wanted_error, error_above)
        )
        return sparsity + (above - sparsity) * (wanted_log - low_log) / (high_log - low_log)
    return 0.0
