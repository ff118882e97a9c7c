"""The probe: how far sparse attention is from full attention, by step, block and sparsity.

    error = ||sparse - dense|| / ||dense||   over the video rows and all heads

of all calls of one block in one step together (with guidance there are two). `ProbeSettings` say
what is measured, the `ProbeRecorder` measures while a sampler renders, a `ProbeTable` holds the
errors, and `make_outcome` turns them into a profile. The words are in report_text.py.

Memory of one measured call: one sparse output at a time, and fp32 slices of `SLICE_ELEMENTS`. What
stays is one short vector per block and step, on the device of the call. Nothing here waits for the
device but `table`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from ..attention import rectified_attention
from ..config import MAX_SPARSITY, ConfigError, SparseConfig
from ..layout import TokenLayout
from .profile import ModelFingerprint, SparsityProfile
from .record import Block
from .schedule import DenseBlocks, parse_dense_blocks, step_index

MAX_SPARSITIES = 16
"""Each one is an attention call more per measured call."""

_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%")
ERROR_STEPS = 10_000
"""In which a wanted error is searched for, between 0 and 1."""
AS_THE_NODE = 0.5
"""The place between the closest and the fastest profile that is as fast as the node's sparsity."""
COURSE_PLACES = 24
"""In which a picture goes from the closest to the fastest profile."""
_TINY_ERROR = 1e-12


@dataclass(frozen=True)
class ProbeSteps:
    """Steps of a sampler.

    Attributes:
        numbers: from 0; negative ones count from the end.
        shares: of the way through the steps, 0 to 1: 0.5 of 20 steps is index 10, 1 the last.
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
        kind: str | None,
        index: int | None,
        total: int | None,
    ) -> bool:
        """Whether calls of block `index` of `total` of its type are measured in this step.

        None stands for unknown. A step or a block without a number is not measured: a profile
        could not say where its sparsity belongs.
        """
        if step is None or num_steps is None or index is None:
            return False
        return step in self.steps.indices(num_steps) and self.wants_block(kind, index, total)

    def wants_block(self, kind: str | None, index: int, total: int | None) -> bool:
        """Whether this block is measured in the steps that are."""
        return not self.blocks.ranges or self.blocks.contains(kind, index, total)


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
        means = self._mean_densities[block]
        if means is None:
            return None
        points = [(0.0, 1.0), *zip(self.sparsities, means, strict=True)]
        for (low, first), (high, second) in pairwise(points):
            if sparsity <= high:
                return first + (second - first) * (sparsity - low) / (high - low)
        return means[-1]

    def worst_errors(self, block: Block) -> list[float | None]:
        """The largest error over the measured steps, by sparsity."""
        return self._worst_errors[block]

    # Kept, for whoever looks for a profile asks for them hundreds of times.
    @cached_property
    def _mean_densities(self) -> dict[Block, list[float] | None]:
        means: dict[Block, list[float] | None] = {}
        for at, block in enumerate(self.blocks):
            rows = [row[at] for row in self.densities if None not in row[at]]
            columns = zip(*rows, strict=True)
            means[block] = [sum(column) / len(rows) for column in columns] if rows else None
        return means

    @cached_property
    def _worst_errors(self) -> dict[Block, list[float | None]]:
        worst: dict[Block, list[float | None]] = {}
        for at, block in enumerate(self.blocks):
            columns = zip(*(row[at] for row in self.errors), strict=True)
            worst[block] = [max((e for e in col if e is not None), default=None) for col in columns]
        return worst


def propose(table: ProbeTable, wanted_error: float) -> dict[Block, float]:
    """The highest sparsity per block whose worst error over the steps is at most `wanted_error`.

    Between two measured sparsities the logarithm of the error is taken as linear; beyond the
    measured ones nothing is proposed. 0.0, which is dense, where even the lowest is too far off.
    """
    return {
        block: _highest_sparsity(table.sparsities, table.worst_errors(block), wanted_error)
        for block in table.blocks
    }


def error_at_share(table: ProbeTable, share: float) -> float:
    """The smallest wanted error, of 4 digits, whose proposals compute at most `share`.

    They compute it where it does the most good. Where those of no error up to 1 compute as little,
    it is the smallest whose proposals compute the least.
    """
    share = max(share, computed_share(table, propose(table, 1.0)))
    low, high = 0, ERROR_STEPS
    while high - low > 1:
        middle = (low + high) // 2
        computed = computed_share(table, propose(table, middle / ERROR_STEPS))
        low, high = (low, middle) if computed <= share + 1e-6 else (middle, high)
    return high / ERROR_STEPS


def error_at_place(table: ProbeTable, sparsity: float, place: float) -> float:
    """The wanted error of a profile between the closest and the fastest.

    The share that it computes falls evenly: at place 0 it is that of the lowest measured sparsity
    in all blocks, at 0.5 that of `sparsity`, and at 1 that of the highest measured one.

    Args:
        sparsity: that the node asks for; taken within the measured ones.
        place: 0 (closest to full attention) to 1 (fastest).
    """
    most, middle, least = (
        computed_share(table, dict.fromkeys(table.blocks, each))
        for each in (table.sparsities[0], sparsity, table.sparsities[-1])
    )
    middle = min(max(middle, least), most)
    way = place / AS_THE_NODE
    share = most + way * (middle - most)
    if place > AS_THE_NODE:
        share = middle + (way - 1.0) * (least - middle)
    return error_at_share(table, share)


def computed_share(table: ProbeTable, sparsities: Mapping[Block, float]) -> float:
    """Estimated share of block pairs computed, mean over the measured blocks."""
    found = (table.density_at(block, sparsities[block]) for block in table.blocks)
    return fmean(density for density in found if density is not None)


def parse_probe_steps(text: str) -> ProbeSteps:
    """Read "2, 50%, -1": numbers from 1, negative ones from the end, shares of the way.

    Raises:
        ConfigError: an entry has another form, or there is none.
    """
    allowed = (
        "a step number (1 is the first, -1 the last) or a percentage of the steps from 0% to "
        "100%, entries separated by commas"
    )
    numbers: list[int] = []
    shares: list[float] = []
    for number, item in _entries("steps", text, allowed):
        percent = _PERCENT.fullmatch(item)
        if percent is not None and float(percent[1]) <= 100.0:
            shares.append(float(percent[1]) / 100.0)
        elif (index := step_index(item)) is not None:
            numbers.append(index)
        else:
            raise ConfigError(f"steps, entry {number}", item, allowed)
    return ProbeSteps(tuple(numbers), tuple(shares))


def parse_probe_blocks(text: str) -> DenseBlocks:
    """Read "0, 1, -1, single 0-2" as `parse_dense_blocks` does; "" and "none" mean all blocks.

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


SLICE_ELEMENTS = 1 << 22
"""Output elements that are compared at a time: 16 MiB in fp32."""

Key = tuple[int, Block]


class ProbeRecorder:
    """Adds up squared errors and densities of one sampling run by step and block.

    Args:
        settings: what is measured.
        attend: the sparse attention; injected for tests.
        progress: told (measured, expected as far as known) pairs of a step and a block.
        say: told in words what is being measured, and whether nothing follows.

    Attributes:
        grid: video tokens (T, H, W) of the last measured call, None before the first.
        was_asked: whether a call over the video came by.
        num_steps: of the sampler that made it, None if unknown.
        has_wanted: whether a call was to be measured.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        attend: Callable[..., Any] = rectified_attention,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str, bool], None] | None = None,
    ) -> None:
        self.settings = settings
        self._attend = attend
        self._progress = progress
        self._say = say
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new run begins."""
        self.grid: tuple[int, int, int] | None = None
        # By device too: with several GPUs a step's calls of one block run on different ones.
        self._sums: dict[tuple[Key, torch.device], Tensor] = {}
        self._measured: set[Key] = set()
        self._num_blocks: dict[str | None, int] = {}
        self.was_asked = False
        self.num_steps: int | None = None
        self.has_wanted = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured since the last reset."""
        return not self._measured

    def wants(
        self,
        step: int | None,
        num_steps: int | None,
        kind: str | None,
        index: int | None,
        total: int | None,
    ) -> bool:
        """Whether calls of this block are to be measured in this step; None is unknown."""
        self.was_asked = True
        self.num_steps = num_steps
        if not self.settings.wants(step, num_steps, kind, index, total):
            return False
        self.has_wanted = True
        self._num_blocks[kind] = total or 0
        return True

    def measure(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Tensor,
        layout: TokenLayout,
        config: SparseConfig,
        step: int | None,
        block: Block,
    ) -> None:
        """Compare `dense` with sparse attention at every sparsity and add up the squares.

        A call that fails leaves no trace.

        Args:
            q, k, v: `[B, H, N, D]`, any strides.
            dense: output of full attention, `[B, H, N, D]`, any strides.
            layout: of the call.
            config: of the call; its sparsity is replaced.
            step, block: where the call belongs.

        Raises:
            whatever the sparse attention raises.
        """
        if step is None:
            return
        video = slice(layout.video_start, layout.video_end)
        dense = dense[:, :, video]
        squares = _sum_squares(dense)
        values = [torch.ones_like(squares), squares]
        for sparsity in self.settings.sparsities:
            candidate = replace(config, sparsity=sparsity)
            values += self._compare(q, k, v, dense, video, layout, candidate)
        found = torch.stack(values)
        key = (step, block)
        at = (key, found.device)
        self._sums[at] = self._sums[at] + found if at in self._sums else found
        self.grid = layout.grid
        self._measured.add(key)
        self._tell(step, block)

    def _compare(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Tensor,
        video: slice,
        layout: TokenLayout,
        config: SparseConfig,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the squared differences over the video rows, and the density."""
        # A function of its own: its output is gone before the next candidate's is made.
        out, stats = self._attend(q, k, v, layout, config, return_stats=True)
        return _sum_squares(out[:, :, video], dense), stats.density.float()

    def finish(self) -> None:
        """The run is over: say what was measured."""
        if self._say is not None and not self._measured:
            self._say("nothing was measured in this run", True)
        if self._say is not None and self._measured:
            steps = len({step for step, _ in self._measured})
            blocks = len({block for _, block in self._measured})
            self._say(
                f"measured {blocks} {'block' if blocks == 1 else 'blocks'} in {steps} "
                f"{'step' if steps == 1 else 'steps'}",
                True,
            )

    def table(self) -> ProbeTable:
        """What was measured so far; waits for the device once per device."""
        cells: dict[Key, list[float]] = {}
        for (key, _), values in self._read_sums():
            # Sums of the devices' sums: counts, squares and densities all add up.
            before = cells.get(key, [0.0] * len(values))
            cells[key] = [a + b for a, b in zip(before, values, strict=True)]
        steps = tuple(sorted({step for step, _ in cells}))
        blocks = tuple(sorted({block for _, block in cells}, key=_model_order))
        nothing = (None,) * len(self.settings.sparsities)
        errors, densities = (
            tuple(
                tuple(
                    read(cells[step, block]) if (step, block) in cells else nothing
                    for block in blocks
                )
                for step in steps
            )
            for read in (_errors, _densities)
        )
        return ProbeTable(steps, blocks, self.settings.sparsities, errors, densities)

    def _read_sums(self) -> list[tuple[tuple[Key, torch.device], list[float]]]:
        found = []
        for device in {device for _, device in self._sums}:
            keys = [at for at in self._sums if at[1] == device]
            rows = torch.stack([self._sums[at] for at in keys]).tolist()
            found += list(zip(keys, rows, strict=True))
        return found

    def _tell(self, step: int, block: Block) -> None:
        own, index = block
        if self._progress is not None:
            expected = len(self.settings.steps.indices(self.num_steps)) if self.num_steps else 0
            expected *= sum(
                self.settings.wants_block(kind, number, total)
                for kind, total in self._num_blocks.items()
                for number in range(total)
            )
            done = len(self._measured)
            self._progress(done, max(done, expected))
        if self._say is not None:
            name = "single block" if own == "single" else "block"
            total = self._num_blocks.get(own)
            # Counted from 1, as in "1 of 20": the last one is "20 of 20".
            places = [("step", step, self.num_steps), (name, index, total)]
            words = (_counted(noun, at, of) for noun, at, of in places)
            self._say(f"probe: {', '.join(words)}", False)


def _counted(noun: str, index: int | None, total: int | None) -> str:
    """ "step 1 of 20" of the first step, index 0."""
    words = f"{noun} {'?' if index is None else index + 1}"
    return f"{words} of {total}" if total else words


def _sum_squares(x: Tensor, minus: Tensor | None = None) -> Tensor:
    """Sum of squares of `x`, or of `x - minus`, `[B, H, N, D]`: 0-dim fp32, in slices of rows."""
    per_row = max(1, x.shape[0] * x.shape[1] * x.shape[3])
    rows = max(1, SLICE_ELEMENTS // per_row)
    total = torch.zeros((), dtype=torch.float32, device=x.device)
    for start in range(0, x.shape[2], rows):
        part = x[:, :, start : start + rows].float()
        if minus is not None:
            part = part - minus[:, :, start : start + rows]  # into fp32, whatever `minus` is
        total += part.square().sum()
    return total


def _errors(values: list[float]) -> tuple[float, ...]:
    """Relative errors from count, dense squares, then (difference squares, density) pairs."""
    dense = values[1]
    return tuple(_relative_error(difference, dense) for difference in values[2::2])


def _relative_error(difference: float, dense: float) -> float:
    if not math.isfinite(difference) or not math.isfinite(dense):
        return math.inf
    if dense == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return math.sqrt(difference / dense)


def _densities(values: list[float]) -> tuple[float, ...]:
    return tuple(density / values[0] for density in values[3::2])


def _model_order(block: Block) -> tuple[bool, int]:
    kind, index = block
    return kind == "single", -1 if index is None else index


class NothingMeasured(ValueError):
    """A probe without any measurement. The message says why."""


@dataclass(frozen=True)
class ProbeOutcome:
    """What a probe found out.

    Attributes:
        table: what was measured.
        profile: a sparsity for every block of the model.
        measured: (kind, index) of a block of the profile, kind "double" or "single" -> the block
            as the table names it.
        configured: sparsity that the Rectified SpaAttn node asks for.
    """

    table: ProbeTable
    profile: SparsityProfile
    measured: dict[Block, Block]
    configured: float

    @property
    def blocks(self) -> list[Block]:
        """(kind, index) of all blocks in the model's order."""
        return model_blocks(self.profile.model)

    @property
    def shown_sparsity(self) -> float:
        """The configured sparsity, or the measured one nearest to it if it lies outside."""
        low, high = self.table.sparsities[0], self.table.sparsities[-1]
        return min(max(self.configured, low), high)

    def sparsity(self, block: Block) -> float:
        """Of the profile."""
        return self.profile.sparsity_of(*block) or 0.0

    def error(self, block: Block, step: int) -> float | None:
        """At `shown_sparsity`; None where nothing was measured."""
        if block not in self.measured:
            return None
        return self.table.error_at(step, self.measured[block], self.shown_sparsity)

    def worst(self, block: Block) -> float | None:
        """The largest `error` over the steps."""
        errors = [self.error(block, step) for step in self.table.steps]
        return max((error for error in errors if error is not None), default=None)

    def worst_first(self) -> list[tuple[Block, float]]:
        """Measured blocks with their `worst`."""
        found = [(block, self.worst(block)) for block in self.blocks]
        known = [(block, error) for block, error in found if error is not None]
        return sorted(known, key=lambda pair: -pair[1])

    @cached_property
    def course(self) -> list[tuple[float, float]]:
        """(share computed, error) of the profiles from the closest to the fastest."""
        places = (place / COURSE_PLACES for place in range(COURSE_PLACES + 1))
        errors = [error_at_place(self.table, self.configured, place) for place in places]
        return [self._point(error) for error in errors]

    @property
    def chosen(self) -> tuple[float, float]:
        """(share computed, error) of the profile, a point of `course`."""
        return self._point(self.profile.wanted_error)

    @property
    def alike(self) -> tuple[float, float] | None:
        """(share computed, error of the worst block) with `shown_sparsity` in all blocks.

        None where an output was not finite.
        """
        sparsities = dict.fromkeys(self.table.blocks, self.shown_sparsity)
        worst = max(error for _, error in self.worst_first())
        return (computed_share(self.table, sparsities), worst) if math.isfinite(worst) else None

    def _point(self, error: float) -> tuple[float, float]:
        return computed_share(self.table, propose(self.table, error)), error

    def density(self, sparsity: float | None = None) -> float:
        """Estimated share of block pairs computed, mean over all blocks of the model.

        Args:
            sparsity: of every block, or None for those of the profile.
        """

        def of(block: Block) -> float:
            wanted = self.sparsity(block) if sparsity is None else sparsity
            like = [self.measured[block]] if block in self.measured else self.measured.values()
            known = [self.table.density_at(each, wanted) for each in like]
            return fmean(density for density in known if density is not None)

        return fmean(of(block) for block in self.blocks)


def model_blocks(model: ModelFingerprint) -> list[Block]:
    """(kind, index) of all blocks in the model's order, kind "double" or "single"."""
    main: list[Block] = [("double", index) for index in range(model.double_blocks)]
    return main + [("single", index) for index in range(model.single_blocks)]


def make_outcome(
    table: ProbeTable,
    model: ModelFingerprint,
    config: SparseConfig,
    grid: tuple[int, int, int],
    wanted_error: float,
    name: str = "",
) -> ProbeOutcome:
    """A profile from measurements, with the median of their kind for blocks without any.

    Where nothing of a kind was measured, its blocks keep the sparsity of `config`. A wanted error
    of 0 stands for the one whose profile computes as much as `config` in all blocks.

    Raises:
        ConfigError: no measured block is one of the model's.
    """
    if wanted_error == 0:
        wanted_error = error_at_place(table, config.sparsity, AS_THE_NODE)
    proposals: dict[Block, float] = {}
    measured: dict[Block, Block] = {}
    blocks = model_blocks(model)
    for block, sparsity in propose(table, wanted_error).items():
        kind, index = block
        place = ("single" if kind == "single" else "double", index)
        if place in blocks and sparsity <= proposals.get(place, 1.0):
            proposals[place] = sparsity
            measured[place] = block
    if not measured:
        raise ConfigError(
            "model", model.describe(), "a model whose blocks were measured by the probe"
        )

    def of_kind(kind: str) -> tuple[float, ...]:
        known = [sparsity for (own, _), sparsity in proposals.items() if own == kind]
        typical = median(known) if known else config.sparsity
        return tuple(proposals.get(block, typical) for block in blocks if block[0] == kind)

    profile = SparsityProfile(
        model=model,
        double=of_kind("double"),
        single=of_kind("single"),
        grid=grid,
        wanted_error=wanted_error,
        block_size=config.kv_block,
        rectification=config.rectification,
        order=config.order,
        tail_keys=config.tail_keys,
        name=name,
    )
    return ProbeOutcome(table, profile, measured, config.sparsity)
