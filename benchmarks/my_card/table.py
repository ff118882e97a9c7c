"""The table by card in docs/benchmarks.md: one row a card, from the files that people send."""

from __future__ import annotations

import re
from pathlib import Path

from .. import rules
from .record import DEFAULT, OURS, Record, fastest_dense, milliseconds

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
PRESET_COLUMNS = ("quality", "balanced", "fast")
HEADS = (
    "card", "call", "ComfyUI's default", "fastest dense", *(f"`{each}`" for each in PRESET_COLUMNS),
    "first call", "pays from", "version",
)  # fmt: skip
HEADER = f"| {' | '.join(HEADS)} |"
SERIES = ("RTX 30", "RTX 40", "RTX 50")
MISSING = "Nobody has sent a card of these series yet: "


def row_of(record: Record) -> str:
    """The Markdown row of a checked record.

    Raises:
        ValueError: it was measured on a CPU, or no preset has a time.
    """
    times = milliseconds(record)
    if record["device"]["capability"] is None:
        raise ValueError("a record of a CPU has no place in the table by card")
    if not any(name.startswith(OURS) for name in times):
        raise ValueError("a record without a time of any preset has no place in the table by card")
    best = fastest_dense(times)
    dense = times.get(DEFAULT)
    cells = [record["device"]["name"], f"{record['call']['name']}, {record['call']['heads']} heads"]
    cells.append("-" if dense is None else f"{dense:.1f}")
    cells.append("-" if best is None else f"{times[best]:.1f} ({best.removeprefix('dense ')})")
    for preset in PRESET_COLUMNS:
        ms = times.get(OURS + preset)
        gain = "" if best is None or ms is None else f" ({times[best] / ms:.2f}x)"
        cells.append("-" if ms is None else f"{ms:.1f}{gain}")
    first = [row["first_s"] for row in record["rows"] if row["name"].startswith(OURS)]
    cells.append(f"{sum(filter(None, first)):.0f} s")
    tokens = (record["break_even"] or {}).get("tokens")
    cells.append("-" if tokens is None else f"{tokens:,.0f} tokens")
    cells.append(f"{record['pack']}, torch {record['software']['torch']}")
    return f"| {' | '.join(cells)} |"


def with_row(document: str, row: str) -> str:
    """The document with this row in the table, in place of an older one of the same card, and with
    the series that are still missing.

    Raises:
        ValueError: the table is not in the document.
    """
    text, rows = rules.with_row(document, HEADER, row)
    named = missing_words(rows)
    return "\n".join(named if line.startswith(MISSING) else line for line in text.split("\n"))


def missing_words(rows: list[str]) -> str:
    """The line that names the series of which no card is among the rows."""
    cards = [row.split("|")[1] for row in rows]
    missing = [
        each for each in SERIES if not any(re.search(rf"{each}\d\d\b", card) for card in cards)
    ]
    return f"{MISSING}{', '.join(missing) or 'none'}."
