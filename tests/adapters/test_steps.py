"""Which step it is, and what a schedule makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rectified_spaattn.adapters.diffusers import StepCounter
from rectified_spaattn.rspa_core.run.reasons import DenseReason, Reason, why
from rectified_spaattn.rspa_core.run.schedule import Position, SparsitySchedule


def place(steps: StepCounter, timestep: object) -> tuple[int | None, int | None]:
    position = steps.current(timestep)
    return position.step, position.num_steps


def decided(
    schedule: SparsitySchedule, step: int | None, num_steps: int | None
) -> float | DenseReason:
    """What a schedule says where only steps are known, as `StepCounter` has them."""
    percent = None if step is None or num_steps is None else step / num_steps
    return schedule.sparsity_at(Position(step, num_steps, percent))


def test_changes_of_the_timestep_are_counted() -> None:
    steps = StepCounter(num_steps=4)
    seen = [place(steps, torch.tensor([t, t]))[0] for t in (999, 999, 750, 750, 250, 999, 3)]
    assert seen == [0, 0, 1, 1, 2, 0, 1]
    assert place(steps, 2.5) == (2, 4)
    assert place(steps, None) == (None, 4)


def test_timesteps_may_rise() -> None:
    """Inversion, from the picture to the noise; a fall is then the start of a new run."""
    steps = StepCounter()
    seen = [place(steps, t)[0] for t in (0, 250, 250, 750, 999, 0, 250)]
    assert seen == [0, 1, 1, 2, 3, 0, 1]


def test_largest_timestep_counts() -> None:
    steps = StepCounter()
    for expected, t in enumerate((900.0, 800.0)):
        assert place(steps, torch.tensor([[0.0, t, t]])) == (expected, None)


def test_noise_levels_come_from_the_scheduler_or_from_who_sets_the_step() -> None:
    timesteps = torch.tensor([1000.0, 900.0, 600.0])
    scheduler = SimpleNamespace(
        timesteps=timesteps,
        step_index=None,
        begin_index=None,
        config=SimpleNamespace(num_train_timesteps=1000),
    )
    steps = StepCounter(scheduler)
    course = steps.current(900.0).course
    assert course is not None
    assert course.levels == pytest.approx((1.0, 0.9, 0.6, 0.0))
    assert course.percents == pytest.approx((0.0, 1 / 3, 2 / 3))
    scheduler.begin_index, scheduler.step_index = 1, 1
    begun = steps.current(900.0)
    assert begun.course is not None
    assert begun.course.levels == pytest.approx((0.9, 0.6, 0.0))
    steps.set(1, noise=[0.8, 0.4])
    told = steps.current(900.0)
    assert (told.step, told.num_steps, told.percent) == (1, 2, 0.5)
    assert told.course is not None
    assert told.course.levels == (0.8, 0.4, 0.0)
    del scheduler.config
    steps.set(None)
    assert steps.current(900.0).course is None
    assert StepCounter(num_steps=3).current(900.0).course is None


def test_scheduler_knows_better_than_the_timestep() -> None:
    scheduler = SimpleNamespace(timesteps=torch.arange(6), step_index=None, begin_index=None)
    steps = StepCounter(scheduler, num_steps=99)
    assert place(steps, 1000.0) == (0, 6)
    scheduler.step_index, scheduler.begin_index = 4, 2
    assert place(steps, 1000.0) == (2, 4)
    steps.set(7)
    assert place(steps, 1000.0) == (7, 99)
    steps.set(7, 8)
    assert place(steps, 1000.0) == (7, 8)
    steps.set(None)
    assert place(steps, 1000.0) == (2, 4)


def test_scheduler_that_keeps_no_index_is_passed_over() -> None:
    assert place(StepCounter(SimpleNamespace(timesteps=[3, 2]), 2), 5.0) == (0, 2)


@pytest.mark.parametrize(
    "schedule",
    [
        SparsitySchedule(0.6, 0.8),
        SparsitySchedule(0.6, 0.6, start_percent=0.1),
        SparsitySchedule(0.6, 0.6, dense_steps=(-1,)),
    ],
)
def test_unknown_length_is_a_reason(schedule: SparsitySchedule) -> None:
    assert decided(schedule, 1, None) == why(Reason.UNKNOWN_STEP)
    assert isinstance(decided(schedule, 1, 10), float)


def test_what_needs_no_length_does_without() -> None:
    flat = SparsitySchedule(0.6, 0.8, "constant")
    assert decided(flat, None, None) == 0.6
    listed = SparsitySchedule(0.6, 0.8, steps=(0.1, 0.2))
    assert decided(listed, 5, None) == 0.2
    assert decided(listed, None, None) == why(Reason.UNKNOWN_STEP)
    dense = SparsitySchedule(0.6, 0.6, dense_steps=(0,))
    assert decided(dense, 0, None) == why(Reason.DENSE_STEP)
    assert decided(dense, 1, None) == 0.6


def test_percent_is_the_share_of_the_steps_done() -> None:
    schedule = SparsitySchedule(0.0, 0.8, start_percent=0.5)
    found = [decided(schedule, step, 10) for step in (4, 5, 6, 9)]
    assert found[:2] == [why(Reason.BEFORE_START, 50.0), why(Reason.ZERO_SPARSITY)]
    assert found[2:] == [pytest.approx(0.16), pytest.approx(0.64)]


def test_scheduler_that_serves_another_thread_is_asked_for_the_timestep() -> None:
    """Two pipelines over one transformer: the index is that of one of them."""
    scheduler = SimpleNamespace(
        timesteps=torch.tensor([900.0, 600.0, 300.0]), step_index=2, begin_index=None
    )
    steps = StepCounter(scheduler)
    assert place(steps, torch.tensor([600.0])) == (1, 3)
    scheduler.timesteps = torch.tensor([900.0, 600.0, 600.0, 300.0])  # of second order
    assert place(steps, torch.tensor([600.0])) == (2, 4)
