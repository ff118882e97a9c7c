"""The record of a comparison: what it holds, what a stranger's file is held to, its table row."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ...rspa_core.config import ConfigError
from .. import rules
from ..rules import NAME, RELEASE, Rule, line, number, only, text

FORMAT, VERSION = "rectified-spaattn-paired", 1
MAX_BYTES = 1 << 20
MAX_PROMPT = 4000
MAX_CLIPS = rules.MAX_LIST
Record = dict[str, Any]

_FILE = text(r"[A-Za-z0-9][A-Za-z0-9 ._()+-]{0,119}", "a file name of letters, digits, ._()+-")
_COUNT, _SECONDS, _MEMORY = number(0, 1e7), number(0, 1e6), number(0, 4096)
_SMALL = Rule(
    lambda value: isinstance(value, dict) and len(json.dumps(value)) <= 8192,
    "an object of up to 8 KiB",
)
_RENDER = {"seconds": _SECONDS, "sampling_s": _SECONDS.or_null, "peak_gib": _MEMORY.or_null}
_REPORT = {
    "tokens": _COUNT.or_null, "steps": _COUNT, "sparse": _COUNT, "dense": _COUNT,
    "density": number(0, 1).or_null, "seconds": _SECONDS, "reasons": _SMALL,
}  # fmt: skip
_RANGE = {"mean": number(-1e3, 1e3).or_null, "worst": number(-1e3, 1e3).or_null}

SPEC: Record = {
    "format": only(FORMAT),
    "version": only(VERSION),
    "pack": RELEASE,
    "device": {
        "name": NAME,
        "type": text(r"[a-z]{1,12}", "a kind of device, such as cuda"),
        "memory_gib": _MEMORY.or_null,
    },
    "software": {
        "comfyui": RELEASE, "torch": RELEASE, "python": RELEASE,
        "system": text(r"[A-Za-z0-9]{1,20}", "a system, such as linux"),
    },
    "workflow": {
        "name": _FILE, "diffusion": [_FILE], "others": [_FILE],
        "frames": _COUNT, "height": _COUNT, "width": _COUNT,
    },
    "settings": [_SMALL],
    "clips": [
        {
            "prompt": line(MAX_PROMPT).or_null, "seed": number(0, 2.0**64),
            "psnr": number(-1e3, 1e3).or_null, "ssim": number(-1, 1),
            "lpips": number(0, 1e3).or_null,
            "dense": _RENDER, "sparse": _RENDER, "reports": [_REPORT],
        }
    ],
    "summary": {
        "clips": _COUNT, "equal": _COUNT, "psnr": _RANGE, "ssim": _RANGE, "lpips": _RANGE,
        "dense_s": _SECONDS.or_null, "sparse_s": _SECONDS.or_null, "times": _SECONDS.or_null,
        "dense_gib": _MEMORY.or_null, "sparse_gib": _MEMORY.or_null,
        "density": number(0, 1).or_null,
    },
}  # fmt: skip
"""Every field and what it may be; a list holds up to `rules.MAX_LIST` of one kind."""


def check(record: Any) -> Record:
    """The record itself, if every field is what `SPEC` says and the summary is that of its clips.

    Raises:
        ConfigError: it is not; the message names the field.
    """
    rules.check(record, SPEC)
    if not record["clips"]:
        raise ConfigError("clips", [], "at least one clip")
    if record["summary"] != summary_of(record["clips"]):
        raise ConfigError("summary", record["summary"], "what the clips give")
    return record


def read(path: Path) -> Record:
    """The record in a file from anybody.

    Raises:
        ConfigError: it is too large, no JSON, or not a record.
        OSError: it cannot be read.
    """
    return check(rules.read_json(path, MAX_BYTES))


def plain_prompt(prompt: str) -> str:
    """A prompt in one line of what prints."""
    printed = "".join(each if each.isprintable() else " " for each in prompt)
    return " ".join(printed.split())[:MAX_PROMPT]


def short_report(report: dict[str, Any]) -> Record:
    """Of a node's report what a record keeps."""
    kept = {name: report[name] for name in _REPORT}
    return kept | {"steps": len(report["steps"])}


def summary_of(clips: Sequence[Record]) -> Record:
    """Means and worst figures over clips.

    Times are medians, so that one clip that loads the model or compiles kernels does not count.
    """
    renders = {kind: [clip[kind] for clip in clips] for kind in ("dense", "sparse")}
    seconds = {
        kind: _of(median, [each["sampling_s"] for each in every]) for kind, every in renders.items()
    }
    timed = [
        (clip["dense"]["sampling_s"], clip["sparse"]["sampling_s"])
        for clip in clips
        if clip["dense"]["sampling_s"] and clip["sparse"]["sampling_s"]
    ]
    return {
        "clips": len(clips),
        "equal": sum(clip["psnr"] is None for clip in clips),
        "psnr": _range(clips, "psnr", min),
        "ssim": _range(clips, "ssim", min),
        "lpips": _range(clips, "lpips", max),
        "dense_s": seconds["dense"],
        "sparse_s": seconds["sparse"],
        "times": _of(median, [dense / sparse for dense, sparse in timed]),
        "dense_gib": _of(max, [each["peak_gib"] for each in renders["dense"]]),
        "sparse_gib": _of(max, [each["peak_gib"] for each in renders["sparse"]]),
        "density": _density([report for clip in clips for report in clip["reports"]]),
    }


def _of(what: Any, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{what(known):.5g}") if known else None


def _range(clips: Sequence[Record], name: str, worst: Any) -> Record:
    values = [clip[name] for clip in clips]
    return {"mean": _of(fmean, values), "worst": _of(worst, values)}


def _density(reports: Sequence[Record]) -> float | None:
    """Mean over the sparse calls."""
    calls = sum(each["sparse"] for each in reports)
    kept = sum((each["density"] or 0.0) * each["sparse"] for each in reports)
    return _of(fmean, [kept / calls]) if calls else None


def setting_words(record: Record) -> str:
    """ "balanced, 20 steps", or the values in place of a preset, as they were run."""
    settings = record["settings"][0] if record["settings"] else {}
    name = str(settings.get("preset", "custom"))
    if name == "custom":
        name = f"sparsity {settings.get('sparsity', 'scheduled')}, {settings.get('block_size')}"
    steps = sum(each["steps"] for each in record["clips"][0]["reports"])
    # Settings may be a stranger's: nothing that Markdown reads.
    return f"{re.sub('[^A-Za-z0-9 ,.()+-]', ' ', name)[:40]}, {steps:.0f} steps"


FIGURES = (
    "density", "PSNR mean (worst)", "SSIM mean (worst)", "LPIPS mean (worst)",
    "sampling, dense to sparse", "memory",
)  # fmt: skip


def figures(record: Record) -> dict[str, str]:
    """The summary in words, by `FIGURES`; "-" for what is not known."""
    found = record["summary"]

    def spread(name: str, form: str) -> str:
        mean, worst = found[name]["mean"], found[name]["worst"]
        return "-" if mean is None else f"{mean:{form}} ({worst:{form}})"

    words = ["-" if found["density"] is None else f"{found['density']:.2f}"]
    words += [spread("psnr", ".1f"), spread("ssim", ".3f"), spread("lpips", ".3f")]
    seconds, gib = (
        "-" if None in (pair := (found[f"dense_{unit}"], found[f"sparse_{unit}"]))
        else f"{pair[0]:.1f} to {pair[1]:.1f}"
        for unit in ("s", "gib")
    )  # fmt: skip
    times = "" if found["times"] is None else f" s ({found['times']:.2f}x)"
    words += [seconds + times, gib if gib == "-" else f"{gib} GiB"]
    return dict(zip(FIGURES, words, strict=True))


HEADS = ("card", "model", "clip", "setting", *FIGURES, "clips", "version")
HEADER = f"| {' | '.join(HEADS)} |"
KEYS = 4
"""Cells by which rows are told apart."""
MISSING = "Nobody has sent a comparison yet."


def row_of(record: Record) -> str:
    """The Markdown row of a checked record.

    Raises:
        ValueError: it was measured on a CPU, or nothing was sparse.
    """
    if record["device"]["type"] == "cpu":
        raise ValueError("a comparison on a CPU has no place in the table")
    if record["summary"]["density"] is None:
        raise ValueError("a comparison without a sparse call has no place in the table")
    workflow = record["workflow"]
    models = " + ".join(f"`{Path(name).stem}`" for name in workflow["diffusion"]) or "-"
    size = f"{workflow['width']}x{workflow['height']}x{workflow['frames']}"
    setting = setting_words(record)
    cells = [record["device"]["name"], models, size, setting, *figures(record).values()]
    cells += [
        str(len(record["clips"])),
        f"{record['pack']}, ComfyUI {record['software']['comfyui']}",
    ]
    return f"| {' | '.join(cells)} |"


def with_row(document: str, row: str) -> str:
    """The document with this row in the table, in place of an older one of the same kind.

    Raises:
        ValueError: the table is not in the document.
    """
    found, _ = rules.with_row(document, HEADER, row, KEYS)
    return found.replace(f"{MISSING}\n\n", "")
