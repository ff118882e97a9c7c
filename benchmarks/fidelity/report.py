"""What the fidelity benchmark reports: the ratios between variants, tables, and a picture of errors
against time, or against the kept share.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..output import COLOURS, INK, STYLE, aligned

Record = dict[str, Any]
"""One variant at one kept share on one set of heads; see `measure` in __main__.py."""

Point = tuple[float, float]
Axis = Literal["density", "ms"]

METRICS = ("relative_l2", "gain")
SLACK = 0.02
"""A curve is taken to reach this much beyond its ends, as a share of x."""

RIVALS = ("paper", "none", "pooled")
KERNEL = "kernel"
INTERPOLATED = "kernel, interpolated over density"

LINES = {"128x128": "-", "128x64": "--", "64x64": ":"}
MARKERS = {"16-bit": "o", "int8": "^", "fp32": "s"}
FRONT = "#b8c4cf"


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of numbers of 0 or more; ValueError if there are none."""
    return statistics.geometric_mean([max(value, 1e-12) for value in values])


def by_kind(values: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    """Geometric mean over the heads of every kind."""
    return {
        kind: geometric_mean(v for v, k in zip(values, kinds, strict=True) if k == kind)
        for kind in dict.fromkeys(kinds)
    }


def interpolate(points: Iterable[Point], x: float) -> float | None:
    """y of a curve at `x`, straight lines between the logarithms; None outside the curve.

    Args:
        points: (x, y), both above 0, in any order; of equal x the smallest y counts.
        x: where; up to `SLACK` outside it gets the value of the end.
    """
    curve: dict[float, float] = {}
    for at, y in points:
        curve[at] = min(y, curve.get(at, y))
    ends = sorted(curve)
    if not ends or not ends[0] * (1 - SLACK) <= x <= ends[-1] * (1 + SLACK):
        return None
    errors = [max(curve[end], 1e-12) for end in ends]
    return math.exp(np.interp(math.log(x), np.log(ends), np.log(errors)))


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other one beats, by rising x: smaller is better in x and y.

    Of equal points the first one is on the front.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda number: (*points[number], number)):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def usable(records: Iterable[Record]) -> list[Record]:
    """Records of variants that ran."""
    return [record for record in records if not record["refused"]]


def is_timed(record: Record) -> bool:
    """Whether its milliseconds are a kernel's."""
    return record["ms_source"].startswith(KERNEL)


def attach_times(records: Iterable[Record]) -> None:
    """Give untimed records the time of their kernel at the density that they kept, in place.

    The time of a kernel at one shape is a straight line over the density: the one nearest to the
    timed records with the same `timing_key`.
    """
    timed: dict[str, list[Point]] = {}
    for record in usable(records):
        if record["ms_source"] == KERNEL:
            point = statistics.fmean(record["density"]), record["ms"]
            timed.setdefault(record["timing_key"], []).append(point)
    for record in usable(records):
        points = timed.get(record["timing_key"], [])
        if record["ms_source"] in ("", INTERPOLATED) and len({x for x, _ in points}) > 1:
            slope, start = np.polyfit([x for x, _ in points], [y for _, y in points], 1)
            record["ms"] = float(start + slope * statistics.fmean(record["density"]))
            record["ms_source"] = INTERPOLATED


@dataclass(frozen=True)
class Ratio:
    """Error of one variant over that of another, head by head at the rival's points.

    Attributes:
        inputs, ours, rival: which heads and curves.
        axis: what is equal: "density" or "ms".
        mean: geometric mean over heads and points.
        worst_kind, worst: the kind of head with the largest mean, and that mean.
        at: for every point of the rival that ours covers, its x (mean over heads) and the mean.
    """

    inputs: str
    ours: str
    rival: str
    axis: Axis
    mean: float
    worst_kind: str
    worst: float
    at: list[Point]


def compare(
    ours: Sequence[Record], rival: Sequence[Record], kinds: Sequence[str], axis: Axis
) -> Ratio | None:
    """Relative L2 error of `ours` over that of `rival` at equal density or time.

    Args:
        ours, rival: the records of one curve each, on the same heads.
        kinds: of the heads.
        axis: "density" (of the head) or "ms" (of the call).

    Returns:
        None where the curves share no x.

    """

    def x_of(record: Record, head: int) -> float:
        return record["density"][head] if axis == "density" else record["ms"]

    if axis == "ms":
        ours, rival = (list(filter(is_timed, records)) for records in (ours, rival))
    collected: dict[str, list[float]] = {}
    at = []
    # Where neighbours need more than the budget, several shares keep the same blocks.
    for record in {tuple(each["density"]): each for each in reversed(rival)}.values():
        found = []
        for head, kind in enumerate(kinds):
            x = x_of(record, head)
            points = ((x_of(each, head), each["relative_l2"][head]) for each in ours)
            if (error := interpolate(points, x)) is not None:
                found.append((x, error / max(record["relative_l2"][head], 1e-12)))
                collected.setdefault(kind, []).append(found[-1][1])
        if found:
            at.append((statistics.fmean(x for x, _ in found), geometric_mean(y for _, y in found)))
    if not collected:
        return None
    groups = {kind: geometric_mean(values) for kind, values in collected.items()}
    worst = max(groups, key=lambda kind: groups[kind])
    return Ratio(
        inputs=rival[0]["input"],
        ours=ours[0]["variant"],
        rival=rival[0]["variant"],
        axis=axis,
        mean=geometric_mean(value for values in collected.values() for value in values),
        worst_kind=worst,
        worst=groups[worst],
        at=sorted(at),
    )


def curves_of(records: Iterable[Record], inputs: str) -> dict[str, list[Record]]:
    """Records that ran on these heads, by name of the variant."""
    curves: dict[str, list[Record]] = {}
    for record in usable(records):
        if record["input"] == inputs:
            curves.setdefault(record["variant"], []).append(record)
    return curves


def ratios(document: dict[str, Any]) -> list[Ratio]:
    """What the project is held to, and what decides between variants; on every set of heads.

    `precise` over `RIVALS` and Sol-Attn (over its formula where it cannot run), at equal density
    and blocks and at equal milliseconds; its other token orders over the first.
    """
    found = []
    for inputs, facts in document["inputs"].items():
        curves = curves_of(document["records"], inputs)
        first = {label: records[0] for label, records in curves.items()}
        for ours, rival, axis in _pairs(first, document["orders"][0]):
            ratio = compare(curves[ours], curves[rival], facts["kinds"], axis)
            if ratio is not None:
                found.append(ratio)
    return found


def _pairs(first: dict[str, Record], order: str) -> list[tuple[str, str, Axis]]:
    """(ours, rival, axis) of the comparisons, from one record of every curve."""

    def those(kinds: Sequence[str], like: Record, *same: str) -> list[str]:
        return [
            label
            for label, each in first.items()
            if each["kind"] in kinds and all(each[key] == like[key] for key in same)
        ]

    found: list[tuple[str, str, Axis]] = []
    for label, record in first.items():
        if record["kind"] != "precise":
            continue
        if record["order"] != order:
            base = those(["precise"], record, "name", "blocks", "precision")
            found += [(label, each, "density") for each in base if first[each]["order"] == order]
            continue
        for rival in those(RIVALS, record, "blocks", "order", "precision"):
            found += [(label, rival, axis) for axis in ("density", "ms")]
        for rival in those(["sol"], record) or those(["sol formula"], record):
            if first[rival]["blocks"] == record["blocks"]:
                found.append((label, rival, "density"))
            found.append((label, rival, "ms"))
    return found


def ratio_lines(found: Sequence[Ratio]) -> list[str]:
    """Ratios as text; below 1 the first variant is closer to full attention."""
    lines = []
    for inputs, axis in dict.fromkeys((ratio.inputs, ratio.axis) for ratio in found):
        lines += ["", f"{inputs}: error over that of the rival at equal {axis} (below 1: closer)"]
        for ratio in found:
            if (ratio.inputs, ratio.axis) == (inputs, axis):
                points = " ".join(f"{x:.3g}:{value:.3f}" for x, value in ratio.at)
                lines.append(
                    f"  {ratio.mean:6.3f}  worst {ratio.worst_kind} {ratio.worst:.3f}  "
                    f"{ratio.ours} / {ratio.rival}  [{points}]"
                )
    return lines


def table_lines(document: dict[str, Any]) -> list[str]:
    """Every record that ran: density, time, error over all heads and by kind, other metrics."""
    lines = []
    for inputs, facts in document["inputs"].items():
        kinds = facts["kinds"]
        rows = [["variant", "share", "density", "ms", "rel L2", *dict.fromkeys(kinds), "gain"]]
        records = usable(each for each in document["records"] if each["input"] == inputs)
        for record in records:
            errors = record["relative_l2"]
            numbers = [geometric_mean(errors), *by_kind(errors, kinds).values()]
            numbers.append(statistics.fmean(record["gain"]))
            share = "by tau" if record["share"] is None else f"{record['share']:g}"
            ms = "-" if record["ms"] is None else f"{record['ms']:.1f}"
            density = f"{statistics.fmean(record['density']):.3f}"
            cells = (f"{number:.4f}" for number in numbers)
            rows.append([record["variant"], share, density, ms, *cells])
        sources = " or ".join(sorted({each["ms_source"] for each in records} - {""}))
        lines += ["", f"{inputs} heads; ms: {sources or 'none'}", *aligned(rows)]
    return lines


def record_line(record: Record) -> str:
    """One record as a line, as soon as it is measured."""
    start = f"{record['input']} {record['variant']} {record['share'] or 'by tau'}: "
    if record["refused"]:
        return start + record["refused"]
    error = geometric_mean(record["relative_l2"])
    return f"{start}density {statistics.fmean(record['density']):.3f}, relative L2 {error:.4f}"


def save_figure(document: dict[str, Any], path: Path) -> Path:
    """Draw a panel for every set of heads and save them as `path` (PNG).

    The x axis is milliseconds where kernels were timed, else the kept share. Only the first token
    order and variants with a colour above are drawn; the Pareto front is that of what is drawn.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {inputs: drawn_curves(document, inputs) for inputs in document["inputs"]}
    with plt.rc_context(STYLE | {"font.size": 11, "axes.titlesize": 12}):
        size = (6.4 * max(len(panels), 1.4), 7.2)
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, layout="constrained", squeeze=False
        )
        for axis, (inputs, curves) in zip(axes[0], panels.items(), strict=True):
            _draw_panel(axis, document["inputs"][inputs], inputs, curves)
        used = [record for curves in panels.values() for each in curves.values() for record in each]
        figure.legend(
            handles=_legend(used), loc="outside lower center", ncols=4 * min(len(panels), 2)
        )
        title = f"Error against full attention in fp32, {document['device']}"
        figure.suptitle(title, fontsize=13, fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)
    return path


def drawn_curves(document: dict[str, Any], inputs: str) -> dict[str, list[Record]]:
    """Curves that the picture shows; the formula of Sol-Attn only where it cannot run itself."""
    curves = curves_of(document["records"], inputs)
    sol_ran = any(records[0]["kind"] == "sol" for records in curves.values())
    return {
        label: records
        for label, records in curves.items()
        if records[0]["name"] in COLOURS
        and records[0]["order"] in ("raster", document["orders"][0])
        and not (records[0]["kind"] == "sol formula" and sol_ran)
    }


def point_of(record: Record) -> tuple[float, float]:
    """Where a record is drawn: milliseconds of its kernel, or the kept share; and the error."""
    x = record["ms"] if is_timed(record) else statistics.fmean(record["density"])
    return x, geometric_mean(record["relative_l2"])


def _draw_panel(
    axes: Any, facts: dict[str, Any], inputs: str, curves: dict[str, list[Record]]
) -> None:
    every = [record for records in curves.values() for record in records]
    timed = any(map(is_timed, every))
    shown = [record for record in every if is_timed(record) == timed]
    points = [point_of(record) for record in shown]
    front = [points[index] for index in pareto_front(points)]
    # A step: between two of its points nothing is better than the left one.
    style: Any = {"linewidth": 7, "alpha": 0.6, "drawstyle": "steps-post", "zorder": 1}
    axes.plot(*zip(*front, strict=True), color=FRONT, **style)
    for records in curves.values():
        own = sorted(point_of(record) for record in records if record in shown)
        first = records[0]
        int8 = first["precision"] == "int8" and first["kind"] != "sol"
        colour = COLOURS[first["name"]]
        axes.plot(
            *zip(*own, strict=True), color=colour, linestyle=LINES[first["blocks"]],
            linewidth=1.1 if int8 else 1.9, marker=MARKERS[first["precision"]], markersize=5,
            markerfacecolor="white" if int8 else colour,
        )  # fmt: skip
    axes.set_yscale("log")
    for labelled in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        labelled(lambda value, _: f"{value:.4g}")
    axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.set_xlabel("milliseconds of one attention call" if timed else "kept share of block pairs")
    axes.set_ylabel("relative L2 error, geometric mean over heads")
    axes.set_title(f"{inputs} heads: {facts['heads']} of {facts['tokens']:,} tokens")
    axes.grid(True, which="minor", axis="y", color="#f1f3f5")


def _legend(records: list[Record]) -> list[Any]:
    """One entry for every method, block size and precision that is drawn, and for the front."""
    from matplotlib.lines import Line2D

    styles: list[tuple[str, str, dict[str, Any]]] = [
        *(("name", name, {"color": colour}) for name, colour in COLOURS.items()),
        *(("blocks", size, {"linestyle": style}) for size, style in LINES.items()),
        *(("precision", name, {"marker": marker, "linestyle": ""})
          for name, marker in MARKERS.items()),
    ]  # fmt: skip
    shown = [
        (value, style) for key, value, style in styles if any(r[key] == value for r in records)
    ]
    common: dict[str, Any] = {"color": INK, "linewidth": 1.9}
    lines: list[Any] = [Line2D([], [], label=value, **(common | style)) for value, style in shown]
    return [*lines, Line2D([], [], label="Pareto front", color=FRONT, linewidth=7)]
