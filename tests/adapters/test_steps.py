"""Which step it is, and what a schedule makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rectified_spaattn.adapters.call_report import CallReport
from rectified_spaattn.adapters.steps import UNKNOWN_LENGTH, StepCounter, scheduled_sparsity
from rectified_spaattn.rspa_core.run.schedule import DENSE_STEP, SparsitySchedule


def test_changes_of_the_timestep_are_counted() -> None:
    steps = StepCounter(num_steps=4)
    seen = [steps.current(torch.tensor([t, t]))[0] for t in (999, 999, 750, 750, 250, 999, 3)]
    assert seen == [0, 0, 1, 1, 2, 0, 1]
    assert steps.current(2.5) == (2, 4)
    assert steps.current(None) == (None, 4)


def test_largest_timestep_counts() -> None:
    steps = StepCounter()
    for expected, t in enumerate((900.0, 800.0)):
        assert steps.current(torch.tensor([[0.0, t, t]])) == (expected, None)


def test_scheduler_knows_better_than_the_timestep() -> None:
    scheduler = SimpleNamespace(timesteps=torch.arange(6), step_index=None, begin_index=None)
    steps = StepCounter(scheduler, num_steps=99)
    assert steps.current(1000.0) == (0, 6)
    scheduler.step_index, scheduler.begin_index = 4, 2
    assert steps.current(1000.0) == (2, 4)
    steps.set(7)
    assert steps.current(1000.0) == (7, 99)
    steps.set(7, 8)
    assert steps.current(1000.0) == (7, 8)
    steps.set(None)
    assert steps.current(1000.0) == (2, 4)


def test_scheduler_that_keeps_no_index_is_passed_over() -> None:
    assert StepCounter(SimpleNamespace(timesteps=[3, 2]), 2).current(5.0) == (0, 2)


@pytest.mark.parametrize(
    "schedule",
    [
        SparsitySchedule(0.6, 0.8),
        SparsitySchedule(0.6, 0.6, start_percent=0.1),
        SparsitySchedule(0.6, 0.6, dense_steps=(-1,)),
    ],
)
def test_unknown_length_is_a_reason(schedule: SparsitySchedule) -> None:
    assert scheduled_sparsity(schedule, 1, None) == (None, UNKNOWN_LENGTH)
    assert scheduled_sparsity(schedule, 1, 10)[0] is not None


def test_what_needs_no_length_does_without() -> None:
    flat = SparsitySchedule(0.6, 0.8, "constant")
    assert scheduled_sparsity(flat, None, None) == (0.6, "")
    listed = SparsitySchedule(0.6, 0.8, steps=(0.1, 0.2))
    assert scheduled_sparsity(listed, 5, None) == (0.2, "")
    assert scheduled_sparsity(listed, None, None) == (None, UNKNOWN_LENGTH)
    dense = SparsitySchedule(0.6, 0.6, dense_steps=(0,))
    assert scheduled_sparsity(dense, 0, None) == (None, DENSE_STEP)
    assert scheduled_sparsity(dense, 1, None) == (0.6, "")


def test_percent_is_the_share_of_the_steps_done() -> None:
    schedule = SparsitySchedule(0.0, 0.8, start_percent=0.5)
    found = [scheduled_sparsity(schedule, step, 10)[0] for step in (4, 5, 6, 9)]
    assert found == [None, None, pytest.approx(0.16), pytest.approx(0.64)]


def test_report() -> None:
    report = CallReport()
    assert str(report) == "sparse 0 / dense 0"
    assert report.density is None
    report.forwards = 2
    for density in (0.2, 0.3):
        report.add_sparse(torch.tensor(density))
    for reason in ("b", "a", "a"):
        report.add_dense(reason)
    assert str(report) == "sparse 2 / dense 3 (a 2, b 1) · density 0.25"
    assert report.as_dict() == {
        "forwards": 2,
        "sparse": 2,
        "dense": 3,
        "reasons": {"a": 2, "b": 1},
        "density": pytest.approx(0.25),
    }
    report.reset()
    assert report.as_dict()["forwards"] == report.dense == 0
