"""What the benchmarks print, write and draw with."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

INK = "#22303c"
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
"""Of every picture of the benchmarks, as matplotlib's rc parameters."""

# Okabe-Ito colours: told apart by colour-blind readers and in print.
COLOURS = {
    "none": "#8c8c8c",
    "paper": "#e69f00",
    "pooled": "#f0e442",
    "precise 1 key": "#0072b2",
    "precise 2 keys": "#56b4e9",
    "precise 4 keys": "#009e73",
    "precise 8 keys": "#cc79a7",
    "Sol-Attn": "#d55e00",
    "Sol-Attn in fp32": "#d55e00",
}
"""Of a method, by its name."""


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring as it is written."""
    laid_out = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=laid_out)


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first row names the columns, the first column is flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return lines


def table_lines(
    rows: Sequence[dict[str, Any]], first: str, columns: dict[str, tuple[str, str]]
) -> list[str]:
    """A table of records.

    Args:
        rows: the records; a value of None or NaN is left empty.
        first: field that names a row, and heading of that column.
        columns: field to heading and form.
    """

    def cell(value: Any, form: str) -> str:
        return "" if value is None or value != value else form.format(value)

    lines = [[first, *(heading for heading, _ in columns.values())]]
    for row in rows:
        cells = (cell(row[name], form) for name, (_, form) in columns.items())
        lines.append([str(row[first]), *cells])
    return aligned(lines)


def write_json(value: Any, path: Path, indent: int | None = 1) -> None:
    """Write JSON; infinities and NaN become null. A reader of `path` gets the old or the new one.

    Benchmarks write what they have so far: a run that is cut off leaves its finished part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json_text(value, indent) + "\n", encoding="utf-8")
    part.replace(path)


def json_text(value: Any, indent: int | None = 1) -> str:
    """JSON; infinities and NaN become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
