"""The words for a run: the status line, the log, plain lines for a forum post, JSON.

The characters are those of Pillow's own font, because a picture shows the same words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from statistics import fmean
from typing import Any

from .probe import ProbeOutcome, ProbeRecorder, ProbeTable
from .profile import ModelFingerprint
from .reasons import DenseReason
from .record import MIN_SPARSE_FORWARDS, Block, Ending, RunRecord
from .schedule import step_name

SAME_SPEED = 0.95
"""Times faster from which on a run does not count as slower, nor below its inverse as faster."""
CONTEXT_MATTERS = 0.05
"""Share of all pairs by which exact context may raise what is computed without being told."""
MAX_PROBE_ROWS = 15
"""Rows of the table of errors; the blocks that matter come first."""
MAX_STEP_COLUMNS = 6
WAITING = "waiting for the first model call"
COMPILING = "compiling the kernels, once: {done} of {total}"
OFF = "off: full attention"
OFF_BUT_PATCHED = "off: the Rectified SpaAttn node before this one stays in force"
NO_RUN_TITLE = "No sampling run yet"
NO_RUN_CAUSES = (
    "The after input is not connected to the sampler that uses this model, nor to a node behind "
    "that sampler.",
    "The sampler uses another model than the one connected here. Take both from the same "
    "Rectified SpaAttn node; nodes in between are fine.",
    "ComfyUI took the sampler's result from its cache. Change the seed and queue again.",
)
NOT_PATCHED_TITLE = "Full attention: no Rectified SpaAttn on this model"
NOT_PATCHED_CAUSES = (
    "The Rectified SpaAttn node is switched off (enabled) or bypassed, as for comparing with and "
    "without.",
    "The model connected here comes from a place before the Rectified SpaAttn node.",
)
NEVER_CALLED = "no attention call over the video reached the node"


def status_line(record: RunRecord) -> str:
    """The line of a run that goes on.

    "sparse 540 / dense 60 (first 10 %, 2 of 20 steps) · density 0.17 · 1.9x per step · 9.1 s"
    """
    return _line(record, _short_reasons(record))


def last_status(record: RunRecord) -> str:
    """The status line of a finished run.

    Above it a run says that it was cut off, or why it had no sparse calls.
    """
    if not record.forwards:
        if record.ending is Ending.COMPLETE:
            return "the sampler made no model call"
        return f"{record.ending.value} before the first model call was done"
    status = _line(record, _short_reasons(record), is_last=True)
    if record.earlier_nodes:
        status = f"{_samplers(record)}: {status}"
    if record.ending is not Ending.COMPLETE:
        return f"{record.ending.value}\n{status}"
    return status if record.sparse else f"not sparse: {why_not_sparse(record)}\n{status}"


def log_line(record: RunRecord) -> str:
    """The status line with all reasons and their counts, and the number of forwards."""
    listed = "; ".join(
        f"{count}: {_in_steps(record, reason, reason.text)}"
        for reason, count in record.reasons.items()
    )
    cut = "" if record.ending is Ending.COMPLETE else f"{record.ending.value}: "
    if record.earlier_nodes:
        cut = f"{_samplers(record)}: {cut}"
    return f"{cut}{_line(record, listed, is_last=True)}, {record.forwards} forwards"


def why_not_sparse(record: RunRecord) -> str:
    """The likely cause of a run without a single sparse call, for the user."""
    if not record.dense:
        return record.warnings[0] if record.warnings else "no attention call was seen"
    if all(each.reason.is_of_schedule for each in record.reasons):
        return f"the schedule was active in none of the steps that ran ({_short_reasons(record)})"
    return next(iter(record.reasons)).text


def summary_text(record: RunRecord) -> str:
    """Lines to read or to post: what was asked for, what ran, how fast, and why not faster."""
    lines = [f"Rectified SpaAttn: {headline(record)}", f"Model: {model_words(record)}"]
    if record.settings:
        lines.append(f"Settings: {settings_words(record.settings)}")
    lines.append(f"Attention calls: {calls_words(record)}")
    if record.density is not None:
        lines.append(
            f"Density: {record.density:.3f} of the block pairs computed in sparse calls, "
            "on average (1 = full attention)"
        )
        if _with_context(record):
            lines.append(
                f"With the context, which is exact: {record.computed:.3f} of all pairs of tokens"
            )
    if words := kept_words(record):
        lines.append(f"Kept share: {words}")
        lines.append(f"By step, planned / reached: {_kept_by_step(record)}")
    lines.append(
        f"Time in the model: {seconds_words(record.seconds)}, "
        f"{_count(record.forwards, 'model call')} in {_count(len(record.steps), 'step')}"
    )
    lines.append(f"Median time of a model call: {time_words(record)}")
    lines.append(f"Speed: {speed_words(record) or _why_no_speed(record)}")
    if record.full_seconds is not None:
        lines.append(
            f"Time: {seconds_words(record.seconds)}, with full attention about "
            f"{seconds_words(record.full_seconds)}"
        )
    if record.reasons:
        lines.append("Why calls were dense:")
        lines += [f"  {count:,}  {reason.text}" for reason, count in ranked_reasons(record)]
    if record.warnings:
        lines.append("Warnings:")
        lines += [f"  {warning}" for warning in record.warnings]
    return "\n".join(lines)


def json_text(record: RunRecord) -> str:
    """The record as JSON; numbers that JSON does not have become null."""
    return json.dumps(_plain(record.as_dict()), indent=1, allow_nan=False)


def headline(record: RunRecord) -> str:
    """ "1,104 sparse and 96 dense calls · density 0.27 · 1.9 x faster per step" """
    parts = [f"{record.sparse:,} sparse and {record.dense:,} dense calls"]
    if record.ending is not Ending.COMPLETE:
        parts.insert(0, record.ending.value)
    if record.density is not None:
        parts.append(f"density {record.density:.2f}{_with_context(record)}")
    if speed := speed_words(record):
        parts.append(speed)
    return " · ".join(parts)


def kept_words(record: RunRecord) -> str:
    """ "0.25 planned on average over 16 steps, 0.26 reached"; "" where all steps keep the same."""
    if record.planned is None or record.reached is None or record.keeps_alike:
        return ""
    steps = _count(len(record.kept), "step")
    return f"{record.planned:.2f} planned on average over {steps}, {record.reached:.2f} reached"


def _kept_by_step(record: RunRecord) -> str:
    """ "4: 0.46 / 0.46, 5: 0.41 / 0.42" """
    pairs = [(each.step, each.kept) for each in record.steps if each.kept is not None]
    return ", ".join(
        f"{step_name(step)}: {planned:.2f} / {reached:.2f}" for step, (planned, reached) in pairs
    )


def model_words(record: RunRecord) -> str:
    """ "WAN21, 32,760 tokens, grid 21 x 30 x 52" """
    parts = [record.model or "unknown"]
    if record.tokens is not None:
        parts.append(f"{record.tokens:,} tokens")
    if record.grid is not None:
        parts.append("grid " + " x ".join(map(str, record.grid)))
    return ", ".join(parts)


def calls_words(record: RunRecord) -> str:
    """ "1,104 sparse, 96 dense (92 % sparse)" """
    total = record.sparse + record.dense
    if not total:
        return NEVER_CALLED
    return f"{record.sparse:,} sparse, {record.dense:,} dense ({record.sparse / total:.0%} sparse)"


def time_words(record: RunRecord) -> str:
    """ "1.84 s sparse, 3.41 s dense" """
    medians = (("sparse", record.sparse_step_seconds), ("dense", record.dense_step_seconds))
    parts = [f"{seconds_words(value)} {kind}" for kind, value in medians if value is not None]
    return ", ".join(parts) or "not known"


def speed_words(record: RunRecord) -> str:
    """ "1.9 x faster per step", "1.2 x slower per step", or "" where it is not known."""
    ratio = record.speedup
    if ratio is None or not math.isfinite(ratio) or ratio <= 0.0:
        return ""
    if SAME_SPEED <= ratio < 1 / SAME_SPEED:
        return "as fast as dense steps"
    about = "about " if record.is_rough else ""
    if ratio > 1.0:
        return f"{about}{ratio:.1f} x faster per step"
    return f"{about}{1 / ratio:.1f} x slower per step"


def is_slower(record: RunRecord) -> bool:
    """Whether sparse steps took clearly longer than dense ones."""
    return record.speedup is not None and 0.0 < record.speedup < SAME_SPEED


def settings_words(settings: Mapping[str, Any]) -> str:
    """ "sparsity 0.75 · block_size 128": one line; empty values are left out."""
    return " · ".join(f"{name} {value}" for name, value in _flat(settings))


def seconds_words(seconds: float) -> str:
    """ "0.021 s", "1.84 s", "12.3 s", "1 h 02 min": three digits are enough to compare."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    digits = 1 if seconds >= 10 else 2 if seconds >= 0.1 else 3
    return f"{seconds:.{digits}f} s"


def ranked_reasons(record: RunRecord) -> list[tuple[DenseReason, int]]:
    """(reason, calls), most frequent first."""
    return sorted(record.reasons.items(), key=lambda each: -each[1])


def _line(record: RunRecord, reasons: str, is_last: bool = False) -> str:
    """The counts in one line; the last of a run says what full attention would have taken."""
    parts = [f"sparse {record.sparse} / dense {record.dense}"]
    if reasons:
        parts[0] += f" ({reasons})"
    if record.density is not None:
        parts.append(f"density {record.density:.2f}{_with_context(record)}")
    if record.speedup is not None:
        about = "about " if record.is_rough else ""
        slower = f"{1 / record.speedup:.1f}x slower per step" if is_slower(record) else ""
        parts.append(about + (slower or f"{record.speedup:.1f}x per step"))
    if is_last and (kept := kept_words(record)):
        parts.append(f"kept {kept}")
    seconds = f"{record.seconds:.1f} s"
    if is_last and record.full_seconds is not None:
        seconds += f", with full attention about {record.full_seconds:.1f} s"
    parts.append(seconds)
    return " · ".join(parts)


def _with_context(record: RunRecord) -> str:
    """ " (0.83 with the context)" where exact context is much of what sparse calls compute."""
    if record.density is None or record.computed is None:
        return ""
    if record.computed - record.density < CONTEXT_MATTERS:
        return ""
    return f" ({record.computed:.2f} with the context)"


def _samplers(record: RunRecord) -> str:
    """ "both samplers", "all 3 samplers" of a run that adds up several."""
    count = len(record.nodes)
    return "both samplers" if count == 2 else f"all {count} samplers"


def _short_reasons(record: RunRecord) -> str:
    """Reasons behind their counts; a single one without."""
    texts = {each: _in_steps(record, each, each.short) for each in record.reasons}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{record.reasons[each]}: {text}" for each, text in texts.items())


def _in_steps(record: RunRecord, reason: DenseReason, text: str) -> str:
    """A share of the sampling also in steps: "first 20 %, 4 of 20 steps"."""
    steps = record.reason_steps.get(reason)
    if not reason.reason.is_share_of_sampling or steps is None or record.num_steps is None:
        return text
    return f"{text}, {steps} of {_count(record.num_steps, 'step')}"


def _why_no_speed(record: RunRecord) -> str:
    if not record.sparse:
        return "nothing to compare, every step was dense"
    return (
        f"not known, it takes a dense and {MIN_SPARSE_FORWARDS} sparse model calls to compare "
        f"({len(record.sparse_forward_seconds)} sparse, "
        f"{len(record.dense_forward_seconds)} dense)"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) pairs; a value inside another mapping is named "outer.inner"."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()):
            pairs.append((f"{prefix}{name}", _value_words(value)))
    return pairs


def _value_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join("off" if each is None else _value_words(each) for each in value)
    return str(value)


def _plain(value: Any) -> Any:
    """`value` without NaN and infinity, which json.dumps writes but no other reader accepts."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def why_nothing_measured(recorder: ProbeRecorder, last_run: RunRecord | None) -> str:
    """The likely cause of an empty probe, for the user."""
    if last_run is None and not recorder.was_asked:
        return (
            "no sampler has used this model yet. Give the sampler the model that comes out of the "
            "probe, and connect 'after' to what that sampler makes"
        )
    reasons = ranked_reasons(last_run) if last_run else []
    said = f" The run says: {reasons[0][0].text}." if reasons else ""
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


def probe_summary_text(outcome: ProbeOutcome) -> str:
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
        f"{steps_words(table)}, "
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
    head = (
        ["block", *(f"step {step_name(step)}" for step in steps)]
        if with_steps
        else ["block", "worst"]
    )
    rows = [[*head, "proposed"]]
    ranked = outcome.worst_first()
    for block, worst in ranked[:MAX_PROBE_ROWS]:
        errors = [outcome.error(block, step) for step in steps] if with_steps else [worst]
        cells = ["-" if error is None else number(error) for error in errors]
        sparsity = outcome.sparsity(block)
        proposed = f"{sparsity:.2f}" if sparsity else "dense"
        rows.append([block_name(block, outcome.profile.model), *cells, proposed])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    more = len(ranked) - MAX_PROBE_ROWS
    return [
        f"Error at sparsity {short(outcome.shown_sparsity)}, worst first",
        *lines,
        *([f"and {more} more"] if more > 0 else []),
    ]


def steps_words(table: ProbeTable) -> str:
    """ "steps 2, 11, 20": those that were measured."""
    noun = "step" if len(table.steps) == 1 else "steps"
    return f"{noun} {ranges(step + 1 for step in table.steps)}"


def ranges(numbers: Iterable[int | None]) -> str:
    """ "0-2, 5" of rising numbers."""
    known = [number for number in numbers if number is not None]
    parts = []
    for _, run in groupby(enumerate(known), key=lambda pair: pair[1] - pair[0]):
        members = [member for _, member in run]
        first, last = members[0], members[-1]
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ", ".join(parts)
