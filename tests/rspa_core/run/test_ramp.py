"""The ramp: what each step keeps, that the mean stays, and where a sampler sees only a part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rectified_spaattn.rspa_core.config import ConfigError
from rectified_spaattn.rspa_core.run.reasons import DenseReason, Reason, why
from rectified_spaattn.rspa_core.run.schedule import (
    DENSE_FROM,
    MIN_KEPT,
    Course,
    Position,
    SigmaSteps,
    SparsitySchedule,
    even_course,
    ramp_weights,
    ramped,
)

from .test_schedule import flow_sigma

FULL = SparsitySchedule(0.75, 0.75, "constant", ramp=1.0)


def kept(schedule: SparsitySchedule, course: Course, num_steps: int | None = None) -> list[float]:
    """Share that each of a sampler's own steps keeps, 1 for a dense one."""
    num_steps = len(course.percents) if num_steps is None else num_steps
    found = [
        schedule.sparsity_at(
            Position(step, num_steps, course.percents[course.first + step], course)
        )
        for step in range(num_steps)
    ]
    return [1.0 if isinstance(each, DenseReason) else 1.0 - each for each in found]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.15, 0.4, 0.8, 0.93, 0.97])
@pytest.mark.parametrize("levels", [(1, 0.9, 0.75, 0.5, 0), (1, 0.999, 0.5, 0), (0.3, 0.0)])
def test_mean_stays_and_no_step_is_out_of_range(
    levels: tuple[float, ...], share: float, strength: float
) -> None:
    weights = ramp_weights(levels, strength)
    shares = ramped([share] * len(weights), weights)
    assert all(each == 1.0 or MIN_KEPT <= each <= DENSE_FROM + 1e-9 for each in shares)
    if len(shares) > 1:
        assert mean(shares) == pytest.approx(share)
    elif share > DENSE_FROM:
        assert shares == [1.0], "there is no other step that could keep less"


def test_shares_follow_the_weights() -> None:
    assert ramped([0.3, 0.3, 0.3], [3.0, 2.0, 1.0]) == pytest.approx([0.45, 0.3, 0.15])
    # What is no longer there to give comes from the others, in proportion.
    assert ramped([0.6, 0.6, 0.6], [6.0, 2.0, 2.0]) == pytest.approx([1.0, 0.4, 0.4])
    assert ramped([0.2, 0.4], [1.0, 1.0]) == pytest.approx([0.2, 0.4])
    assert ramped([0.03, 0.03], [9.0, 1.0]) == pytest.approx([0.04, MIN_KEPT])


def test_noise_weighs_more_and_so_does_a_long_step() -> None:
    weights = ramp_weights([1.0 - each / 20 for each in range(21)], 1.0)
    assert weights == sorted(weights, reverse=True)
    short, long = ramp_weights([0.3, 0.25, 0.0], 1.0)
    assert long > short
    # What samplers also have: rising levels, steps without length, sigmas outside of 0 to 1.
    assert all(each > 0.0 for each in ramp_weights([14.6, 9.0, 0.2, 0.7, 0.7, 0.0, 0.0], 1.0))


def test_ramp_is_gentler_where_steps_are_few() -> None:
    spreads = []
    for count in (4, 8, 20, 50):
        weights = ramp_weights([1.0 - each / count for each in range(count + 1)], 1.0)
        spreads.append(max(weights) / min(weights))
    assert spreads == sorted(spreads)
    assert ramp_weights([1.0, 0.5, 0.0], 0.0) == [1.0, 1.0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8, 20, 50])
def test_schedule_keeps_its_mean(num_steps: int, shift: float) -> None:
    shares = kept(FULL, even_course(num_steps, shift))
    assert mean(shares) == pytest.approx(0.25, abs=1e-4)
    if num_steps > 4 or (num_steps > 2 and shift < 8.0):  # else the last step is most of the way
        assert shares[0] == max(shares)
        assert mean(shares[: num_steps // 2]) > mean(shares[num_steps // 2 :])


def test_strength_goes_from_even_to_the_whole_ramp() -> None:
    course = even_course(8, 3.0)
    spreads = []
    for ramp in (0.0, 0.25, 0.5, 1.0):
        shares = kept(replace(FULL, ramp=ramp), course)
        assert mean(shares) == pytest.approx(0.25, abs=1e-4)
        spreads.append(max(shares) - min(shares))
    assert spreads == sorted(spreads)
    assert spreads[0] == 0.0
    assert spreads[-1] > 0.15


def test_steps_that_are_dense_anyway_are_no_part_of_the_mean() -> None:
    course = even_course(10, 3.0)
    schedule = replace(FULL, start_percent=0.2, end_percent=0.7, dense_steps=(4,))
    shares = kept(schedule, course)
    assert [step for step in range(10) if shares[step] == 1.0] == [0, 1, 4, 8, 9]
    assert mean([each for each in shares if each < 1.0]) == pytest.approx(0.25, abs=1e-4)


def test_a_step_that_would_keep_nearly_all_is_dense() -> None:
    course = even_course(20, 1.0)
    schedule = replace(FULL, start_sparsity=0.55)
    shares = kept(schedule, course)
    assert shares[0] == 1.0
    assert all(each <= DENSE_FROM + 1e-9 for each in shares if each < 1.0)
    assert mean(shares) == pytest.approx(0.45, abs=1e-4)
    reason = schedule.sparsity_at(Position(0, 20, 0.0, course))
    assert reason == why(Reason.RAMP)
    assert isinstance(reason, DenseReason)
    assert reason.text == "schedule: ramp keeps all"


def test_ramp_on_a_curve_keeps_the_mean_of_the_curve() -> None:
    course = even_course(12, 5.0)
    curve = SparsitySchedule(0.5, 0.9, "linear", 0.25)
    plain, with_ramp = kept(curve, course), kept(replace(curve, ramp=1.0), course)
    assert mean(plain) == pytest.approx(mean(with_ramp), abs=1e-4)
    assert with_ramp[3] > plain[3]
    assert with_ramp[-1] < plain[-1]


def test_step_list_knows_no_ramp() -> None:
    schedule = replace(FULL, steps=(None, 0.6, 0.8))
    assert not schedule.has_ramp
    assert kept(schedule, even_course(3)) == pytest.approx([1.0, 0.4, 0.2])


def test_sparsity_of_a_block_gets_a_ramp_of_its_own() -> None:
    course = even_course(8, 3.0)
    for sparsity in (0.4, 0.9):
        found = [
            FULL.sparsity_at(Position(step, 8, step / 8, course), sparsity) for step in range(8)
        ]
        shares = [1.0 if isinstance(each, DenseReason) else 1.0 - each for each in found]
        assert mean(shares) == pytest.approx(1.0 - sparsity, abs=1e-4)
        assert shares[0] > shares[5]
    late = SparsitySchedule(0.5, 0.5, "constant", 0.5)
    assert late.sparsity_at(Position(0, 4, 0.0), 0.9) == why(Reason.BEFORE_START, 50.0)
    assert late.sparsity_at(Position(2, 4, 0.5), 0.9) == 0.9


def test_without_the_course_every_step_keeps_the_same() -> None:
    assert FULL.sparsity_at(Position(0, 4, 0.0)) == 0.75
    assert FULL.sparsity_at(Position(percent=0.5)) == 0.75
    # A sampler that goes on past its list.
    assert FULL.sparsity_at(Position(4, 4, 1.0, even_course(4))) == 0.75


def test_evaluations_inside_a_step_keep_what_the_step_does() -> None:
    to_sigma = flow_sigma(5.0)
    steps = SigmaSteps([to_sigma(0.5 + each / 8) for each in range(5)])  # a part of the sampling
    course = steps.course(to_sigma)
    schedule = replace(FULL, start_percent=0.5, end_percent=0.9)
    begins, middle = (schedule.sparsity_at(Position(3, 4, p, course)) for p in (0.875, 0.95))
    assert begins == middle


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
@pytest.mark.parametrize(("total", "first"), [(4, 2), (6, 2), (20, 9), (20, 18)])
def test_two_samplers_share_one_ramp(total: int, first: int, shift: float) -> None:
    """Wan 2.2: each sees its part of the list; both plan what one sampler would."""
    to_sigma = flow_sigma(shift)
    levels = [to_sigma(step / total) for step in range(total + 1)]
    whole = kept(FULL, even_course(total, shift))
    parts = []
    for own in (levels[: first + 1], levels[first:]):
        course = SigmaSteps(own).course(to_sigma)
        assert course is not None
        assert len(course.percents) == total
        assert course.levels == pytest.approx(levels, abs=1e-9)
        parts += kept(FULL, course, len(own) - 1)
    assert parts == pytest.approx(whole, abs=1e-4)


def test_samplers_that_space_their_steps_otherwise_stay_near_the_mean() -> None:
    """The other's steps are a guess then: 3 long ones, then 9 short ones, at shift 5."""
    to_sigma = flow_sigma(5.0)
    high = [to_sigma(0.5 * each / 3) for each in range(4)]
    low = [to_sigma(0.5 + 0.5 * each / 9) for each in range(10)]
    parts = []
    for own in (high, low):
        course = SigmaSteps(own).course(to_sigma)
        assert course is not None
        parts.append(kept(FULL, course, len(own) - 1))
    assert min(parts[0]) > max(parts[1][:-1])
    assert mean(parts[0] + parts[1]) == pytest.approx(0.25, abs=0.06)


def test_later_part_of_a_sampling_is_the_later_part_of_the_ramp() -> None:
    """As with `denoise` 0.5: 10 steps of a list that would have 20."""
    to_sigma = flow_sigma(3.0)
    course = SigmaSteps([to_sigma(0.5 + each / 20) for each in range(11)]).course(to_sigma)
    assert course is not None
    assert course.first == 10
    assert kept(FULL, course, 10) == pytest.approx(kept(FULL, even_course(20, 3.0))[10:], abs=1e-4)


@pytest.mark.parametrize(
    "sigmas",
    [
        pytest.param([0.0, 0.3, 0.6, 0.9, 1.0], id="inversion"),
        pytest.param([1.0, 0.6, 0.8, 0.3, 0.0], id="restart"),
        pytest.param([1.0, 0.9, 0.9, 0.5, 0.0], id="repeated"),
        pytest.param([0.5, 0.5], id="no length"),
        pytest.param([0.6, 0.5999, 0.5998], id="hardly any"),
    ],
)
def test_odd_lists_have_a_course(sigmas: list[float]) -> None:
    steps = SigmaSteps(sigmas)
    course = steps.course(flow_sigma(3.0))
    assert course is steps.course(flow_sigma(3.0)), "made once"
    assert course is not None
    assert len(course.levels) == len(course.percents) + 1
    own = slice(course.first, course.first + len(sigmas))
    assert course.levels[own] == tuple(sigmas)
    assert all(0.0 < each <= 1.0 for each in kept(FULL, course, steps.num_steps))


def test_no_list_has_no_course() -> None:
    assert SigmaSteps(()).course(flow_sigma(3.0)) is None


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan"), "1"])
def test_wrong_strength_is_named(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"ramp = .* is not allowed: a number from 0 to 1"):
        replace(FULL, ramp=wrong)
