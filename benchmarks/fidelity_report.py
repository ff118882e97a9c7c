"""Text of the fidelity benchmark: curves, fronts, and the ratios between variants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Record = dict[str, Any]
"""One variant at one kept share on one set of heads; see `fidelity.measure`."""

Point = tuple[float, float]

METRICS = ("relative_l2", "relative_l1", "cosine", "gain", "mass_recall")
SLACK = 0.02
"""A curve is taken to reach this much beyond its ends, as a share of x."""

KERNEL = "kernel"
INTERPOLATED = "kernel, interpolated over density"


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of numbers of 0 or more; ValueError if there are none."""
    logs = [math.log(max(value, 1e-12)) for value in values]
    if not logs:
        raise ValueError("values = [] is not allowed: one number or more")
    return math.exp(sum(logs) / len(logs))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


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
    x = min(max(x, ends[0]), ends[-1])
    for low, high in itertools.pairwise(ends):
        if low <= x <= high:
            share = (math.log(x) - math.log(low)) / (math.log(high) - math.log(low))
            logs = (math.log(max(curve[end], 1e-12)) for end in (low, high))
            first, second = logs
            return math.exp(first + share * (second - first))
    return curve[ends[0]]


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


def attach_times(records: Iterable[Record]) -> None:
    """Give untimed records the time of their kernel at the density that they kept.

    The time of a kernel at one shape depends on the density alone: (density, ms) of the timed
    records with the same `timing_key` are joined by straight lines, in place.
    """
    timed: dict[str, dict[float, float]] = {}
    for record in usable(records):
        if record["ms_source"] == KERNEL:
            timed.setdefault(record["timing_key"], {})[mean(record["density"])] = record["ms"]
    for record in usable(records):
        curve = sorted(timed.get(record["timing_key"], {}).items())
        if record["ms_source"] in ("", INTERPOLATED) and len(curve) > 1:
            record["ms"] = _linear(curve, mean(record["density"]))
            record["ms_source"] = INTERPOLATED


def _linear(curve: Sequence[Point], x: float) -> float:
    """Straight lines between points sorted by x, the last ones continued."""
    index = next((i for i, (at, _) in enumerate(curve[1:-1], 1) if x <= at), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[index - 1], curve[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


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
    axis: str
    mean: float
    worst_kind: str
    worst: float
    at: list[Point]


def compare(
    ours: Sequence[Record], rival: Sequence[Record], kinds: Sequence[str], axis: str
) -> Ratio | None:
    """Relative L2 error of `ours` over that of `rival` at equal density or time.

    Args:
        ours, rival: the records of one curve each, on the same heads.
        kinds: of the heads.
        axis: "density" (of the head) or "ms" (of the call).

    Returns:
        None where the curves share no x.

    Raises:
        ValueError: `axis` is neither.
    """
    if axis not in ("density", "ms"):
        raise ValueError(f"axis = {axis!r} is not allowed: density or ms")

    def x_of(record: Record, head: int) -> float | None:
        if axis == "density":
            return record["density"][head]
        return record["ms"] if record["ms_source"].startswith(KERNEL) else None

    collected: dict[str, list[float]] = {}
    at = []
    # Where neighbours need more than the budget, several shares keep the same blocks.
    distinct = {tuple(record["density"]): record for record in reversed(rival)}
    for record in distinct.values():
        found, places = [], []
        for head, kind in enumerate(kinds):
            x = x_of(record, head)
            curve = [
                (own, each["relative_l2"][head])
                for each in ours
                if (own := x_of(each, head)) is not None
            ]
            error = None if x is None else interpolate(curve, x)
            if x is None or error is None:
                continue
            ratio = error / max(record["relative_l2"][head], 1e-12)
            found.append(ratio)
            places.append(x)
            collected.setdefault(kind, []).append(ratio)
        if found:
            at.append((mean(places), geometric_mean(found)))
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

    `precise` over paper, none and Sol-Attn (over its formula where it cannot run), at equal density
    and blocks and at equal milliseconds; its other token orders over the first; formulas over
    `precise`.
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


def _pairs(first: dict[str, Record], order: str) -> list[tuple[str, str, str]]:
    """(ours, rival, axis) of the comparisons, from one record of every curve."""
    sol_rivals = [label for label, record in first.items() if record["name"] == "Sol-Attn"]
    sol = sol_rivals or [label for label, r in first.items() if r["name"] == "Sol-Attn in fp32"]
    found: list[tuple[str, str, str]] = []

    def rivals(record: Record, name: str, same: tuple[str, ...]) -> list[str]:
        return [
            label
            for label, each in first.items()
            if each["name"] == name
            and each["source"] == "ours"
            and all(each[key] == record[key] for key in same)
        ]

    for label, record in first.items():
        own_name = record["name"].split(",")[0]
        if record["source"] == "formula" and own_name.startswith("precise"):
            base = [
                other
                for other in rivals(record, own_name, ("blocks", "order"))
                if first[other]["precision"] == "16-bit"
            ]
            found += [(label, rival, "density") for rival in base]
        if record["source"] != "ours" or not record["name"].startswith("precise"):
            continue
        if record["order"] != order:
            base = rivals(record, record["name"], ("blocks", "precision"))
            found += [(label, r, "density") for r in base if first[r]["order"] == order]
            continue
        for name in ("paper", "none"):
            for rival in rivals(record, name, ("blocks", "order", "precision")):
                found += [(label, rival, axis) for axis in ("density", "ms")]
        for rival in sol:
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


def record_line(record: Record, kinds: Sequence[str]) -> str:
    """One record as a line: density, time, error over all heads and by kind, other metrics."""
    share = "    -" if record["share"] is None else f"{record['share']:5.2f}"
    start = f"{record['input'][:10]:10} {record['variant']:54} {share}"
    if record["refused"]:
        return f"{start}  {record['refused']}"
    errors = record["relative_l2"]
    groups = " ".join(
        f"{value:{width_of(kind)}.4f}" for kind, value in by_kind(errors, kinds).items()
    )
    time = "       -" if record["ms"] is None else f"{record['ms']:8.2f}"
    others = " ".join(f"{mean(record[name]):.4f}" for name in METRICS[1:])
    return (
        f"{start} {mean(record['density']):6.3f} {time} {geometric_mean(errors):8.4f}  {groups}"
        f"  {others}"
    )


def width_of(kind: str) -> int:
    """Of its column."""
    return max(7, len(kind))


def heading_line(kinds: Sequence[str]) -> str:
    """Names of the columns of `record_line`."""
    groups = " ".join(f"{kind:>{width_of(kind)}}" for kind in dict.fromkeys(kinds))
    names = " ".join(f"{name:>6}" for name in ("L1", "cosine", "gain", "recall"))
    return (
        f"{'heads':10} {'variant':54} {'share':>5} {'dens.':>6} {'ms':>8} {'rel L2':>8}  {groups}"
        f"  {names}"
    )


def curve_lines(document: dict[str, Any]) -> list[str]:
    """Every variant as one line: error and milliseconds at every kept share."""
    lines = []
    for inputs in document["inputs"]:
        curves = curves_of(document["records"], inputs)
        sources = {record["ms_source"] for each in curves.values() for record in each} - {""}
        of = " of the " + " or ".join(sorted(sources)) if sources else ""
        lines += ["", f"{inputs}: relative L2, geometric mean over heads (milliseconds{of})"]
        shares = [*document["shares"], None]  # None: a threshold in place of a share
        names = "".join(f"{'by tau' if share is None else share:>17}" for share in shares)
        lines.append(f"{'variant':54}{names}")
        for label, records in curves.items():
            cells = {
                record["share"]: f"{geometric_mean(record['relative_l2']):.4f}"
                + ("" if record["ms"] is None else f" ({record['ms']:.1f})")
                for record in records
            }
            lines.append(
                f"{label:54}" + "".join(f"{cells.get(share, ''):>17}" for share in shares).rstrip()
            )
    return lines


def ratio_records(found: Sequence[Ratio]) -> list[dict[str, Any]]:
    """For the JSON file."""
    return [asdict(ratio) for ratio in found]
