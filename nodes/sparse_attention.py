"""Node RectifiedSpaAttn, sparse attention for a video model, and the two that fill its sockets:
RectifiedSpaAttnOptions, RectifiedSpaAttnSchedule.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rspa_core.run.report_text import OFF, OFF_BUT_PATCHED
from ..rspa_core.run.schedule import SparsitySchedule, parse_dense_steps, parse_steps
from .host import schema_of, send_status
from .inputs import MAIN, OPTIONS_NODE, SCHEDULE_NODE
from .models import fingerprint_of_patcher
from .patching import Options, SparseAttentionPatch, find_patch, install, run_settings
from .pictures.schedule import preview_image


class RectifiedSpaAttn(io.ComfyNode):
    """Patches a clone of the model; the work is in `patching.py`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(MAIN)

    @classmethod
    def validate_inputs(cls, block_size: Any = None) -> bool | str:
        # In place of ComfyUI's check, which takes the number 128 for no choice of "128".
        return MAIN.problem({"block_size": block_size}) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        enabled: bool,
        schedule: Any = None,
        profile: Any = None,
        options: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        if not MAIN.input("enabled").checked(enabled):
            # Untouched, whatever came before: another of these nodes upstream stays in force.
            send_status(OFF if find_patch(model) is None else OFF_BUT_PATCHED, node_id)
            return io.NodeOutput(model)
        settings = run_settings(values, schedule, profile, options, fingerprint_of_patcher(model))
        verbose = options is not None and options.verbose
        return io.NodeOutput(install(model, SparseAttentionPatch(settings, node_id, None, verbose)))


class RectifiedSpaAttnOptions(io.ComfyNode):
    """Holds what is rarely changed about RectifiedSpaAttn."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(OPTIONS_NODE)

    @classmethod
    def validate_inputs(cls, dense_blocks: str | None = None, tail_keys: Any = None) -> bool | str:
        given = {"dense_blocks": dense_blocks, "tail_keys": tail_keys}
        return OPTIONS_NODE.problem(given) or True

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(Options.of(values))


class RectifiedSpaAttnSchedule(io.ComfyNode):
    """Builds a `SparsitySchedule` and a picture of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(SCHEDULE_NODE)

    @classmethod
    def validate_inputs(
        cls, steps: str | None = None, dense_steps: str | None = None
    ) -> bool | str:
        return SCHEDULE_NODE.problem({"steps": steps, "dense_steps": dense_steps}) or True

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        given = SCHEDULE_NODE.checked({**SCHEDULE_NODE.defaults, **values})
        num_steps, shift = given.pop("preview_steps"), given.pop("preview_shift")
        given["steps"] = parse_steps(given["steps"])
        given["dense_steps"] = parse_dense_steps(given["dense_steps"])
        schedule = SparsitySchedule(**given)
        return io.NodeOutput(schedule, preview_image(schedule, num_steps, shift))
