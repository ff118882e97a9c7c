"""Rectified SpaAttn: block-sparse attention for video models in ComfyUI.

ComfyUI calls `comfy_entrypoint` after it has imported this folder. Importing it has no side effects
and needs neither ComfyUI nor torch, so that the method in `rspa_core` also works on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's V3 entry point: the extension that lists the nodes."""
    from .nodes import make_extension

    return make_extension()
