"""Curves, fronts and ratios of the fidelity benchmark, on numbers made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rectified_spaattn.benchmarks.fidelity.report import (
    INTERPOLATED,
    KERNEL,
    METRICS,
    attach_times,
    by_kind,
    compare,
    geometric_mean,
    interpolate,
    pareto_front,
    ratio_lines,
    ratios,
    record_line,
    table_lines,
)

KINDS = ("local", "flat")


def record(
    name: str,
    density: float | None,
    errors: tuple[float, float] = (0.1, 0.1),
    ms: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A record of two heads; `density` None is a refused one."""
    made = {
        "input": "synthetic",
        "name": name,
        "kind": name.split()[0],
        "blocks": "64x64",
        "order": "gilbert",
        "precision": "16-bit",
        "share": density,
        "density": [density, density],
        **{metric: [0.5, 0.5] for metric in METRICS},
        "relative_l2": list(errors),
        "ms": ms,
        "ms_source": KERNEL if ms else "",
        "refused": "" if density else "cannot run here",
    } | changes
    made["variant"] = " ".join(made[key] for key in ("name", "blocks", "order", "precision"))
    made["timing_key"] = " ".join(made[key] for key in ("name", "blocks", "precision"))
    return made


def document(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "records": records,
        "inputs": {"synthetic": {"kinds": KINDS, "heads": 2, "tokens": 64}},
        "orders": ["gilbert", "raster"],
        "shares": [0.1, 0.4],
    }


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([0.0, 1.0]) == pytest.approx(1e-6)
    with pytest.raises(ValueError, match="non-empty"):
        geometric_mean([])
    assert by_kind([1.0, 3.0, 4.0], ["a", "b", "a"]) == pytest.approx({"a": 2.0, "b": 3.0})


def test_curves_are_straight_between_logarithms() -> None:
    curve = [(0.4, 0.01), (0.1, 0.04)]  # y = 0.004 / x
    assert interpolate(curve, 0.2) == pytest.approx(0.02)
    assert interpolate(curve, 0.1) == pytest.approx(0.04)
    assert interpolate(curve, 0.405) == pytest.approx(0.01)  # just beyond the end
    assert interpolate(curve, 0.05) is None
    assert interpolate(curve, 0.5) is None
    assert interpolate([], 0.5) is None
    assert interpolate([(0.2, 0.3), (0.2, 0.1)], 0.2) == pytest.approx(0.1)


def test_pareto_front() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 3.0), (2.0, 2.0), (4.0, 1.0), (1.0, 4.0), (3.0, 1.0)]
    assert pareto_front(points) == [1, 3, 0]
    assert pareto_front([]) == []


def test_times_follow_the_density() -> None:
    timed = [record("paper", 0.1, ms=10.0), record("paper", 0.3, ms=30.0)]
    others = [
        record("paper", 0.2, order="raster"),
        record("paper", 0.4),
        record("paper", 0.2, precision="int8"),
        record("none", 0.2),
        record("paper", None),
        record("paper", 0.2, precision="fp32", ms=5.0, ms_source="fp32 reference on the CPU"),
    ]
    attach_times([*timed, *others])
    attach_times([*timed, *others])  # what was filled in is not taken for a measurement
    assert [each["ms"] for each in timed] == [10.0, 30.0]
    assert [each["ms"] for each in others[:2]] == pytest.approx([20.0, 40.0])
    assert {each["ms_source"] for each in others[:2]} == {INTERPOLATED}
    assert [each["ms"] for each in others[2:]] == [None, None, None, 5.0]


def test_ratio_at_equal_density_and_at_equal_time() -> None:
    ours = [
        record("precise", 0.1, (0.04, 0.4), ms=20.0),
        record("precise", 0.4, (0.01, 0.1), ms=80.0),
    ]
    rival = [
        record("paper", 0.05, (9.0, 9.0), ms=5.0),  # outside of ours
        record("paper", 0.2, (0.04, 0.1), ms=40.0),
        record("paper", 0.4, (0.04, 0.05), ms=160.0),
    ]
    at_density = compare(ours, rival, KINDS, "density")
    assert at_density is not None
    # ours at .2 is (.02, .2): ratios .5 and 2; at .4 (.01, .1): .25 and 2
    assert [ratio for _, ratio in at_density.at] == pytest.approx([1.0, math.sqrt(0.5)])
    assert [x for x, _ in at_density.at] == [0.2, 0.4]
    assert at_density.mean == pytest.approx((0.5 * 2 * 0.25 * 2) ** 0.25)
    assert (at_density.worst_kind, at_density.worst) == ("flat", pytest.approx(2.0))
    at_time = compare(ours, rival, KINDS, "ms")
    assert at_time is not None
    assert at_time.at == [(40.0, pytest.approx(1.0))]
    assert compare(ours[:1], rival[:1], KINDS, "density") is None


def test_seconds_of_the_reference_are_no_time_to_compare() -> None:
    slow = {"ms": 5.0, "ms_source": "fp32 reference on the CPU"}
    records = [record("precise", 0.2, **slow), record("paper", 0.2, **slow)]
    assert compare(records[:1], records[1:], KINDS, "ms") is None


def test_shares_that_keep_the_same_blocks_count_once() -> None:
    ours = [record("precise", 0.2, (0.1, 0.1)), record("precise", 0.4, (0.1, 0.1))]
    rival = [record("paper", 0.2, share=0.1), record("paper", 0.2), record("paper", 0.4)]
    found = compare(ours, rival, KINDS, "density")
    assert found is not None
    assert len(found.at) == 2


def test_what_is_compared() -> None:
    records = [
        record("precise 1 key", 0.2, ms=1.0),
        record("precise 1 key", 0.2, blocks="128x128", ms=1.0),
        record("precise 1 key", 0.2, order="raster"),
        record("precise 4 keys", 0.2),
        record("precise 1 key", 0.2, precision="int8"),
        record("paper", 0.2, ms=1.0),
        record("paper", None, blocks="128x128"),
        record("pooled", 0.2),
        record("Sol-Attn in fp32", 0.2, order="raster", precision="fp32", kind="sol formula"),
    ]
    found = {(each.ours, each.rival, each.axis) for each in ratios(document(records))}
    precise, paper = "precise 1 key 64x64 gilbert 16-bit", "paper 64x64 gilbert 16-bit"
    sol, pooled = "Sol-Attn in fp32 64x64 raster fp32", "pooled 64x64 gilbert 16-bit"
    keys = "precise 4 keys 64x64 gilbert 16-bit"
    assert found == {
        (precise, paper, "density"),
        (precise, paper, "ms"),
        (precise, pooled, "density"),
        (precise, sol, "density"),
        (keys, paper, "density"),
        (keys, pooled, "density"),
        (keys, sol, "density"),
        ("precise 1 key 64x64 gilbert int8", sol, "density"),
        ("precise 1 key 64x64 raster 16-bit", precise, "density"),
    }
    # Where Sol-Attn itself runs, its formula is no rival; its time counts for all blocks.
    real = record("Sol-Attn", 0.2, ms=1.0, order="raster", precision="int8", kind="sol")
    names = {(each.ours, each.rival, each.axis) for each in ratios(document([*records, real]))}
    assert not any(rival == sol for _, rival, _ in names)
    wide = "precise 1 key 128x128 gilbert 16-bit"
    assert {axis for ours, rival, axis in names if (ours, rival) == (wide, real["variant"])} == {
        "ms"
    }


def test_text() -> None:
    records = [
        record("precise 1 key", 0.1, (0.04, 0.01), ms=12.0),
        record("paper", 0.1),
        record("none", None, share=0.4),
        record("Sol-Attn tau 1", 0.3, share=None, kind="sol"),
    ]
    lines = table_lines(document(records))
    assert lines[1] == "synthetic heads; ms: kernel"
    assert lines[2].split()[:7] == ["variant", "share", "density", "ms", "rel", "L2", "local"]
    cells = "0.1 0.100 12.0 0.0200 0.0400 0.0100 0.5000"
    assert lines[4].split()[-7:] == cells.split()
    assert len(lines) == 4 + 3  # a refused one has no row
    assert lines[-1].split()[-8:-6] == ["by", "tau"]
    assert record_line(records[0]).endswith("16-bit 0.1: density 0.100, relative L2 0.0200")
    assert record_line(records[2]).endswith("cannot run here")
    text = ratio_lines(ratios(document(records)))
    assert text[1] == "synthetic: error over that of the rival at equal density (below 1: closer)"
    assert text[2].split()[:4] == ["0.200", "worst", "local", "0.400"]
