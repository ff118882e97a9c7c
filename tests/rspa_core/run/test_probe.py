"""Probe settings read from texts, and what is concluded from a table of errors."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from rectified_spaattn.rspa_core import ConfigError
from rectified_spaattn.rspa_core.run.probe import (
    ProbeSettings,
    ProbeSteps,
    ProbeTable,
    parse_probe_blocks,
    parse_probe_steps,
    parse_sparsities,
    propose,
)

SPARSITIES = (0.5, 0.7, 0.9)
BLOCK = ("double", 0)


def table(*steps: tuple[Any, ...], densities: tuple[Any, ...] = (0.5, 0.3, 0.1)) -> ProbeTable:
    """One block; a curve of errors for each step."""
    numbers = tuple(range(len(steps)))
    errors = tuple((curve,) for curve in steps)
    return ProbeTable(numbers, (BLOCK,), SPARSITIES, errors, ((densities,),) * len(steps))


@pytest.mark.parametrize(
    ("text", "num_steps", "expected"),
    [
        ("2, 50%, -1", 20, {1, 10, 19}),
        ("2, 50%, -1", 4, {1, 2, 3}),
        ("2, 50%, -1", 2, {1}),
        ("1, 50%, -1", 1, {0}),
        ("0%, 100%", 30, {0, 29}),
        ("29%", 100, {29}),
        ("12.5 %, .5%,", 16, {0, 2}),
        ("5, -7", 4, set()),
        ("4, -4", 4, {3, 0}),
    ],
)
def test_steps(text: str, num_steps: int, expected: set[int]) -> None:
    assert parse_probe_steps(text).indices(num_steps) == expected


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (parse_probe_steps, "1, two", "steps, entry 2 = 'two' is not allowed: a step number"),
        (parse_probe_steps, "0", "steps, entry 1 = '0' is not allowed: a step number (1 is the"),
        (parse_probe_steps, "101%", "steps, entry 1 = '101%'"),
        (parse_probe_steps, "-5%", "steps, entry 1 = '-5%'"),
        (parse_probe_steps, "1,,2", "steps, entry 2 = ''"),
        (parse_probe_steps, " ", "steps = ' ' is not allowed: at least one entry"),
        (parse_probe_steps, 3, "steps = 3 is not allowed: a text"),
        (parse_probe_blocks, "0, first", "blocks, entry 2 = 'first' is not allowed: a block"),
        (parse_probe_blocks, "5-2", "blocks, entry 1 = '5-2'"),
        (parse_sparsities, "0.5, 0", "sparsities, entry 2 = '0' is not allowed: a number above 0"),
        (parse_sparsities, "0.99", "sparsities, entry 1 = '0.99'"),
        (parse_sparsities, "nan", "sparsities, entry 1 = 'nan'"),
        (parse_sparsities, "", "sparsities = '' is not allowed: at least one entry"),
        (
            parse_sparsities,
            ",".join(f"0.{n}" for n in range(10, 30)),
            "is not allowed: at most 16 numbers",
        ),
    ],
)
def test_texts_that_cannot_be_read(read: Any, text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(text)


def test_sparsities_are_sorted_and_each_once() -> None:
    assert parse_sparsities("0.9, 0.5,.7, 0.50,") == (0.5, 0.7, 0.9)


def test_what_is_measured() -> None:
    everything = ProbeSettings(parse_probe_steps("2, -1"))
    assert everything.wants(1, 20, "double", 0, 40)
    assert everything.wants(19, 20, "single", 39, 40)
    assert everything.wants(1, 20, "", 5, None)
    assert not everything.wants(2, 20, "double", 0, 40)
    for unknown in [(None, None, "double", 0, 40), (1, 20, "double", None, 40)]:
        assert not everything.wants(*unknown)
    some = ProbeSettings(ProbeSteps((1,)), parse_probe_blocks("0-1, -1, single 3"))
    wanted = [index for index in range(40) if some.wants(1, 20, "double", index, 40)]
    assert wanted == [0, 1, 39]
    assert some.wants(1, 20, "single", 3, 40)
    assert not some.wants(1, 20, "single", 0, 40)


@pytest.mark.parametrize(
    ("curve", "wanted", "expected"),
    [
        ((0.01, 0.04, 0.16), 0.02, 0.6),  # half-way in the logarithm
        ((0.01, 0.04, 0.16), 0.08, 0.8),
        ((0.01, 0.04, 0.16), 0.04, 0.7),
        ((0.01, 0.04, 0.16), 0.16, 0.9),
        ((0.01, 0.04, 0.16), 0.5, 0.9),  # never beyond what was measured
        ((0.01, 0.04, 0.16), 0.009, 0.0),
        ((0.01, 0.04, math.inf), 0.05, 0.7),
        ((math.inf,) * 3, 1.0, 0.0),
        ((0.0, 0.0, 0.0), 0.05, 0.9),
        ((0.01, 0.06, 0.04), 0.05, 0.9),  # the highest that was seen to be within
        ((0.01, None, 0.16), 0.04, 0.7),  # one sparsity without a measurement
    ],
)
def test_proposals(curve: tuple[Any, ...], wanted: float, expected: float) -> None:
    assert propose(table(curve), wanted) == {BLOCK: pytest.approx(expected, abs=1e-9)}


def test_an_error_of_zero_is_interpolated() -> None:
    assert 0.5 < propose(table((0.0, 1.0, 1.0)), 0.5)[BLOCK] < 0.7


def test_the_worst_step_counts() -> None:
    worst = table((0.01, 0.04, 0.16), (0.02, 0.02, 0.32), (None, None, None))
    assert worst.worst_errors(BLOCK) == [0.02, 0.04, 0.32]
    assert propose(worst, 0.04) == {BLOCK: pytest.approx(0.7)}
    assert worst.error_at(0, BLOCK, 0.6) == pytest.approx(0.02)
    assert worst.error_at(2, BLOCK, 0.6) is None
    assert worst.worst_error_at(BLOCK, 0.8) == pytest.approx(0.08)
    assert worst.worst_error_at(BLOCK, 0.2) == 0.02
    assert worst.worst_error_at(BLOCK, 0.95) == 0.32


def test_a_proposal_keeps_the_wanted_error_on_the_curve_it_comes_from() -> None:
    found = table((0.013, 0.037, 0.21), (0.02, 0.03, 0.1))
    for wanted in (0.02, 0.03, 0.05, 0.1, 0.2):
        sparsity = propose(found, wanted)[BLOCK]
        assert found.worst_error_at(BLOCK, sparsity) <= wanted * (1 + 1e-9)


def test_infinite_errors_are_not_hidden() -> None:
    found = table((0.01, math.inf, math.inf))
    assert found.error_at(0, BLOCK, 0.5) == 0.01
    assert found.error_at(0, BLOCK, 0.6) == math.inf


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.6, 0.4), (0.9, 0.1), (0.98, 0.1)],
)
def test_densities(sparsity: float, expected: float) -> None:
    curve = (0.01, 0.02, 0.03)
    assert table(curve, curve).density_at(BLOCK, sparsity) == pytest.approx(expected)


def test_density_of_nothing() -> None:
    assert table((None,) * 3, densities=(None,) * 3).density_at(BLOCK, 0.5) is None
