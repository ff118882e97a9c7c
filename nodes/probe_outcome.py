"""From a probe's measurements to a profile, and the outcome in plain lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median

from ..rspa_core import SparseConfig
from ..rspa_core.config import ConfigError
from ..rspa_core.probe import Block, ProbeTable, propose
from ..rspa_core.profile import ModelFingerprint, SparsityProfile
from .probe_recorder import ProbeRecorder
from .run_record import RunRecord

MAX_ROWS = 15
"""Rows of the table of errors; the blocks that matter come first."""
MAX_STEP_COLUMNS = 6


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

    Where nothing of a kind was measured, its blocks keep the sparsity of `config`.

    Raises:
        ConfigError: no measured block is one of the model's.
    """
    proposals: dict[Block, float] = {}
    measured: dict[Block, Block] = {}
    blocks = model_blocks(model)
    for block, sparsity in propose(table, wanted_error).items():
        block_type, index = block
        place = ("single" if block_type == "single" else "double", index)
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


def why_nothing(recorder: ProbeRecorder, last_run: RunRecord | None) -> str:
    """The likely cause of an empty probe, for the user."""
    if last_run is None and not recorder.was_asked:
        return (
            "no sampler has used this model yet. Give the sampler the model that comes out of the "
            "probe, and connect 'after' to what that sampler makes"
        )
    reasons = sorted(last_run.reasons.items(), key=lambda pair: -pair[1]) if last_run else []
    said = f" The run says: {reasons[0][0]}." if reasons else ""
    if not recorder.was_asked:
        return f"the video tokens of this model are not known.{said}"
    if recorder.has_wanted:
        return f"every attempt failed.{said}"
    if recorder.num_steps is None:
        return "this sampler does not say which step it is in"
    return (
        f"the sampler took {recorder.num_steps} steps and none of them is in the "
        "probe's 'steps', or none of the model's blocks is in its 'blocks'"
    )


def block_name(block: Block, model: ModelFingerprint) -> str:
    """ "12" of a model with one kind of blocks, else "double 12" or "single 12"."""
    kind, index = block
    return f"{kind} {index}" if model.single_blocks else str(index)


def summary_text(outcome: ProbeOutcome) -> str:
    """The outcome in plain lines and a table, worst blocks first."""
    lines = [*_measured_lines(outcome), *_proposal_lines(outcome), "", *_table_lines(outcome)]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that count: 0.0123, 0.123, 1.23."""
    if value >= 10.0:
        return "10 or more"
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def short(value: float) -> str:
    """A sparsity or density without needless zeros: 0.5, 0.75, 0.712."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _measured_lines(outcome: ProbeOutcome) -> list[str]:
    table, profile = outcome.table, outcome.profile
    return [
        f"Rectified SpaAttn probe of {profile.model.describe()}",
        f"Measured: {len(outcome.measured)} of {len(outcome.blocks)} blocks in "
        f"{'step' if len(table.steps) == 1 else 'steps'} {ranges(table.steps)}, "
        f"sparsity {', '.join(map(short, table.sparsities))}, "
        f"video of {' x '.join(map(str, profile.grid))} tokens",
    ]


def _proposal_lines(outcome: ProbeOutcome) -> list[str]:
    profile = outcome.profile
    sparsities = [outcome.sparsity(block) for block in outcome.blocks]
    line = (
        f"For an error of at most {short(profile.wanted_error)}: sparsity {fmean(sparsities):.2f} "
        f"on average, {min(sparsities):.2f} to {max(sparsities):.2f}"
    )
    dense = sparsities.count(0.0)
    if dense:
        line += f", {dense} {'block' if dense == 1 else 'blocks'} dense"
    lines = [line + f"; about {outcome.density():.0%} of the attention is computed"]
    shown = outcome.shown_sparsity
    errors = [error for _, error in outcome.worst_first()]
    said = f"sparsity {short(shown)} everywhere"
    if shown != outcome.configured:
        said += f" (measured nearest to the node's {short(outcome.configured)})"
    lines.append(
        f"With {said}: errors {number(min(errors))} to {number(max(errors))}, about "
        f"{outcome.density(shown):.0%} is computed"
    )
    return lines + _missing_lines(outcome)


def _missing_lines(outcome: ProbeOutcome) -> list[str]:
    lines = []
    for kind, name in (("double", "blocks"), ("single", "single blocks")):
        missing = [i for k, i in outcome.blocks if k == kind and (k, i) not in outcome.measured]
        if not missing:
            continue
        has_median = any(own == kind for own, _ in outcome.measured)
        source = "the median of the others" if has_median else "the node's sparsity"
        value = short(outcome.sparsity((kind, missing[0])))
        lines.append(f"Not measured, {source} {value}: {name} {ranges(missing)}")
    return lines


def _table_lines(outcome: ProbeOutcome) -> list[str]:
    steps = outcome.table.steps
    with_steps = len(steps) <= MAX_STEP_COLUMNS
    head = ["block", *(f"step {step}" for step in steps)] if with_steps else ["block", "worst"]
    rows = [[*head, "proposed"]]
    ranked = outcome.worst_first()
    for block, worst in ranked[:MAX_ROWS]:
        errors = [outcome.error(block, step) for step in steps] if with_steps else [worst]
        cells = ["-" if error is None else number(error) for error in errors]
        sparsity = outcome.sparsity(block)
        proposed = f"{sparsity:.2f}" if sparsity else "dense"
        rows.append([block_name(block, outcome.profile.model), *cells, proposed])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    more = len(ranked) - MAX_ROWS
    return [
        f"Error at sparsity {short(outcome.shown_sparsity)}, worst first",
        *lines,
        *([f"and {more} more"] if more > 0 else []),
    ]


def ranges(numbers: Iterable[int | None]) -> str:
    """ "0-2, 5" of rising numbers."""
    known = [number for number in numbers if number is not None]
    parts = []
    for _, run in groupby(enumerate(known), key=lambda pair: pair[1] - pair[0]):
        members = [member for _, member in run]
        first, last = members[0], members[-1]
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ", ".join(parts)
