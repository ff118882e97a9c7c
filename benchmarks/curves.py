"""The text of two curves: time over density, and time over tokens."""

from __future__ import annotations

from collections.abc import Sequence

from .comparison import Row

Times = dict[int, dict[str, float | None]]
"""By tokens, ascending: name of the variant to milliseconds, None where it has no time."""


def bound(density: float) -> float:
    """What ours is held to: time over that of density 1."""
    return 1.08 * density + 0.02


def linear_lines(variant: str, rows: dict[float, Row], dense_ms: float | None) -> list[str]:
    """time(density) / time(1) of one variant of ours next to the bound, and time(1) over cuDNN.

    Args:
        variant: its name.
        rows: by density; 1 has to be among them.
        dense_ms: time of cuDNN.
    """
    full = rows[1.0].ms
    over = f"{full / dense_ms:.3f}" if full and dense_ms else "-"
    dense = f"{dense_ms:.2f} ms" if dense_ms else "no time"
    lines = [
        f"{variant}: time(1) / cuDNN = {over} (cuDNN: {dense})",
        f"{'density':>9}{'realised':>9}{'ms':>9}{'ratio':>9}{'bound':>9}",
    ]
    for density, row in rows.items():
        if row.ms is None or full is None:
            lines.append(f"{density:9g}  {row.refused or 'density 1 has no time'}")
            continue
        ratio = row.ms / full
        verdict = "" if ratio <= bound(density) else "  above"
        lines.append(
            f"{density:9g}{row.density:9.3f}{row.ms:9.2f}{ratio:9.3f}{bound(density):9.3f}{verdict}"
        )
    return lines


def break_even_lines(times: Times, ours: Sequence[str], rivals: Sequence[str]) -> list[str]:
    """Milliseconds by tokens, and from how many tokens each of ours is faster than each rival."""
    labels = [*rivals, *ours]
    lines = [f"[{index}] {label}" for index, label in enumerate(labels)]
    lines.append(f"{'tokens':>9}" + "".join(f"{f'[{index}]':>9}" for index in range(len(labels))))
    for tokens, row in times.items():
        cells = (f"{'-':>9}" if row.get(n) is None else f"{row[n]:9.3f}" for n in labels)
        lines.append(f"{tokens:9,}" + "".join(cells))
    for label in ours:
        for rival in rivals:
            start = faster_from({n: (row.get(label), row.get(rival)) for n, row in times.items()})
            found = "at none of these sizes" if start is None else f"from {start:,} tokens"
            lines.append(f"{label}: faster than {rival} {found}")
    return lines


def faster_from(pairs: dict[int, tuple[float | None, float | None]]) -> int | None:
    """Smallest number of tokens from which on the first time is always below the second."""
    start = None
    for tokens, (own, rival) in sorted(pairs.items(), reverse=True):
        if own is None or rival is None or own >= rival:
            break
        start = tokens
    return start
