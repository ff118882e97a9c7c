"""The few places that reach into a running ComfyUI, and the differences between its versions.

Imports of ComfyUI happen inside the functions: the patching code can then be imported and tested
without it, and a core that lacks one of these names still works.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..rspa_core.run.record import Ending, RunRecord
from .inputs import CATEGORY, Input, Node

RUNS = "rectified_spaattn_runs"
"""Names what we keep on ComfyUI's server."""


def send_status(text: str, node_id: str | None) -> None:
    """Show `text` on the node, and on the subgraphs around it for whoever has not opened them.

    Does nothing without a server or a node id. Ids inside a subgraph read "129:164".
    """
    server = _server()
    if node_id is None or server is None:
        return
    # A status line must never end a sampling run, whatever the server thinks of it.
    with suppress(Exception):
        parts = node_id.split(":")
        for depth in range(len(parts), 0, -1):
            server.send_progress_text(text, ":".join(parts[:depth]))


def runs_of_this_prompt() -> list[RunRecord]:
    """What samplers of the graph that is running have done with our models so far, to be added to.

    Kept on the server, where nodes that share nothing else meet; that of one graph at a time.
    """
    server = _server()
    prompt = getattr(server, "last_prompt_id", None)
    if server is None or prompt is None:
        return []
    kept_for, runs = getattr(server, RUNS, (None, []))
    if kept_for != prompt:
        runs = []
        setattr(server, RUNS, (prompt, runs))
    return runs


def _server() -> Any:
    """ComfyUI's server, None outside of one."""
    # Looked up, not imported: outside ComfyUI `server` may be anybody's module.
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def handled_exception() -> int | None:
    """Which exception is being handled, as an identity while it lives; None without one."""
    error = sys.exc_info()[1]
    return None if error is None else id(error)


def ending_since(begun: int | None) -> Ending:
    """How the sampling that ComfyUI cleans up after has ended.

    It cleans up while the exception that ends a run is on its way.

    Args:
        begun: `handled_exception` when the run began: a node may sample once more, in smaller
            tiles, while it handles that it ran out of memory.
    """
    error = sys.exc_info()[1]
    if error is None or id(error) == begun:
        return Ending.COMPLETE
    management = sys.modules.get("comfy.model_management")
    interruption = getattr(management, "InterruptProcessingException", None)
    if interruption is not None and isinstance(error, interruption):
        return Ending.INTERRUPTED
    return Ending.FAILED


def core_attention() -> Callable[..., Any]:
    """ComfyUI's own attention function, the dense path of calls that come without one."""
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention


def pause_allocation_recording() -> AbstractContextManager[Any]:
    """Context in which newer cores do not record allocations for replay; elsewhere no effect.

    Index tables that are built at the first sparse call outlive the transformer block they are
    built in, which a recorded block must not contain.
    """
    try:
        from comfy.model_prefetch import pause_malloc_graph
    except ImportError:
        return nullcontext()
    return pause_malloc_graph()


T = TypeVar("T")

# An unknown keyword in one schema makes ComfyUI drop the whole pack, so those that came later are
# left out where the signature lacks them.
LATER_KEYWORDS = frozenset({"search_aliases"})  # on Schema, 0.10.0


def schema_of(node: Node, choices: Mapping[str, list[str]] | None = None) -> Any:
    """ComfyUI's schema of a node.

    Args:
        node: a row of the table of inputs.
        choices: by input, those that are known at run time only.
    """
    from comfy_api.latest import io

    return build(
        io.Schema,
        node_id=node.node_id,
        display_name=node.title,
        category=CATEGORY,
        description=node.description,
        search_aliases=list(node.aliases),
        inputs=[_schema_input(io, each, choices or {}) for each in node.inputs],
        outputs=[
            _socket_type(io, each.kind).Output(
                each.name, display_name=each.name, tooltip=each.tooltip
            )
            for each in node.outputs
        ],
        hidden=[io.Hidden.unique_id] if node.speaks else [],
        is_output_node=node.is_output,
        # A node that shows lines keeps its id with what it makes. ComfyUI does not count the id as
        # part of the cache's key: equal nodes would share one result, and a node that was moved
        # into a subgraph would go on under its old id.
        not_idempotent=node.speaks,
    )


def _schema_input(io: Any, each: Input, choices: Mapping[str, list[str]]) -> Any:
    keywords: dict[str, Any] = {"tooltip": each.tooltip, "optional": each.optional}
    if each.extra:
        keywords["extra_dict"] = dict(each.extra)
    if not each.is_widget:
        return _socket_type(io, each.kind).Input(each.name, **keywords)
    if each.kind == "choice" and each.name in choices:
        return io.Combo.Input(each.name, options=choices[each.name], **keywords)
    keywords["default"] = each.default
    if each.kind == "choice":
        return io.Combo.Input(each.name, options=list(each.choices), **keywords)
    if each.kind == "switch":
        return io.Boolean.Input(each.name, **keywords)
    if each.kind == "text":
        return io.String.Input(each.name, **keywords)
    if each.kind == "integer":
        low, high = int(each.low), int(each.high)
        return io.Int.Input(each.name, min=low, max=high, **keywords)
    return io.Float.Input(each.name, min=each.low, max=each.high, step=each.step, **keywords)


def _socket_type(io: Any, kind: str) -> Any:
    known = {"MODEL": io.Model, "IMAGE": io.Image, "STRING": io.String, "*": io.AnyType}
    return known[kind] if kind in known else io.Custom(kind)


WHOLE = "rspa_whole"
"""By this name the page gets a whole picture, which it opens at a double click."""


def shown_pictures(cls: Any, compact: Any, whole: Any) -> dict[str, Any]:
    """What a node shows: a compact picture, and the whole one for whoever asks for it.

    Args:
        cls: of the node.
        compact, whole: pictures, `[1, H, W, 3]`.
    """
    from comfy_api.latest import ui

    shown = dict(ui.PreviewImage(compact, cls=cls).as_dict())
    shown[WHOLE] = ui.PreviewImage(whole, cls=cls).as_dict()["images"]
    return shown


def build(factory: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `factory` without the later keywords that its signature does not have."""
    known = inspect.signature(factory).parameters
    return factory(
        *args,
        **{
            name: value
            for name, value in kwargs.items()
            if name in known or name not in LATER_KEYWORDS
        },
    )


SAY_INTERVAL_S = 0.25


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

    def say(self, text: str, is_last: bool) -> None:
        """Show a line of text on the node, those before the last a few times a second."""
        now = self._clock()
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


def share_bar(node_id: str | None) -> Callable[[float], None]:
    """Shows a share, 0 to 1, as the progress of a node; raises where the user interrupts."""
    from comfy import model_management

    bar = progress_bar(100, node_id)

    def update(share: float) -> None:
        model_management.throw_exception_if_processing_interrupted()
        if bar is not None:
            bar.update_absolute(round(100 * share), 100)

    return update


def compute_device() -> torch.device:
    """The device that ComfyUI computes on."""
    from comfy import model_management

    return model_management.get_torch_device()


def free_memory(device: torch.device, least: int) -> int:
    """Bytes that are free there. Loaded models stay, unless it takes some of them to have `least`:
    then ComfyUI moves those out, and back when they are used."""
    from comfy import model_management

    if model_management.get_free_memory(device) < least:
        model_management.free_memory(least, device)
    return int(model_management.get_free_memory(device))


def output_folder() -> Path:
    """Where ComfyUI keeps what its users make."""
    import folder_paths

    return Path(folder_paths.get_output_directory())


def _pass_on_interruption(error: Exception) -> None:
    """Ask for an interruption again, which older cores raise as an ordinary exception.

    A bar of theirs takes the request and raises; the sampler finds it at the end of its step.
    """
    from comfy import model_management

    if isinstance(error, model_management.InterruptProcessingException):
        model_management.interrupt_current_processing(True)
