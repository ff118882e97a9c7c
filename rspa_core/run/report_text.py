"""The words of a report: one run as plain lines for a forum post, and as JSON.

The characters are those of Pillow's own font, because the picture shows the same words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .record import MIN_FORWARDS, RunRecord

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
    "The Rectified SpaAttn node is switched off (enabled), as for comparing with and without.",
    "The model connected here comes from a place before the Rectified SpaAttn node.",
)
NEVER_CALLED = "no attention call over the video reached the node"


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
    lines.append(
        f"Time in the model: {seconds_words(record.seconds)}, "
        f"{_count(record.forwards, 'model call')} in {_count(len(record.steps), 'step')}"
    )
    lines.append(f"Median time of a model call: {time_words(record)}")
    lines.append(f"Speed: {speed_words(record) or _why_no_speed(record)}")
    if record.reasons:
        lines.append("Why calls were dense:")
        lines += [f"  {count:,}  {reason}" for reason, count in ranked_reasons(record)]
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
    if record.density is not None:
        parts.append(f"density {record.density:.2f}")
    if speed := speed_words(record):
        parts.append(speed)
    return " · ".join(parts)


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
    if 0.95 <= ratio < 1.05:
        return "as fast as dense steps"
    return f"{ratio:.1f} x faster per step" if ratio > 1.0 else f"{1 / ratio:.1f} x slower per step"


def is_slower(record: RunRecord) -> bool:
    """Whether sparse steps took clearly longer than dense ones."""
    return "slower" in speed_words(record)


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


def ranked_reasons(record: RunRecord) -> list[tuple[str, int]]:
    """(reason, calls), most frequent first."""
    return sorted(record.reasons.items(), key=lambda each: -each[1])


def _why_no_speed(record: RunRecord) -> str:
    if not record.sparse:
        return "nothing to compare, every step was dense"
    return (
        f"not known, it takes {MIN_FORWARDS} model calls of either kind to compare "
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
