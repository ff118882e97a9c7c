"""Which step of the sampler a forward belongs to, and the sparsity that a schedule gives it."""

from __future__ import annotations

from typing import Any

import torch

from ..rspa_core.run.schedule import SparsitySchedule

UNKNOWN_LENGTH = "schedule: number of steps unknown (pass scheduler or num_steps, or call set_step)"


class StepCounter:
    """The current step, from the best source there is.

    1. What `set` was told last.
    2. `scheduler.step_index`, which schedulers of diffusers count up in `step`. Exact.
    3. Changes of the timestep from forward to forward: a lower one is the next step, a higher one
       the first step of a new run. Timesteps that were rounded to bf16, as HunyuanVideo's pipeline
       does, may merge neighbouring steps: give the scheduler there.

    Args:
        scheduler: a scheduler of diffusers, or None.
        num_steps: of a run, if it is known and there is no scheduler.
    """

    def __init__(self, scheduler: Any = None, num_steps: int | None = None) -> None:
        self.scheduler = scheduler
        self.num_steps = num_steps
        self._told: tuple[int, int | None] | None = None
        self._counted = -1
        self._last = float("-inf")

    def set(self, step: int | None, num_steps: int | None = None) -> None:
        """The forwards from here on belong to this step; None goes back to the other sources."""
        if step is None:
            self._told = None
        else:
            self._told = (step, self.num_steps if num_steps is None else num_steps)

    def current(self, timestep: Any) -> tuple[int | None, int | None]:
        """Step from 0, and how many there are; None for what is not known.

        Args:
            timestep: what the model gets: a tensor of any shape, a number, or None. Frames that
                are given have timestep 0 in some models: the largest entry counts.
        """
        if self._told is not None:
            return self._told
        timesteps = getattr(self.scheduler, "timesteps", None)
        if timesteps is not None and hasattr(self.scheduler, "step_index"):
            begin = getattr(self.scheduler, "begin_index", None) or 0
            index = self.scheduler.step_index
            return (0 if index is None else index - begin), len(timesteps) - begin
        if timestep is None:
            return None, self.num_steps
        value = float(torch.as_tensor(timestep).max())
        if value > self._last:
            self._counted = 0
        elif value < self._last:
            self._counted += 1
        self._last = value
        return self._counted, self.num_steps


def scheduled_sparsity(
    schedule: SparsitySchedule, step: int | None, num_steps: int | None
) -> tuple[float | None, str]:
    """Sparsity of a forward, or None and the reason why it is dense.

    The sampling percent is the share of the steps that are done, which is what ComfyUI's percent
    amounts to in flow models.
    """
    needs_length = _depends_on_percent(schedule) or any(each < 0 for each in schedule.dense_steps)
    needs_step = bool(needs_length or schedule.steps or schedule.dense_steps)
    if (needs_step and step is None) or (needs_length and num_steps is None):
        return None, UNKNOWN_LENGTH
    if step is None or num_steps is None:
        percent = schedule.start_percent  # any will do
    else:
        percent = step / max(num_steps, 1)
    return schedule.sparsity_at(percent, step, num_steps)


def _depends_on_percent(schedule: SparsitySchedule) -> bool:
    if schedule.steps:
        return False
    is_flat = schedule.curve == "constant" or schedule.start_sparsity == schedule.end_sparsity
    return not is_flat or schedule.start_percent > 0.0 or schedule.end_percent < 1.0
