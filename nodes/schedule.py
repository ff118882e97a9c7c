"""Node RectifiedSpaAttnSchedule: how much sparsity at which point of the sampling."""

from __future__ import annotations

from comfy_api.latest import io

from ..rspa_core.config import MAX_SPARSITY, check_integer
from ..rspa_core.run.schedule import CURVES
from .host import build
from .inputs import sparsity_schedule
from .pictures.schedule import preview_image

SCHEDULE_TYPE = io.Custom("RSPA_SCHEDULE")
MAX_PREVIEW_STEPS = 200


class RectifiedSpaAttnSchedule(io.ComfyNode):
    """Builds a `SparsitySchedule` and a picture of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return build(
            io.Schema,
            node_id="RectifiedSpaAttnSchedule",
            display_name="Rectified SpaAttn Schedule",
            category="model/patch/attention",
            description=(
                "Changes the sparsity of Rectified SpaAttn over the sampling: a curve, or one "
                "value per step. Early steps decide composition and motion, so they usually get "
                "less of it."
            ),
            search_aliases=["sparsity schedule", "sparse attention schedule", "SpaAttn schedule"],
            inputs=[
                io.Float.Input(
                    "start_sparsity",
                    default=0.6,
                    min=0.0,
                    max=MAX_SPARSITY,
                    step=0.01,
                    tooltip="Sparsity at start_percent; with curve = constant, throughout.",
                ),
                io.Float.Input(
                    "end_sparsity",
                    default=0.8,
                    min=0.0,
                    max=MAX_SPARSITY,
                    step=0.01,
                    tooltip="Sparsity at end_percent. Not used with curve = constant.",
                ),
                io.Combo.Input(
                    "curve",
                    options=list(CURVES),
                    default="linear",
                    tooltip="constant: start_sparsity throughout. linear: a straight ramp. cosine: "
                    "a ramp that starts and ends gently.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Full attention before this share of the sampling (0 = first step).",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Full attention after this share of the sampling (1 = last step).",
                ),
                io.String.Input(
                    "steps",
                    default="",
                    tooltip="One value per step instead of the curve and the percents: 'off, 0.6, "
                    "0.8' is full attention in the first step, then 0.6, then 0.8 to the end. Made "
                    "for 4 to 8 steps. Empty = use the curve.",
                ),
                io.String.Input(
                    "dense_steps",
                    default="",
                    tooltip="Steps that keep full attention in any case: '0, -1' is the first and "
                    "the last.",
                ),
                io.Int.Input(
                    "preview_steps",
                    default=20,
                    min=1,
                    max=MAX_PREVIEW_STEPS,
                    tooltip="How many steps the preview shows. Set it to your sampler's steps; the "
                    "schedule itself does not depend on it.",
                ),
            ],
            outputs=[
                SCHEDULE_TYPE.Output(
                    "schedule",
                    display_name="schedule",
                    tooltip="Connect to the schedule input of Rectified SpaAttn.",
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="A picture of the sparsity in each step; connect a Preview Image node.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        start_sparsity: float,
        end_sparsity: float,
        curve: str,
        start_percent: float,
        end_percent: float,
        steps: str,
        dense_steps: str,
        preview_steps: int,
    ) -> io.NodeOutput:
        check_integer("preview_steps", preview_steps, 1, MAX_PREVIEW_STEPS)
        schedule = sparsity_schedule(
            start_sparsity=start_sparsity,
            end_sparsity=end_sparsity,
            curve=curve,
            start_percent=start_percent,
            end_percent=end_percent,
            steps=steps,
            dense_steps=dense_steps,
        )
        return io.NodeOutput(schedule, preview_image(schedule, preview_steps))
