"""The few places outside the node classes that reach into a running ComfyUI, each optional.

Imports happen inside the functions: the patching code can then be imported and tested without
ComfyUI, and a core that lacks one of these names still works.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any


def send_status(text: str, node_id: str | None) -> None:
    """Show `text` on the node, and on the subgraphs around it for whoever has not opened them.

    Does nothing without a server or a node id. Ids inside a subgraph read "129:164".
    """
    if node_id is None:
        return
    # Looked up, not imported: outside ComfyUI `server` may be anybody's module.
    prompt_server = getattr(sys.modules.get("server"), "PromptServer", None)
    server = getattr(prompt_server, "instance", None)
    if server is None:
        return
    # A status line must never end a sampling run, whatever the server thinks of it.
    with suppress(Exception):
        parts = node_id.split(":")
        for depth in range(len(parts), 0, -1):
            server.send_progress_text(text, ":".join(parts[:depth]))


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
