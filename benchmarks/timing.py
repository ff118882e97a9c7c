"""Time several ways to do one thing side by side, so that none gets the quiet machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

LEAD_CYCLES = 5_000_000
"""Clock cycles of the work in front of a timed call, about 3 ms."""


def measure_interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = 5,
    host_time: bool = False,
    settle: float = 0.0,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """Time `calls` in turn: each round runs every one of them once, every other round backwards.

    Clock changes, heat and other load then hit all candidates alike, and the median drops what hits
    a single call. On a GPU the time is taken between CUDA events around the call, behind other
    work: as in a model, the call is launched while the layers before it are still running.

    Args:
        calls: name to function without arguments; the result is dropped.
        device: where the calls compute.
        rounds: timed calls of each candidate, after one that is not (compilation, caches).
        host_time: let the GPU wait idle for the call instead, so that its launch counts, too.
        settle: seconds for which a candidate runs in front of each of its timed calls on a GPU. A
            chip at its power limit lowers its clock by what runs on it: this gives each candidate
            the clock that it would have in a render, not that of the one before.
        before: hears the name of every call that is about to run; may raise to end it all.

    Returns:
        Name to median seconds, in the order of `calls`.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds} is not allowed: 1 or more")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(1 + rounds):
        order = list(calls.items())
        # Backwards, so that nobody always runs on a chip that the one before has heated.
        for name, call in reversed(order) if index % 2 else order:
            before(name)
            elapsed = _time_call(call, device, host_time, settle if index else 0.0)
            if index:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a call, from an idle device until it is idle again; and what the call returns."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - start, result


def _time_call(
    call: Callable[[], object], device: torch.device, host_time: bool, settle: float
) -> float:
    """Seconds that one call takes on the device."""
    if device.type != "cuda":
        return timed(call, device)[0]
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if settle > 0:
            _settle(call, settle)
        elif not host_time:
            torch.cuda._sleep(LEAD_CYCLES)
        begin.record()
        call()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1000.0


def _settle(call: Callable[[], object], seconds: float) -> None:
    """Keep the GPU busy with `call`; the last one is still running on return."""
    start = time.perf_counter()
    before = torch.cuda.Event()
    while time.perf_counter() - start < seconds:
        call()
        before.synchronize()
        before = torch.cuda.Event()
        before.record()
