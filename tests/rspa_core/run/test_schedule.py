"""Schedules: curves, per-step lists, dense steps and blocks, and reading percent and step."""

from __future__ import annotations

import copy
import math

import pytest

from rectified_spaattn.rspa_core.config import ConfigError
from rectified_spaattn.rspa_core.run.reasons import DenseReason, Reason, why
from rectified_spaattn.rspa_core.run.schedule import (
    DenseBlocks,
    Position,
    SigmaSteps,
    SparsitySchedule,
    parse_dense_blocks,
    parse_dense_steps,
    parse_steps,
    percent_of_sigma,
    step_index,
    step_name,
    step_of_sigma,
)


def flow_sigma(shift: float):
    """ComfyUI's percent_to_sigma of flow models: sigma 1 to 0, bent by `shift`."""

    def percent_to_sigma(percent: float) -> float:
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        t = 1.0 - percent
        return shift * t / (1.0 + (shift - 1.0) * t)

    return percent_to_sigma


@pytest.mark.parametrize(
    ("curve", "at_start", "at_quarter", "at_half", "at_end"),
    [
        ("constant", 0.4, 0.4, 0.4, 0.4),
        ("linear", 0.4, 0.5, 0.6, 0.8),
        ("cosine", 0.4, 0.4 + 0.4 * (0.5 - 0.5 * math.cos(math.pi / 4)), 0.6, 0.8),
    ],
)
def test_curves(
    curve: str, at_start: float, at_quarter: float, at_half: float, at_end: float
) -> None:
    schedule = SparsitySchedule(0.4, 0.8, curve, start_percent=0.2, end_percent=0.6)
    for percent, expected in ((0.2, at_start), (0.3, at_quarter), (0.4, at_half), (0.6, at_end)):
        assert schedule.sparsity_at(Position(percent=percent)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("percent", "is_active"),
    [
        (0.0, False),
        (0.19, False),
        (0.2, True),
        (0.2 - 1e-7, True),  # the same sigma read in fp32
        (0.6, True),
        (0.6 + 1e-7, True),
        (0.61, False),
        (1.0, False),
    ],
)
def test_active_range_includes_its_ends(percent: float, is_active: bool) -> None:
    schedule = SparsitySchedule(0.5, 0.5, "constant", 0.2, 0.6)
    decided = schedule.sparsity_at(Position(3, 20, percent))
    if is_active:
        assert decided == 0.5
    else:
        assert isinstance(decided, DenseReason)
        dense = "schedule: first 20 %" if percent < 0.2 else "schedule: last 40 %"
        assert decided.text == dense


def test_one_point_range_uses_the_start_value() -> None:
    assert SparsitySchedule(0.4, 0.8, "linear", 0.5, 0.5).sparsity_at(Position(percent=0.5)) == 0.4


def test_sparsity_zero_is_dense() -> None:
    zero = why(Reason.ZERO_SPARSITY)
    assert SparsitySchedule(0.0, 0.5).sparsity_at(Position(0, 4, 0.0)) == zero
    assert SparsitySchedule(0.5, 0.5, steps=(0.0,)).sparsity_at(Position(0, 4, 0.5)) == zero


def test_step_list_wins_over_curve_and_percents_and_its_last_entry_repeats() -> None:
    schedule = SparsitySchedule(0.1, 0.1, "constant", 0.4, 0.5, steps=(None, 0.6, 0.8))
    answers = [schedule.sparsity_at(Position(step, 5, step / 5)) for step in range(5)]
    assert answers == [why(Reason.STEP_OFF), 0.6, 0.8, 0.8, 0.8]


def test_without_a_step_the_curve_is_used() -> None:
    schedule = SparsitySchedule(0.3, 0.3, "constant", steps=(None,), dense_steps=(0,))
    assert schedule.sparsity_at(Position(percent=0.0)) == 0.3


def test_dense_steps_count_from_both_ends() -> None:
    schedule = SparsitySchedule(0.5, 0.5, "constant", steps=(0.7,), dense_steps=(0, -1))
    answers = [schedule.sparsity_at(Position(step, 4, 0.5)) for step in range(4)]
    assert answers == [why(Reason.DENSE_STEP), 0.7, 0.7, why(Reason.DENSE_STEP)]
    # The length of the run unknown: steps from the end cannot be.
    assert schedule.sparsity_at(Position(3, None, 0.5)) == why(Reason.UNKNOWN_STEP)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("  ", ()),
        ("off, 0.6, 0.8", (None, 0.6, 0.8)),
        ("OFF,0,.5,", (None, 0.0, 0.5)),
    ],
)
def test_parse_steps(text: str, expected: tuple) -> None:
    assert parse_steps(text) == expected


@pytest.mark.parametrize(
    ("name", "index"), [("1", 0), ("20", 19), ("-1", -1), ("?", None), ("0", None), ("1.0", None)]
)
def test_steps_are_named_from_1(name: str, index: int | None) -> None:
    assert step_index(name) == index
    if name in ("1", "20", "-1", "?"):
        assert step_name(index) == name


@pytest.mark.parametrize(
    ("text", "expected"), [("", ()), ("1, -1", (0, -1)), ("3", (2,)), ("1,2,", (0, 1))]
)
def test_parse_dense_steps(text: str, expected: tuple) -> None:
    assert parse_dense_steps(text) == expected


@pytest.mark.parametrize(
    ("text", "double", "single"),
    [
        ("", [], []),
        ("0", [0], []),
        ("0, 1, -1", [0, 1, 9], []),
        ("2-4", [2, 3, 4], []),
        ("-2--1", [8, 9], []),
        ("7 - -1", [7, 8, 9], []),
        ("single 0-2", [], [0, 1, 2]),
        ("Single -1, double 5", [5], [9]),
        ("0, single 3,", [0], [3]),
        ("50", [], []),
    ],
)
def test_dense_blocks(text: str, double: list[int], single: list[int]) -> None:
    blocks = parse_dense_blocks(text)
    assert [i for i in range(10) if blocks.contains("double", i, 10)] == double
    assert [i for i in range(10) if blocks.contains("single", i, 10)] == single


def test_dense_blocks_without_what_the_core_should_say() -> None:
    blocks = parse_dense_blocks("0, -1")
    assert not blocks.contains("double", None, 10)
    assert blocks.contains("double", 0, None)
    assert not blocks.contains("double", 9, None)
    assert blocks.contains("", 9, 10), "a core that names no type means its main blocks"
    assert not DenseBlocks().contains("double", 0, 10)


@pytest.mark.parametrize(
    ("parse", "text", "entry"),
    [
        (parse_steps, "off, 1.5", "'1.5'"),
        (parse_steps, "0.5;0.6", "'0.5;0.6'"),
        (parse_steps, "0.5,,0.6", "''"),
        (parse_steps, "nan", "'nan'"),
        (parse_dense_steps, "1, last", "'last'"),
        (parse_dense_steps, "1, 0", "'0'"),
        (parse_dense_steps, "0.5", "'0.5'"),
        (parse_dense_blocks, "0-", "'0-'"),
        (parse_dense_blocks, "triple 3", "'triple 3'"),
        (parse_dense_blocks, "4-2", "'4-2'"),
        (parse_dense_blocks, "-1--3", "'-1--3'"),
    ],
)
def test_unreadable_texts_name_the_entry(parse, text: str, entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert entry in str(caught.value)
    assert caught.value.field.startswith(parse.__name__.removeprefix("parse_"))


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0, 12.0])
@pytest.mark.parametrize("percent", [0.0, 0.05, 0.1, 0.5, 0.875, 0.999, 1.0])
def test_percent_of_sigma_inverts_percent_to_sigma(shift: float, percent: float) -> None:
    percent_to_sigma = flow_sigma(shift)
    assert percent_of_sigma(percent_to_sigma(percent), percent_to_sigma) == pytest.approx(
        percent, abs=1e-9
    )


def test_percent_of_sigma_outside_the_range() -> None:
    percent_to_sigma = flow_sigma(5.0)
    assert percent_of_sigma(1e9, percent_to_sigma) == pytest.approx(0.0, abs=1e-9)
    assert percent_of_sigma(-1.0, percent_to_sigma) == 1.0


def test_activity_agrees_with_the_rule_of_core() -> None:
    """Active while sigma_end <= sigma <= sigma_start."""
    percent_to_sigma = flow_sigma(8.0)
    schedule = SparsitySchedule(0.5, 0.5, "constant", 0.15, 0.7)
    sigma_start, sigma_end = percent_to_sigma(0.15), percent_to_sigma(0.7)
    for index in range(1, 200):
        sigma = index / 200
        percent = percent_of_sigma(sigma, percent_to_sigma)
        is_active = isinstance(schedule.sparsity_at(Position(percent=percent)), float)
        assert is_active == (sigma_end <= sigma <= sigma_start)


@pytest.mark.parametrize(
    ("sigmas", "is_whole"),
    [
        pytest.param([1.0, 0.9, 0.5, 0.1, 0.0], True, id="whole"),
        pytest.param([0.999, 0.9, 0.5, 0.1, 0.0], True, id="begins a little later"),
        pytest.param([1.0, 0.9, 0.5, 0.9, 0.0], True, id="restart"),
        pytest.param([1.0, 0.9, 0.8, 0.7, 0.6], False, id="first of two samplers"),
        pytest.param([0.6, 0.5, 0.3, 0.1, 0.0], False, id="begins with a video"),
        pytest.param([0.0, 0.3, 0.6, 0.9, 1.0], False, id="inversion"),
    ],
)
@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_progress_is_in_steps_where_the_sampler_takes_them_all(
    sigmas: list[float], is_whole: bool, shift: float
) -> None:
    to_sigma = flow_sigma(shift)
    steps = SigmaSteps([to_sigma(1.0 - each) for each in sigmas])
    found = [
        steps.percent_at(sigma, steps.step_at(sigma), to_sigma)
        for sigma in steps.sample_sigmas[:-1]
    ]
    expected = [0.0, 0.25, 0.5, 0.75] if is_whole else [1.0 - each for each in sigmas[:-1]]
    assert found == pytest.approx(expected)


def test_the_second_of_two_samplers_never_seems_to_take_all_steps() -> None:
    for num_steps in range(2, 31):
        sigmas = [1.0 - step / num_steps for step in range(num_steps + 1)]
        for first in range(1, num_steps):
            steps = SigmaSteps(sigmas[first:])
            percent = steps.percent_at(sigmas[first], 0, flow_sigma(1.0))
            assert percent == pytest.approx(first / num_steps)


def test_progress_at_an_unknown_step_is_that_of_the_noise() -> None:
    assert SigmaSteps(()).percent_at(0.4, None, flow_sigma(1.0)) == pytest.approx(0.6)


SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.0]


@pytest.mark.parametrize(
    ("sigma", "step"),
    [
        (1.5, 0),
        (1.0, 0),
        (0.95, 0),  # between two entries: a midpoint of dpm_2 or dpmpp_sde
        (0.9, 1),
        (0.9 * (1 + 1e-7), 1),
        (0.5, 2),
        (0.4, 3),
        (0.1, 3),
        (0.0, 3),  # the end of the last step is no step of its own
    ],
)
def test_step_of_sigma(sigma: float, step: int) -> None:
    assert step_of_sigma(sigma, SIGMAS) == step


@pytest.mark.parametrize(
    ("sigmas", "called", "steps"),
    [
        pytest.param([0, 0.4, 0.7, 0.9, 1], [0, 0.4, 0.7, 0.9], [0, 1, 2, 3], id="inversion"),
        pytest.param([0, 0.4, 0.7, 1], [0, 0.2, 0.4, 0.6, 1], [0, 0, 1, 1, 2], id="midpoints"),
        pytest.param([1, 0.8, 0.5, 0.9, 0.4, 0], [1, 0.8, 0.5, 0.9, 0.4], [0, 1, 2, 3, 4], id="up"),
        pytest.param(
            [1, 0.8, 0.5, 0.8, 0.5, 0], [1, 0.8, 0.5, 0.8, 0.5, 0.2], [0, 1, 2, 3, 4, 4], id="again"
        ),
        pytest.param(
            [1, 0.8, 0.5, 0.9, 0.4, 0],
            [1, 0.95, 0.8, 0.6, 0.5, 0.7, 0.9, 0.6, 0.4],
            [0, 0, 1, 1, 2, 2, 3, 3, 4],
            id="midpoints of restarts",
        ),
        pytest.param([1, 0.9, 0.9, 0.5, 0], [1, 0.9, 0.9, 0.5], [0, 1, 2, 3], id="repeated"),
        pytest.param([1, 0.9, 0.9, 0.9], [1, 0.9, 0.9, 0.9], [0, 1, 2, 2], id="to the end"),
        pytest.param(SIGMAS, [1, 0.9, 0.9, 0.4, 1, 0.9], [0, 1, 1, 3, 0, 1], id="twice"),
        pytest.param([0.5, 0.5], [0.5, 0.5, 0.1], [0, 0, 0], id="one step"),
    ],
)
def test_steps_are_counted_along_the_run(
    sigmas: list[float], called: list[float], steps: list[int]
) -> None:
    counter = SigmaSteps(sigmas)
    assert [counter.step_at(sigma) for sigma in called] == steps


def test_parts_of_one_evaluation_are_one_step() -> None:
    """A condition and its opposite called one by one, at a sigma that two steps begin with."""
    counter = SigmaSteps([1.0, 0.9, 0.9, 0.5, 0.0])
    sigmas = (1.0, 0.9, 0.9, 0.5)
    assert [(counter.step_at(s, "cond"), counter.step_at(s, "uncond")) for s in sigmas] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
    ]


def test_copies_of_a_counter_count_together() -> None:
    """Nodes deep-copy model options, and with them what hangs in them."""
    counter = SigmaSteps([1.0, 0.9, 0.9, 0.5, 0.0])
    calls = [each.step_at(0.9) for each in (counter, copy.deepcopy(counter))]
    assert calls == [1, 2]
