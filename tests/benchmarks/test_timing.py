"""Interleaved timing: order of calls, rounds, and what is reported."""

import time

import pytest
import torch

from rectified_spaattn.benchmarks.timing import measure_interleaved

CPU = torch.device("cpu")


def test_candidates_take_turns() -> None:
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in ("a", "b")}
    timings = measure_interleaved(calls, CPU, rounds=3)
    assert seen == ["a", "b", "b", "a"] * 2  # every other round backwards
    assert list(timings) == ["a", "b"]


def test_reports_the_median_and_leaves_the_warm_up_out() -> None:
    delays = iter([0.2, 0.01, 0.03, 0.02])
    timings = measure_interleaved({"a": lambda: time.sleep(next(delays))}, CPU, rounds=3)
    assert 0.02 <= timings["a"] < 0.03


def test_needs_a_round() -> None:
    with pytest.raises(ValueError, match="rounds = 0 is not allowed"):
        measure_interleaved({}, CPU, rounds=0)
