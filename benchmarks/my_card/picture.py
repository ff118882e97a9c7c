"""Picture of a record: a bar for every way to compute a call, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ...nodes.pictures import (
    BAR_HIGH,
    DENSE,
    GRID,
    LINE_HEIGHT,
    MUTED,
    TEXT,
    Canvas,
    drawable,
    fitted,
)

WIDTH, MAX_HEIGHT = 960, 1600
MARGIN, LEFT, BAR_END, RIGHT = 28, 268, 620, 932
"""Edges of the names, the bars and the columns behind them, in pixels of the finished picture."""
COLUMNS = {"ms": 700, "x": 760, "rel L2": 846, "+MiB": RIGHT}
"""Right edges."""
OTHER = (150, 130, 190)


def draw_benchmark(record: Mapping[str, Any], call: str, advice: Sequence[str]) -> Image.Image:
    """The finished RGB picture of a record, 960 pixels wide and as high as its rows.

    Args:
        record: see `measure`.
        call: the call in words.
        advice: sentences below the rows.
    """
    canvas = Canvas.empty(WIDTH, MAX_HEIGHT)
    canvas.text((MARGIN, 42), fitted(record["device"]["name"], 24, 500), 24, TEXT, "ls")
    versions = f"Rectified SpaAttn {record['pack']}, torch {record['software']['torch']}"
    canvas.text((RIGHT, 42), versions, 15, MUTED, "rs")
    canvas.text((MARGIN, 70), f"One attention call, {call}", 15, MUTED, "ls")
    for heading, right in COLUMNS.items():
        canvas.text((right, 102), heading, 15, MUTED, "rs")
    timed = [row for row in record["rows"] if row["ms"] is not None]
    longest = max((row["ms"] for row in timed), default=1.0)
    dense = min((row["ms"] for row in timed if row["name"].startswith("dense")), default=None)
    y = 108.0
    for row in record["rows"]:
        y += 26
        canvas.text((MARGIN, y), row["name"], 16, TEXT, "ls")
        if row["ms"] is None:
            reason = fitted(drawable(row["reason"]), 14, RIGHT - LEFT)
            canvas.text((LEFT, y), reason, 14, MUTED, "ls")
            continue
        kind = row["name"].split()[0]
        color = {"dense": DENSE, "ours": BAR_HIGH}.get(kind, OTHER)
        end = LEFT + (BAR_END - LEFT) * row["ms"] / longest
        canvas.fill((LEFT, y - 14, end, y + 2), color)
        values = {"ms": f"{row['ms']:.2f}", "rel L2": f"{row['relative_l2']:.4f}"}
        if dense is not None:
            values["x"] = f"{dense / row['ms']:.2f}"
        if row["extra_mib"] is not None:
            values["+MiB"] = f"{row['extra_mib']:.0f}"
        for heading, value in values.items():
            canvas.text((COLUMNS[heading], y), value, 15, TEXT, "rs")
    canvas.line((MARGIN, y + 16), (RIGHT, y + 16), GRID, 1)
    legend = "x: times as fast as the fastest dense one. rel L2: to full attention in fp32."
    canvas.text((MARGIN, y + 36), legend, 14, MUTED, "ls")
    y += 42
    for sentence in advice:
        y = canvas.lines(MARGIN, y, sentence, 16, TEXT, RIGHT) + 4
    return canvas.cut(y + LINE_HEIGHT)
