"""Shows on a node how far a probe is: a bar and a line of text, each optional."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .host import send_status

SAY_INTERVAL_S = 0.25
RUNNING = "probe: "
"""How a line about a running measurement begins."""


class ProbeProgress:
    """Progress of one probe on the node `node_id`; without a node id it shows nothing."""

    def __init__(self, node_id: str | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._node_id = node_id
        self._clock = clock
        self._bar: Any = None
        self._last_said: float | None = None

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` are measured; the total may grow."""
        if self._node_id is None:
            return
        if self._bar is None or done <= 1:  # a new run begins with a new bar
            self._bar = progress_bar(total, self._node_id)
        if self._bar is None:
            return
        try:
            self._bar.update_absolute(done, total)
        except Exception as error:  # a bar must never end a sampling run
            _pass_on_interruption(error)

    def say(self, text: str) -> None:
        """Show a line of text on the node, those of a running measurement a few times a second."""
        now = self._clock()
        is_last = not text.startswith(RUNNING)
        if is_last or self._last_said is None or now - self._last_said >= SAY_INTERVAL_S:
            self._last_said = now
            send_status(text, self._node_id)


def progress_bar(total: int, node_id: str | None) -> Any:
    """ComfyUI's progress bar on a node; None where there is no ComfyUI."""
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    return ProgressBar(total, node_id=node_id)


def _pass_on_interruption(error: Exception) -> None:
    """Ask for an interruption again, which older cores raise as an ordinary exception.

    A bar of theirs takes the request and raises; the sampler finds it at the end of its step.
    """
    from comfy import model_management

    if isinstance(error, model_management.InterruptProcessingException):
        model_management.interrupt_current_processing(True)
