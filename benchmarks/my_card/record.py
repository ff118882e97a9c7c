"""The record of one card: what it holds, what a stranger's file is held to, and what it means."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...rspa_core.config import ConfigError
from ...rspa_core.run.profile import pack_version
from .. import rules
from ..output import table_lines
from ..rules import LABEL, NAME, RELEASE, OrNull, line, number, only, plain_name, text

FORMAT, VERSION = "rectified-spaattn-card", 1
MAX_BYTES = 64 << 10
PACKAGES = ("triton", "triton-windows", "sageattention", "comfy-kitchen")
OURS = "ours "
DEFAULT = "dense PyTorch"
"""As ComfyUI calls it where nothing else is chosen."""
SMALL = "small"
PORTABLE = "python_embeded\\python.exe -m pip"
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
            "name": plain_name(name),
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
    # What to type in a portable ComfyUI is no place of this machine.
    parts = text.split(PORTABLE)
    text = PORTABLE.join(re.sub(r"\b[A-Za-z]:[\\/][^'\"]*|\S*[\\/]\S*", "...", s) for s in parts)
    return "".join(each if each.isprintable() else " " for each in text)[:300]


_TOKENS, _HEADS = number(1, 1e7), number(1, 1024)

SPEC: dict[str, Any] = {
    "format": only(FORMAT),
    "version": only(VERSION),
    "pack": RELEASE,
    "device": {
        "name": NAME,
        "capability": text(r"\d{1,2}\.\d", "a compute capability such as 8.9").or_null,
        "memory_gib": number(0, 4096).or_null,
        "driver": RELEASE.or_null,
    },
    "software": {"system": LABEL, "python": RELEASE, "torch": RELEASE, "cuda": RELEASE.or_null}
    | {package.replace("-", "_"): RELEASE.or_null for package in PACKAGES},
    "call": {
        "name": LABEL, "grid": [_TOKENS], "tokens": _TOKENS, "heads": _HEADS,
        "model_heads": _HEADS, "head_dim": _HEADS, "dtype": only("bfloat16", "float16", "float32"),
    },
    "rows": [
        {
            "name": LABEL,
            "density": number(0, 1).or_null,
            "ms": number(1e-3, 1e7).or_null,
            "relative_l2": number(0, 100).or_null,
            "extra_mib": number(-1e6, 1e6).or_null,
            "first_s": number(0, 1e6).or_null,
            "tile": text(r"[a-z0-9,_]{1,60}", "a launch configuration").or_null,
            "reason": line(300).or_null,
        }
    ],
    "break_even": OrNull(
        {"preset": LABEL, "tokens": _TOKENS.or_null, "sizes": [[number(0, 1e7)]]}
    ),
    "seconds": number(0, 1e6),
}  # fmt: skip
"""Every field and what it may be; a list holds up to `rules.MAX_LIST` of one kind."""


def check(record: Any) -> Record:
    """The record itself, if every field is what `SPEC` says.

    Raises:
        ConfigError: a field is missing, unknown or not allowed; the message names it.
    """
    rules.check(record, SPEC)
    for index, row in enumerate(record["rows"]):
        if (row["ms"] is None) == (row["reason"] is None):
            raise ConfigError(f"rows[{index}].ms", row["ms"], "a number, or null with a reason")
        if row["ms"] is not None and row["relative_l2"] is None:
            raise ConfigError(f"rows[{index}].relative_l2", None, "a number beside a time")
    return record


def read(path: Path) -> Record:
    """The record in a file from anybody.

    Raises:
        ConfigError: it is too large, no JSON, or not a record.
        OSError: it cannot be read.
    """
    return check(rules.read_json(path, MAX_BYTES))


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
