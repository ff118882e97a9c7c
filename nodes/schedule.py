"""Node RectifiedSpaAttnSchedule: how much sparsity at which point of the sampling."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rspa_core.run.schedule import SparsitySchedule, parse_dense_steps, parse_steps
from .host import schema_of
from .inputs import SCHEDULE_NODE
from .pictures.schedule import preview_image


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
