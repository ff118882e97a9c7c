"""The record of one card: what it holds, what a stranger's file is held to, and what it means."""

from __future__ import annotations

import ctypes
import json
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...rspa_core.config import ConfigError
from ...rspa_core.run.profile import pack_version
from ..calls.rivals import DEFAULT
from ..output import table_lines

FORMAT, VERSION = "rectified-spaattn-card", 1
MAX_BYTES, MAX_LIST = 64 << 10, 64
PACKAGES = ("triton", "triton-windows", "sageattention", "comfy-kitchen")
OURS = "ours "
SMALL = "small"
BREAK_EVEN_PRESET = "balanced"
WORTH, CLOSE_ENOUGH = 1.1, 1.5
"""Times faster than the fastest dense back end: from the first on a preset pays, from the second on
the closest one is taken."""
ENABLED_BY = {
    "dense SageAttention": "start ComfyUI with --use-sage-attention",
    "dense comfy-kitchen INT8": "start ComfyUI with --use-ck-attention",
}
Record = dict[str, Any]


def machine(device: torch.device) -> Record:
    """The part of a record that tells where it was measured: no names of users or of files."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if on_gpu else None
    capability = torch.cuda.get_device_capability(device) if on_gpu else ()
    return {
        "format": FORMAT,
        "version": VERSION,
        "pack": pack_version(),
        "device": {
            "name": re.sub(r"[^A-Za-z0-9 ()+/-]", " ", name)[:60].strip(),
            "capability": ".".join(map(str, capability)) or None,
            "memory_gib": None if memory is None else round(memory, 1),
            "driver": _driver() if on_gpu else None,
        },
        "software": {
            "system": platform.system(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            **{package.replace("-", "_"): _version_of(package) for package in PACKAGES},
        },
    }


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Version of NVIDIA's driver, from its own library."""
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(80)
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, len(text)):
            return None
    except (OSError, AttributeError):
        return None
    return text.value.decode("ascii", "replace")


def plain(text: str) -> str:
    """A reason without places of this machine, in one line."""
    text = re.sub(r"\b[A-Za-z]:[\\/][^'\"]*|\S*[\\/]\S*", "...", text)
    return "".join(each if each.isprintable() else " " for each in text)[:300]


@dataclass(frozen=True)
class Rule:
    """What one value may be, and in words."""

    allows: Callable[[Any], bool]
    allowed: str

    @property
    def or_null(self) -> Rule:
        return Rule(lambda value: value is None or self.allows(value), f"{self.allowed}, or null")


def _number(low: float, high: float) -> Rule:
    def allows(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return Rule(allows, f"a number from {low:g} to {high:g}")


def _text(pattern: str, allowed: str) -> Rule:
    matches = re.compile(pattern, re.ASCII).fullmatch
    return Rule(lambda value: isinstance(value, str) and bool(matches(value)), allowed)


def _only(*values: Any) -> Rule:
    return Rule(
        lambda value: type(value) is type(values[0]) and value in values,
        "one of " + ", ".join(map(str, values)),
    )


# What reaches the table is a number, or a text of these characters: nothing that Markdown reads.
_NAME = _text(r"[A-Za-z0-9][A-Za-z0-9 ()+/-]{0,59}", "up to 60 letters, digits, spaces, ()+/-")
_LABEL = _text(
    r"[A-Za-z][A-Za-z0-9 -]{0,30}(\.\d+)?", "letters, digits, spaces, -, such as wan-720p"
)
_VERSION = _text(r"\d[A-Za-z0-9.+-]{0,39}", "a version, up to 40 letters, digits, .+-")
_TOKENS, _HEADS = _number(1, 1e7), _number(1, 1024)

SPEC: dict[str, Any] = {
    "format": _only(FORMAT),
    "version": _only(VERSION),
    "pack": _VERSION,
    "device": {
        "name": _NAME,
        "capability": _text(r"\d{1,2}\.\d", "a compute capability such as 8.9").or_null,
        "memory_gib": _number(0, 4096).or_null,
        "driver": _VERSION.or_null,
    },
    "software": {"system": _LABEL, "python": _VERSION, "torch": _VERSION, "cuda": _VERSION.or_null}
    | {package.replace("-", "_"): _VERSION.or_null for package in PACKAGES},
    "call": {
        "name": _LABEL, "grid": [_TOKENS], "tokens": _TOKENS, "heads": _HEADS,
        "model_heads": _HEADS, "head_dim": _HEADS, "dtype": _only("bfloat16", "float16", "float32"),
    },
    "rows": [
        {
            "name": _LABEL,
            "density": _number(0, 1).or_null,
            "ms": _number(1e-3, 1e7).or_null,
            "relative_l2": _number(0, 100).or_null,
            "extra_mib": _number(-1e6, 1e6).or_null,
            "first_s": _number(0, 1e6).or_null,
            "tile": _text(r"[a-z0-9,_]{1,60}", "a launch configuration").or_null,
            "reason": Rule(
                lambda value: isinstance(value, str) and 0 < len(value) <= 300
                and value.isprintable(),
                "a text of one line, up to 300 characters",
            ).or_null,
        }
    ],
    "break_even": {
        "preset": _LABEL, "tokens": _TOKENS.or_null, "sizes": [[_number(0, 1e7)]],
    },
    "seconds": _number(0, 1e6),
}  # fmt: skip
"""Every field and what it may be; a list holds up to `MAX_LIST` of one kind."""


def check(record: Any) -> Record:
    """The record itself, if every field is what `SPEC` says; `break_even` may be null.

    Raises:
        ConfigError: a field is missing, unknown or not allowed; the message names it.
    """
    _check(record, SPEC, "record")
    for index, row in enumerate(record["rows"]):
        if (row["ms"] is None) == (row["reason"] is None):
            raise ConfigError(f"rows[{index}].ms", row["ms"], "a number, or null with a reason")
        if row["ms"] is not None and row["relative_l2"] is None:
            raise ConfigError(f"rows[{index}].relative_l2", None, "a number beside a time")
    return record


def _check(value: Any, spec: Any, field: str) -> None:
    if isinstance(spec, Rule):
        if not spec.allows(value):
            raise ConfigError(field, value, spec.allowed)
    elif isinstance(spec, list):
        if not isinstance(value, list) or len(value) > MAX_LIST:
            raise ConfigError(field, value, f"a list of up to {MAX_LIST}")
        for index, each in enumerate(value):
            _check(each, spec[0], f"{field}[{index}]")
    elif not (value is None and field == "break_even"):
        if not isinstance(value, dict) or value.keys() != spec.keys():
            raise ConfigError(field, value, "an object with the fields " + ", ".join(spec))
        for name, inner in spec.items():
            _check(value[name], inner, name if field == "record" else f"{field}.{name}")


def read(path: Path) -> Record:
    """The record in a file from anybody.

    Raises:
        ConfigError: it is too large, no JSON, or not a record.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError("file", path.name, f"up to {MAX_BYTES >> 10} KiB")
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError("file", path.name, f"JSON in UTF-8 ({type(error).__name__})") from error
    return check(found)


def file_stem(record: Record) -> str:
    """Name of the record's files, such as "card_nvidia_geforce_rtx_4090"."""
    return "card_" + re.sub(r"[^a-z0-9]+", "_", record["device"]["name"].lower()).strip("_")


def milliseconds(record: Record) -> dict[str, float]:
    """By row, of those that have a time."""
    return {row["name"]: row["ms"] for row in record["rows"] if row["ms"] is not None}


def fastest_dense(times: dict[str, float]) -> str | None:
    """Name of the dense row with the least time."""
    dense = {name: ms for name, ms in times.items() if name.startswith("dense")}
    return min(dense, key=dense.__getitem__, default=None)


def call_words(record: Record) -> str:
    """The call in a few words."""
    call = record["call"]
    return (
        f"{call['name']}: {call['tokens']:,} tokens, {call['heads']} of {call['model_heads']} "
        f"heads, {call['dtype']}"
    )


def advice(record: Record) -> list[str]:
    """What the figures mean for an artist, in plain sentences."""
    if record["device"]["capability"] is None:
        return ["Measured on a CPU, with plain torch: this tells nothing about graphics cards."]
    times = milliseconds(record)
    fastest = fastest_dense(times)
    if fastest is None:
        return ["No dense attention ran: there is nothing to compare with."]
    gains = {name: times[fastest] / ms for name, ms in times.items() if name.startswith(OURS)}
    if not gains:
        reasons = {str(row["reason"]) for row in record["rows"] if row["name"].startswith(OURS)}
        return [f"Sparse attention does not run here: {'; '.join(sorted(reasons))}"]
    # From the closest to the full result to the fastest, as the presets are listed.
    chosen = next((name for name, gain in gains.items() if gain >= CLOSE_ENOUGH), None)
    chosen = chosen or max(gains, key=gains.__getitem__)
    preset, dense, gain = chosen.removeprefix(OURS), fastest.removeprefix("dense "), gains[chosen]
    words = [
        f"Preset {preset}: one attention call is {gain:.2f} times as fast as with the fastest "
        f"dense back end here, {dense}. A render gains less: attention is a part of it."
        if gain >= WORTH
        else f"It does not pay on this card: {preset}, the fastest preset, is {gain:.2f} times as "
        f"fast as {dense}."
    ]
    if fastest in ENABLED_BY and DEFAULT in times:
        more = times[DEFAULT] / times[fastest]
        how = ENABLED_BY[fastest]
        words.append(f"Dense calls: {dense} is {more:.2f} times as fast as the default: {how}.")
    missing = [row["name"] for row in record["rows"] if "not installed" in (row["reason"] or "")]
    if missing:
        words.append(f"Not installed, so not compared: {', '.join(missing)}.")
    even = record["break_even"]
    if even is not None:
        where = f"from {even['tokens']:,} tokens on" if even["tokens"] else "in no small size"
        words.append(f"{even['preset']} is faster than ComfyUI's default {where}.")
    return [*words, "Errors are of synthetic heads: how videos look, only a render shows."]


COLUMNS = {
    "ms": ("ms", "{:.2f}"),
    "relative_l2": ("rel L2", "{:.4f}"),
    "extra_mib": ("+MiB", "{:.0f}"),
    "density": ("density", "{:.3f}"),
    "first_s": ("first call s", "{:.1f}"),
    "tile": ("tile", "{}"),
}


def text_lines(record: Record) -> list[str]:
    """The whole record as text: where, what, the table, reasons, advice."""
    software, rows = record["software"], record["rows"]
    return [
        f"{record['device']['name']}, torch {software['torch']}, pack {record['pack']}",
        call_words(record),
        *table_lines([row for row in rows if row["reason"] is None], "name", COLUMNS),
        *(f"{row['name']}: {row['reason']}" for row in rows if row["reason"] is not None),
        *advice(record),
    ]
